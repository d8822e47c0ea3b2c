"""Resampling of images, logits and label maps, with the rules spelled out."""

import math

import jax
import jax.numpy as jnp
import numpy as np


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
    _check("resize", x, jnp.floating, "[..., height, width, channels]", size)
    if x.shape[-3:-1] == tuple(size):
        return x
    weights = _antialiased if antialias else _bilinear
    rows, columns = (weights(n, out, align_corners) for n, out in zip(x.shape[-3:-1], size))
    return resample(x, rows, columns)


def resize_labels(label: jax.Array, size: tuple[int, int], *, align_corners: bool) -> jax.Array:
    """Resizes a label map by taking the nearest source pixel.

    Args:
        label: Integer array [..., H, W].
        size: Height and width of the result, pixels.
        align_corners: True: source = round(i * (in - 1) / (out - 1)), halves upwards, so that
            going from 8k+1 to k+1 pixels is `label[::8, ::8]`. False: the pixel that holds the
            centre, floor((i + 0.5) * in / out), PyTorch's "nearest-exact".

    Returns:
        Array [..., size[0], size[1]] of the dtype of `label`.

    Raises:
        ValueError: If `label` is no integer array of two or more axes, or a size is not positive.
    """
    _check("resize_labels", label, jnp.integer, "[..., height, width]", size)
    rows, columns = (_nearest(n, out, align_corners) for n, out in zip(label.shape[-2:], size))
    return label[..., rows[:, None], columns]


def resample(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Replaces height and width by weighted sums: `y[i, j] = rows[i, h] columns[j, w] x[h, w]`.

    Two matrix products, fast on every accelerator and with a gradient of the same kind, where the
    gradient of a gather is a slow scatter. Each product runs along the second axis of a matrix
    [height, width * channels] per image; the middle array is the smaller of the two when both
    axes grow or both shrink.

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
    # One copy of the weights per image keeps the batch in front; without, XLA puts the new axis
    # there and transposes the large result, 4 times slower on a CPU.
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


def _bilinear(size: int, out: int, align_corners: bool) -> np.ndarray | jax.Array:
    """Returns the weights [out, size] along one axis; exact positions, in integers."""
    # Sizes that jax.export leaves open are not numbers: then the weights are made on the device.
    xp = np if isinstance(size, int) and isinstance(out, int) else jnp
    i = xp.arange(out)
    if align_corners:
        above, below = i * (size - 1), xp.maximum(xp.array(out) - 1, 1)
    else:
        above, below = xp.clip((2 * i + 1) * size - out, 0, 2 * out * (size - 1)), 2 * out
    pixel, before = xp.arange(size)[None], (above // below)[:, None]
    share = (above % below / below)[:, None]
    return xp.where(pixel == before, 1 - share, 0) + xp.where(pixel == before + 1, share, 0)


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


def _nearest(size: int, out: int, align_corners: bool) -> np.ndarray:
    """Returns the source position of each of `out` positions; exact, in integers."""
    index = np.arange(out)
    if not align_corners:
        return (2 * index + 1) * size // (2 * out)
    steps = max(out - 1, 1)
    return (2 * index * (size - 1) + steps) // (2 * steps)


def _check(name: str, x: jax.Array, kind: type, axes: str, size: tuple[int, int]) -> None:
    if not jnp.issubdtype(x.dtype, kind) or x.ndim < axes.count(","):
        raise ValueError(
            f"{name}: got {x.dtype}{list(x.shape)}, needs {kind.__name__} {axes}; "
            "resize interpolates floats, resize_labels picks class ids."
        )
    if len(size) != 2 or any(n < 1 for n in size):
        raise ValueError(f"{name}: size={size}; give height and width in pixels, at least 1.")
