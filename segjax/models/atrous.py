"""Atrous (dilated) convolution in its two equal forms."""

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


FORMS = {"native": conv_same, "batch": conv_by_batch}


class AtrousConv(nn.Module):
    """Convolution at `rate`, stride 1, output as large as the input (DeepLab v1, section 3.1).

    The parameters are those of `nn.Conv` of the same kernel, whatever the rate and the form:
    `kernel` [kh, kw, C, features] and `bias` [features], float32.

    Maps float [B, H, W, C] to [B, H, W, features] in `dtype`. A kernel of even size needs an even
    rate, else ValueError.

    `form` chooses between one dilated convolution ("native") and a dense one over `rate**2`
    subsampled images ("batch"). They sum the same products, so their values are the same to the
    bit where XLA keeps the order of the sums: on CPU at all shapes measured below, not on small
    maps. All networks here use the native form: on two CPU cores that had other work too, it took
    a half to a sixth of the time (3x3, 512 to 1024 channels, rate 12, 41x41: 36 against 237 ms;
    2048 to 256, rate 6, 33x33: 27 against 152 ms), and the gradient of the batch form at rate 18
    fifty times as long. The batch form is for devices whose compiler fills a dilated kernel
    with zeros; `benchmarks/models.py` measures both.

    >>> layer = AtrousConv(features=8, kernel_size=(3, 3), rate=6)
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 33, 33, 4)))
    >>> y.shape, variables["params"]["kernel"].shape
    ((1, 33, 33, 8), (3, 3, 4, 8))
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    rate: int = 1  # pixels between neighbouring taps
    use_bias: bool = False
    form: str = "native"  # a key of FORMS
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
