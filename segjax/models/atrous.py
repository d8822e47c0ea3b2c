"""Atrous (dilated) convolution in its equal forms."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def conv_same(x: jax.Array, kernel: jax.Array, *, rate: int) -> jax.Array:
    """Convolves with `rate - 1` zeros between the taps, as one dilated convolution.

    Args:
      x: float [B, H, W, C].
      kernel: [kh, kw, C, F], of the dtype of `x`; `rate * (k - 1)` must be even.
      rate: pixels between neighbouring taps.

    Returns:
      float [B, H, W, F]; the border is padded with `rate * (k - 1) / 2` zeros.
    """
    if kernel.shape[:2] == (1, 1):
        # The same as a matrix product: on a busy two-core CPU XLA was mostly faster at that.
        y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return y.reshape(*x.shape[:-1], -1)
    pad = [(rate * (k - 1) // 2,) * 2 for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        pad,
        rhs_dilation=(rate, rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def conv_by_batch(x: jax.Array, kernel: jax.Array, *, rate: int) -> jax.Array:
    """Computes `conv_same` as a dense convolution of `rate**2` subsampled images.

    Pixels that a dilated kernel meets together lie `rate` apart: sorting them into `rate**2`
    images of 1/rate the size, stacked along the batch, makes the kernel dense.
    """
    if rate == 1 or kernel.shape[:2] == (1, 1):
        return conv_same(x, kernel, rate=1)
    batch, height, width, channels = x.shape
    pad = [rate * (k - 1) // 2 for k in kernel.shape[:2]]
    fill = [-(n + 2 * p) % rate for n, p in zip((height, width), pad, strict=True)]
    x = jnp.pad(x, ((0, 0), *((p, p + f) for p, f in zip(pad, fill, strict=True)), (0, 0)))
    rows, columns = x.shape[1] // rate, x.shape[2] // rate
    x = x.reshape(batch, rows, rate, columns, rate, channels).transpose(2, 4, 0, 1, 3, 5)
    x = x.reshape(rate * rate * batch, rows, columns, channels)
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    rows, columns, channels = y.shape[1:]
    y = y.reshape(rate, rate, batch, rows, columns, channels).transpose(2, 3, 0, 4, 1, 5)
    y = y.reshape(batch, rows * rate, columns * rate, channels)
    return y[:, :height, :width]


def conv_by_taps(x: jax.Array, kernel: jax.Array, *, rate: int) -> jax.Array:
    """Computes `conv_same` as the sum of a matrix product per tap of the kernel.

    A tap meets only the pixels that are less than its offset from the border: where the rate is
    large beside the map, most of what the other forms multiply is padding.
    """
    batch, height, width, channels = x.shape
    pads = [rate * (k - 1) // 2 for k in kernel.shape[:2]]
    y = jnp.zeros((*x.shape[:3], kernel.shape[-1]), jnp.float32)
    for i, j in itertools.product(*map(range, kernel.shape[:2])):
        down, right = i * rate - pads[0], j * rate - pads[1]  # from a pixel to what the tap meets
        rows, columns = height - abs(down), width - abs(right)
        if rows <= 0 or columns <= 0:
            continue
        top, left = max(down, 0), max(right, 0)
        met = x[:, top : top + rows, left : left + columns].reshape(-1, channels)
        part = jnp.matmul(met, kernel[i, j], preferred_element_type=jnp.float32)
        part = part.reshape(batch, rows, columns, -1)
        top, left = max(-down, 0), max(-right, 0)
        around = ((top, height - rows - top), (left, width - columns - left))
        y = y + jnp.pad(part, ((0, 0), *around, (0, 0)))
    return y.astype(x.dtype)


def conv_fastest(x: jax.Array, kernel: jax.Array, *, rate: int) -> jax.Array:
    """Computes `conv_same` in the form measured to be the fastest, see AtrousConv."""
    known = all(isinstance(n, int) for n in x.shape)  # jax.export leaves some open
    if not known or rate < 12 or kernel.shape[-1] < 128:
        return conv_same(x, kernel, rate=rate)
    by_taps, native = (functools.partial(f, rate=rate) for f in (conv_by_taps, conv_same))
    return lax.platform_dependent(x, kernel, cpu=by_taps, default=native)


FORMS = {
    "fastest": conv_fastest,
    "native": conv_same,
    "batch": conv_by_batch,
    "taps": conv_by_taps,
}


class AtrousConv(nn.Module):
    """Convolution at `rate`, stride 1, output as large as the input (DeepLab v1, section 3.1).

    The parameters are those of `nn.Conv` of the same kernel, whatever the rate and the form:
    `kernel` [kh, kw, C, features] and `bias` [features], float32.

    Maps float [B, H, W, C] to [B, H, W, features] in `dtype`. A kernel of even size needs an even
    rate, else ValueError.

    `form` chooses between equal ways to compute it: one dilated convolution ("native"), a dense one
    over `rate**2` subsampled images ("batch"), a matrix product per tap ("taps"). They sum the same
    products, in another order at most: on whole numbers not a bit differs. Milliseconds of the
    forward pass and of the gradient alone, on two idle CPU cores, batch 1, float32:

    | 3x3 | map | native | batch | taps |
    |---|---|---|---|---|
    | 512 to 512, rate 2 | 41x41 | 25, 63 | 46, 82 | 26, 52 |
    | 512 to 512, rate 4 | 60x60 | 46, 117 | 203, 271 | 55, 107 |
    | 2048 to 256, rate 6 | 33x33 | 33, 80 | 171, 223 | 34, 80 |
    | 512 to 1024, rate 12 | 41x41 | 44, 149 | 256, 447 | 39, 71 |
    | 2048 to 256, rate 18 | 33x33 | 49, 122 | 183, 12,067 | 12, 54 |
    | 2048 to 256, rate 36 | 65x65 | 375, 474 | 785, 39,932 | 77, 176 |

    Hence "fastest", the default: on CPU by taps at rates from 12 and 128 features or more, native
    else. The batch form is for devices whose compiler fills a dilated kernel with zeros;
    `benchmarks/models.py` measures all of them.

    >>> layer = AtrousConv(features=8, kernel_size=(3, 3), rate=6)
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 33, 33, 4)))
    >>> y.shape, variables["params"]["kernel"].shape
    ((1, 33, 33, 8), (3, 3, 4, 8))
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    rate: int = 1  # pixels between neighbouring taps
    use_bias: bool = False
    form: str = "fastest"  # a key of FORMS
    dtype: str = "float32"  # of the computation
    kernel_init: Callable[..., Any] = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if any(self.rate * (k - 1) % 2 for k in self.kernel_size):
            raise ValueError(
                f"AtrousConv: kernel_size={self.kernel_size} at rate={self.rate} cannot be "
                "centred; use an odd kernel or an even rate"
            )
        if self.form not in FORMS:
            raise ValueError(f"AtrousConv: form={self.form!r}; accepted: {sorted(FORMS)}")
        kernel = self.param(
            "kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features)
        )
        y = FORMS[self.form](x.astype(self.dtype), kernel.astype(self.dtype), rate=self.rate)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y
