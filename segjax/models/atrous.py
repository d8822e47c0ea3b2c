"""Atrous (dilated) convolution in its equal forms."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax import compiling

LAYOUT = ("NHWC", "HWIO", "NHWC")  # of image, kernel and result
TILE = 24  # least side of the tiles of `conv_by_fourier`


def conv_same(x: jax.Array, kernel: jax.Array, *, rate: int) -> jax.Array:
    """Convolves with `rate - 1` zeros between the taps, as one dilated convolution.

    Args:
      x: float [B, H, W, C].
      kernel: [kh, kw, C, F], of the dtype of `x`; `rate * (k - 1)` must be even.
      rate: pixels between neighbouring taps.

    Returns:
      float [B, H, W, F]; the border is padded with `rate * (k - 1) / 2` zeros.
    """
    if kernel.shape[:2] == (1, 1) and not compiling.predicts_by_onednn():
        # The same as a matrix product, at which XLA is mostly faster; oneDNN is not.
        y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return y.reshape(*x.shape[:-1], kernel.shape[-1])
    pad = [(rate * (k - 1) // 2,) * 2 for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x, kernel, (1, 1), pad, rhs_dilation=(rate, rate), dimension_numbers=LAYOUT
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
    y = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=LAYOUT)
    rows, columns, channels = y.shape[1:]
    y = y.reshape(rate, rate, batch, rows, columns, channels).transpose(2, 3, 0, 4, 1, 5)
    y = y.reshape(batch, rows * rate, columns * rate, channels)
    return y[:, :height, :width]


def conv_by_taps(x: jax.Array, kernel: jax.Array, *, rate: int) -> jax.Array:
    """Computes `conv_same` as the sum of a matrix product per tap of the kernel.

    A tap meets only the pixels that are less than its offset from the border: where the rate is
    large compared with the map, most of what the other forms multiply is padding.

    The sums are float32. Below float32, so are those of the gradients, which are products of
    numbers of the type of `x`; such a convolution has no forward-mode derivative.
    """
    if x.dtype == jnp.float32:
        return _sum_of_taps(x, kernel, rate)
    return _low_precision_taps(x, kernel, rate)


def _sum_of_taps(x: jax.Array, kernel: jax.Array, rate: int) -> jax.Array:
    y = jnp.zeros((*x.shape[:3], kernel.shape[-1]), jnp.float32)
    for i, j, output, met in _taps(x.shape, kernel.shape, rate):
        pixels = x[met]
        part = jnp.matmul(
            pixels.reshape(-1, x.shape[-1]), kernel[i, j], preferred_element_type=jnp.float32
        )
        around = [(s.start, n - s.stop) for s, n in zip(output[1:], x.shape[1:3], strict=True)]
        part = part.reshape(*pixels.shape[:3], kernel.shape[-1])
        y = y + jnp.pad(part, ((0, 0), *around, (0, 0)))
    return y.astype(x.dtype)


def _taps(image: tuple[int, ...], kernel: tuple[int, ...], rate: int) -> Iterator[tuple[Any, ...]]:
    """Yields i and j of each tap, the output pixels it adds to, and the input pixels it meets."""
    for i, j in itertools.product(*map(range, kernel[:2])):
        offsets = [rate * n - rate * (k - 1) // 2 for n, k in zip((i, j), kernel[:2], strict=True)]
        if all(abs(d) < n for d, n in zip(offsets, image[1:3], strict=True)):
            pairs = list(zip(offsets, image[1:3], strict=True))
            output = [slice(max(-d, 0), n - max(d, 0)) for d, n in pairs]
            met = [slice(max(d, 0), n - max(-d, 0)) for d, n in pairs]
            yield i, j, (slice(None), *output), (slice(None), *met)


# Flax and JAX would multiply the float32 gradient of the sums, slowly, instead of rounding it.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _low_precision_taps(x: jax.Array, kernel: jax.Array, rate: int) -> jax.Array:
    return _sum_of_taps(x, kernel, rate)


def _forward(x: jax.Array, kernel: jax.Array, rate: int) -> tuple[jax.Array, Any]:
    return _sum_of_taps(x, kernel, rate), (x, kernel)


def _backward(rate: int, saved: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    kernel_grad = jnp.zeros(kernel.shape, jnp.float32)
    for i, j, output, met in _taps(x.shape, kernel.shape, rate):
        product = jnp.tensordot(
            x[met], grad[output], ((0, 1, 2),) * 2, preferred_element_type=jnp.float32
        )
        kernel_grad = kernel_grad.at[i, j].set(product)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return _low_precision_taps(grad, turned, rate), kernel_grad.astype(kernel.dtype)


_low_precision_taps.defvjp(_forward, _backward)


def conv_by_fourier(x: jax.Array, kernel: jax.Array, *, rate: int) -> jax.Array:
    """Computes `conv_same` as products of Fourier transforms, tile by tile.

    Tiles overlap by the span of the kernel less one, so that each holds all pixels its outputs meet
    ("overlap-save": Oppenheim and Schafer, Discrete-Time Signal Processing, section 8.7). The
    transforms are matrix products. A 7x7 kernel of 64 channels takes about a sixth of the
    multiplications of the other forms. All is float32 inside; rounding is about 1e-6 of the largest
    result of the tile. A value that is not finite spoils all of its tiles.
    """
    span = [rate * (k - 1) + 1 for k in kernel.shape[:2]]
    side = max(TILE, 2 * max(span))
    step = [side - n + 1 for n in span]  # outputs of a tile
    count = [-(-n // s) for n, s in zip(x.shape[1:3], step, strict=True)]

    x_tiles = _tiles(x.astype(jnp.float32), span, step, count)
    kernel = lax.pad(kernel.astype(jnp.float32), 0.0, [(0, 0, rate - 1)] * 2 + [(0, 0, 0)] * 2)
    kernel_spectrum = jnp.fft.rfft2(kernel, (side, side), axes=(0, 1)).conj()

    einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    waves = np.fft.fft(np.eye(side)).astype(np.complex64)  # frequency, pixel
    half = waves[: side // 2 + 1]  # pixels are real: the other half is conjugate
    parts = einsum("pfj,btisjc->pfibtsc", np.stack([half.real, half.imag]), x_tiles)
    spectrum = einsum("ki,fibtsc->fkbtsc", waves, lax.complex(parts[0], parts[1]))
    spectrum = einsum("fkbtsc,kfcd->fkbtsd", spectrum, kernel_spectrum)

    y = einsum("ki,fkbtsd->fibtsd", waves[:, : step[0]].conj() / side, spectrum)
    counted = np.where(2 * np.arange(len(half)) % side == 0, 1, 2) / side  # with the other half
    half = (counted[:, None] * half[:, : step[1]]).astype(np.complex64)
    y = einsum("pfj,pfibtsd->btisjd", np.stack([half.real, half.imag]), jnp.stack([y.real, y.imag]))
    y = y.reshape(x.shape[0], count[0] * step[0], count[1] * step[1], kernel.shape[-1])
    return y[:, : x.shape[1], : x.shape[2]].astype(x.dtype)


def conv_fastest(x: jax.Array, kernel: jax.Array, *, rate: int) -> jax.Array:
    """Computes `conv_same` in the form measured to be the fastest, see AtrousConv."""
    known = all(isinstance(n, int) for n in x.shape)  # jax.export leaves some open
    if known and _fourier_pays(x.shape, kernel.shape, rate):
        on_cpu = conv_by_fourier
    elif known and _taps_pay(x.shape, kernel.shape, rate, x.dtype):
        on_cpu = conv_by_taps
    else:
        return conv_same(x, kernel, rate=rate)
    form, native = (functools.partial(f, rate=rate) for f in (on_cpu, conv_same))
    return lax.platform_dependent(x, kernel, cpu=form, default=native)


def _taps_pay(image: tuple[int, ...], kernel: tuple[int, ...], rate: int, dtype: Any) -> bool:
    """Returns whether a CPU is faster by taps: few of the products meet pixels, not padding."""
    return kernel[-1] >= 128 and _share(image, kernel, rate) <= _largest_share(dtype)


def _fourier_pays(image: tuple[int, ...], kernel: tuple[int, ...], rate: int) -> bool:
    """Returns whether a training step on a CPU without AVX-512 is faster by Fourier transforms.

    That is so for large kernels of many channels; measured on no other processor.
    """
    if not (compiling.training() and compiling.narrow()):
        return False
    return rate == 1 and min(kernel[:2]) >= 7 and min(kernel[2:]) >= 64 and min(image[1:3]) >= 60


def _tiles(x: jax.Array, span: list[int], step: list[int], count: list[int]) -> jax.Array:
    """Cuts [B, H, W, C] into tiles [B, tiles, side, tiles, side, C] that overlap by the span - 1.

    The border is padded with zeros as a convolution that keeps the size needs it.
    """
    pad = [
        ((n - 1) // 2, (c + 1) * s - size - (n - 1) // 2)
        for size, n, s, c in zip(x.shape[1:3], span, step, count, strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    x = x.reshape(x.shape[0], count[0] + 1, step[0], count[1] + 1, step[1], x.shape[-1])
    x = jnp.concatenate([x[:, :-1], x[:, 1:, : span[0] - 1]], axis=2)
    return jnp.concatenate([x[:, :, :, :-1], x[:, :, :, 1:, : span[1] - 1]], axis=4)


def _share(image: tuple[int, ...], kernel: tuple[int, ...], rate: int) -> float:
    """Returns the share of a convolution's products that meet pixels, not padding."""
    met = sum(
        math.prod(s.stop - s.start for s in met[1:]) for *_, met in _taps(image, kernel, rate)
    )
    return met / math.prod(image[1:3] + kernel[:2])


def _largest_share(dtype: Any) -> float:
    """Returns the share of products that meet pixels up to which a CPU is fastest by taps.

    The columns are float32 and below. Without a library for them, only matrix products whose result
    is float32 run on matrix units, so bfloat16 always goes by taps there.
    """
    if compiling.training() and compiling.narrow():
        return 0.8
    shares = {
        (True, True): (0.5, 0.8),
        (True, False): (0.0, 0.0),
        (False, True): (0.5, 1.0),
        (False, False): (0.6, 0.8),
    }[compiling.onednn(), compiling.matrix_units()]
    return shares[dtype != jnp.float32]


FORMS = {
    "fastest": conv_fastest,
    "native": conv_same,
    "batch": conv_by_batch,
    "taps": conv_by_taps,
    "fourier": conv_by_fourier,
}


class AtrousConv(nn.Module):
    """Convolution at `rate`, stride 1, output as large as the input (DeepLab v1, section 3.1).

    The parameters are those of `nn.Conv` of the same kernel, whatever the rate and the form:
    `kernel` [kh, kw, C, features] and `bias` [features], float32.

    Maps float [B, H, W, C] to [B, H, W, features] in `dtype`; an even kernel needs an even rate.

    `form` chooses between equal ways to compute it: one dilated convolution ("native"), a dense one
    over `rate**2` subsampled images ("batch"), a matrix product per tap ("taps"), products of
    Fourier transforms ("fourier"). The first three sum the same products, in another order at most:
    on whole numbers not a bit differs. The last one rounds the transforms too.

    "fastest", the default, is "taps" on a CPU where a small share of the products meets pixels
    instead of padding, "fourier" where a CPU without AVX-512 trains kernels of 7x7 or more with 64
    channels or more on maps of 60x60 or more, and "native" else: docs/performance_cpu.md has the
    times. "batch" is for devices whose compiler fills a dilated kernel with zeros.

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
        if not x.shape[-1]:  # the product that a 1x1 kernel may be would fail, a convolution not
            raise ValueError("AtrousConv: the map has no channels")
        kernel = self.param(
            "kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features)
        )
        y = FORMS[self.form](x.astype(self.dtype), kernel.astype(self.dtype), rate=self.rate)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = add_bias(y, bias)
        return y


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns `y + bias` in the type of `y`, float [B, H, W, C], added in float32.

    The gradient of a bias [C] is a sum over all pixels. XLA adds it up in the type of the addition
    on a CPU, and a sum in bfloat16 stops growing: one more is less than its last bit.
    """
    return (y.astype(jnp.float32) + bias.reshape(1, 1, 1, -1)).astype(y.dtype)
