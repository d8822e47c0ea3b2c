"""Max pooling that remembers where, its inverse, and pooling to a fixed grid."""

import jax
import jax.numpy as jnp
import numpy as np

Pair = int | tuple[int, int]


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _pooled(size: int, window: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Returns the number of windows along an axis, by the rule of Caffe and PyTorch."""
    span = size + 2 * padding - window
    out = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1  # the last window starts inside the image or its left padding
    return out


def max_pool_with_argmax(
    x: jax.Array,
    window: Pair,
    *,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Takes the maximum of each window and tells where it was."""
    window, stride, padding = _pair(window), _pair(stride or window), _pair(padding)
    height, width, _ = x.shape[-3:]
    out = [
        _pooled(n, k, s, p, ceil_mode)
        for n, k, s, p in zip((height, width), window, stride, padding)
    ]
    rows, columns = (
        jnp.arange(n, dtype=jnp.int32) * s - p for n, s, p in zip(out, stride, padding)
    )
    border = [
        (p, max((n - 1) * s + k - p - size, 0))
        for n, k, s, p, size in zip(out, window, stride, padding, (height, width))
    ]
    low = jnp.array(-jnp.inf, x.dtype)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + border + [(0, 0)], constant_values=low)
    values = indices = None
    for i in range(window[0]):
        for j in range(window[1]):
            tap = padded[
                ...,
                i : i + (out[0] - 1) * stride[0] + 1 : stride[0],
                j : j + (out[1] - 1) * stride[1] + 1 : stride[1],
                :,
            ]
            y = jnp.maximum(rows, 0) if i == 0 else rows + i
            z = jnp.maximum(columns, 0) if j == 0 else columns + j
            position = jnp.broadcast_to((y[:, None] * width + z)[..., None], tap.shape[-3:])
            position = jnp.broadcast_to(position, tap.shape)
            if values is None:
                values, indices = tap, position
            else:
                better = tap > values
                values = jnp.where(better, tap, values)
                indices = jnp.where(better, position, indices)
    return values, indices


def max_unpool(x: jax.Array, indices: jax.Array, output_size: tuple[int, int]) -> jax.Array:
    """Puts each value where its maximum came from, zero elsewhere."""
    *lead, h, w, channels = x.shape
    height, width = output_size

    def plane(values: jax.Array, where: jax.Array) -> jax.Array:
        empty = jnp.zeros((height * width, channels), values.dtype)
        return empty.at[where.reshape(h * w, channels), jnp.arange(channels)].set(
            values.reshape(h * w, channels)
        )

    for _ in lead:
        plane = jax.vmap(plane)
    return plane(x, indices).reshape(*lead, height, width, channels)


def _bins(size: int, bins: int) -> list[tuple[int, int]]:
    """Returns the first and the past-the-last position of each bin; neighbours may overlap."""
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def adaptive_avg_pool(x: jax.Array, bins: Pair) -> jax.Array:
    """Averages over a fixed grid of windows, as uneven as they must be.

    Window `i` of an axis covers `floor(i * size / bins)` to `ceil((i + 1) * size / bins)`, the
    rule of PyTorch's `adaptive_avg_pool2d`. One small matrix product per axis.

    Args:
        x: Float array [..., H, W, C].
        bins: Height and width of the result, or one number for both.

    Returns:
        Array [..., bins, bins, C] of the dtype of `x`; bfloat16 and float16 are summed in float32.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    y = x.astype(dtype)
    for axis, rule, count in zip((-3, -2), ("oh,...hwc->...owc", "ow,...hwc->...hoc"), _pair(bins)):
        weights = np.zeros((count, x.shape[axis]))
        for i, (start, stop) in enumerate(_bins(x.shape[axis], count)):
            weights[i, start:stop] = 1 / (stop - start)
        y = jnp.einsum(rule, jnp.asarray(weights, dtype), y, precision=jax.lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def adaptive_max_pool(x: jax.Array, bins: Pair) -> jax.Array:
    """Takes the maximum over the windows of `adaptive_avg_pool`.

    Args:
        x: Array [..., H, W, C].
        bins: Height and width of the result, or one number for both.

    Returns:
        Array [..., bins, bins, C] of the dtype of `x`.
    """
    for axis, count in zip((x.ndim - 3, x.ndim - 2), _pair(bins)):
        windows = [
            jnp.max(jax.lax.slice_in_dim(x, start, stop, axis=axis), axis=axis, keepdims=True)
            for start, stop in _bins(x.shape[axis], count)
        ]
        x = jnp.concatenate(windows, axis=axis)
    return x
