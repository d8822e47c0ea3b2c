"""Resizing of images and logits, with the rules spelled out."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.labels import check_size

Array = np.ndarray | jax.Array


def resize(
    x: jax.Array, size: tuple[int, int], *, align_corners: bool, antialias: bool
) -> jax.Array:
    """Resizes bilinearly.

    Agrees with `torch.nn.functional.interpolate(mode="bilinear")` under the same two options.
    Without `antialias` only the two nearest source pixels of an axis count, also when shrinking.

    Args:
      x: Float array [..., H, W, C].
      size: Height and width of the result, pixels.
      align_corners: True: the centres of the corner pixels stay the corners, source =
        i * (in - 1) / (out - 1); the rule of Caffe's Interp, of DeepLab and of PSPNet. False:
        the borders of the image stay the borders, source = (i + 0.5) * in / out - 0.5.
      antialias: When shrinking, widen the triangle by the factor, so that every source pixel
        counts. Together with `align_corners` this follows PyTorch, which keeps the factor
        (in - 1) / (out - 1) but not the corners: source = (i + 0.5) * factor - 0.5.

    Returns:
      Array [..., size[0], size[1], C] of the dtype of `x`; bfloat16 and float16 are computed in
      float32.

    Raises:
      ValueError: If `x` is no float array of three or more axes, or a size is not positive.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 3:
        raise ValueError(
            f"resize: got {x.dtype}{list(x.shape)}, needs floating [..., height, width, channels]; "
            "resize interpolates floats, resize_labels picks class ids."
        )
    check_size("resize", size)
    if x.shape[-3:-1] == tuple(size):
        return x
    weights = _antialiased if antialias else _bilinear
    rows, columns = (weights(n, out, align_corners) for n, out in zip(x.shape[-3:-1], size))
    return resample(x, rows, columns)


def bilinear_weights(
    position: Array,
    out: int | jax.Array,
    size: int | jax.Array,
    pixel: Array,
    *,
    align_corners: bool,
) -> Array:
    """Returns the weights that resize one axis of `size` pixels to `out` pixels.

    Sizes may be traced. Source positions are fractions of two integers, so each weight is rounded
    once, by the division at the end.

    Args:
      position: Integers [n]: the pixels of the result, counted from 0. A pixel outside
        0..out-1 has no weights but zeros.
      out: Size of the result, pixels.
      size: Size of the source, pixels.
      pixel: Integers [m]: the source pixels, counted from 0. A pixel outside 0..size-1 has the
        weight zero.
      align_corners: As in `resize`.

    Returns:
      Weights [n, m]: NumPy float64 if all arguments are Python or NumPy integers, else float32.
    """
    static = all(isinstance(a, int | np.ndarray) for a in (position, out, size, pixel))
    xp = np if static else jnp
    if align_corners:
        above, below = position * (size - 1), xp.maximum(xp.array(out) - 1, 1)
    else:
        above, below = (2 * position + 1) * size - out, 2 * out
        above = xp.clip(above, 0, below * (size - 1))
    weights = xp.maximum(below - abs(above[:, None] - below * pixel[None]), 0) / below
    return xp.where(((position >= 0) & (position < out))[:, None], weights, 0)


def resample(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Replaces height and width by weighted sums: `y[i, j] = rows[i, h] columns[j, w] x[h, w]`.

    These are two matrix products: fast on every accelerator, and with a gradient of the same kind.
    (The gradient of a gather is a slow scatter.) The order of the two makes the array between them
    the smaller one if both axes grow or both shrink.

    Args:
      x: Float array [..., H, W, C].
      rows: Weights [height, H].
      columns: Weights [width, W].

    Returns:
      Array [..., height, width, C] of the dtype of `x`; bfloat16 and float16 are computed in
      float32.
    """
    dtype = x.dtype if x.dtype.itemsize > 4 else jnp.float32
    batch = math.prod(x.shape[:-3])
    rows, columns = jnp.asarray(rows, dtype), jnp.asarray(columns, dtype)
    y = x.reshape(batch, *x.shape[-3:]).astype(dtype)
    known = all(isinstance(n, int) for n in columns.shape)  # jax.export leaves sizes open
    if known and columns.shape[0] < columns.shape[1]:
        y = _along_columns(columns, _along_rows(rows, y))
    else:
        y = _along_rows(rows, _along_columns(columns, y))
    return y.reshape(*x.shape[:-3], *y.shape[-3:]).astype(x.dtype)


def _along_rows(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Multiplies weights [out, h] with x [b, h, w, c]."""
    batch, height, width, channels = x.shape
    # One copy of the weights per image keeps the batch axis first. Without it, XLA puts the new
    # axis first and transposes the large result: 4 times slower on a CPU.
    weights = jnp.broadcast_to(weights, (batch, *weights.shape))
    y = jax.lax.dot_general(
        weights,
        x.reshape(batch, height, width * channels),
        (((2,), (1,)), ((0,), (0,))),
        precision=jax.lax.Precision.HIGHEST,
    )
    return y.reshape(batch, weights.shape[1], width, channels)


def _along_columns(weights: jax.Array, x: jax.Array) -> jax.Array:
    return _along_rows(weights, x.swapaxes(1, 2)).swapaxes(1, 2)


def _bilinear(size: int, out: int, align_corners: bool) -> Array:
    """Returns the weights [out, size] along one axis: the two nearest pixels."""
    # Sizes that jax.export leaves open are not integers: then JAX makes the weights.
    xp = np if isinstance(size, int) and isinstance(out, int) else jnp
    return bilinear_weights(xp.arange(out), out, size, xp.arange(size), align_corners=align_corners)


def _antialiased(size: int, out: int, align_corners: bool) -> np.ndarray:
    """Returns the weights [out, size] along one axis: triangles as wide as the shrinking."""
    if align_corners:
        factor = (size - 1) / (out - 1) if out > 1 else 0.0
    else:
        factor = size / out
    source = (np.arange(out) + 0.5) * factor - 0.5
    distance = np.abs(np.arange(size) - source[:, None]) / max(factor, 1.0)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(axis=1, keepdims=True)
