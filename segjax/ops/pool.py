"""Max pooling, with and without positions, its inverse, and pooling onto a fixed grid."""

import functools
import math

import jax
import jax.numpy as jnp

from segjax.ops.resize import resample

Pair = int | tuple[int, int]  # one number for both axes, or (height, width)


def max_pool(
    x: jax.Array, window: Pair, *, stride: Pair, padding: Pair, ceil_mode: bool
) -> jax.Array:
    """Takes the maximum of every window.

    Caffe and PyTorch differ in `ceil_mode` at even sizes: a 3x3 window of stride 2 and padding 1
    makes 161 of 320 pixels in Caffe, 160 in PyTorch.

    Args:
      x: Float array [B, H, W, C].
      window: Height and width of the window, pixels.
      stride: Step between windows.
      padding: Pixels of -inf on each side, at most half the window.
      ceil_mode: Keep a last, partial window, as Caffe does, if it starts inside the image or the
        padding before it.

    Returns:
      The maxima [B, h, w, C], of the dtype of `x`.

    Raises:
      ValueError: If window or stride is less than 1, or padding more than half the window.
    """
    window, stride, padding = _geometry(window, stride, padding)
    cells = _cells(x.shape[1:3], window, stride, padding, ceil_mode)
    border = _border(x.shape[1:3], window, stride, padding, cells)
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        (1, *window, 1),
        (1, *stride, 1),
        ((0, 0), *border, (0, 0)),
    )


def max_pool_with_argmax(
    x: jax.Array,
    window: Pair,
    *,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Takes the maximum of every window, and its position.

    Equal to PyTorch's `max_pool2d(return_indices=True)` and to the pooling of SegNet's Caffe fork:
    padding never wins, the first maximum in row-major order wins a tie, NaN wins over everything.
    The gradient goes to the position of the maximum.

    Args:
      x: Float array [..., H, W, C].
      window: Height and width of the window, pixels.
      stride: Step between windows; that of the window if not given.
      padding: Pixels of -inf on each side, at most half the window.
      ceil_mode: Keep a last, partial window, as Caffe does, if it starts inside the image or the
        padding before it: 360 -> 180 -> 90 -> 45 -> 23 -> 12.

    Returns:
      The maxima [..., h, w, C] and their flat positions `row * W + column` in the image plane,
      int32, of the same shape.

    Raises:
      ValueError: If `x` is no float array of three or more axes or the geometry is impossible.
    """
    window, stride, padding = _geometry(window, stride, padding)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 3:
        raise ValueError(
            f"max_pool_with_argmax: got {x.dtype}{list(x.shape)}, needs floating "
            "[..., height, width, channels]."
        )
    size = x.shape[-3:-1]
    cells = _cells(size, window, stride, padding, ceil_mode)
    if any(n < 1 for n in cells):  # not min(): sizes may be symbolic, jax.export's
        raise ValueError(f"max_pool_with_argmax: window {window} is larger than the image {size}.")
    if _overlap(window, stride):
        return _max_pool(x, window, stride, padding, cells)
    values, indices = _max_pool(jax.lax.stop_gradient(x), window, stride, padding, cells)
    return _with_gradient_of_pick(x, values, indices, stride, padding), indices


def max_unpool(
    x: jax.Array,
    indices: jax.Array,
    output_size: tuple[int, int],
    *,
    window: Pair | None = None,
    stride: Pair | None = None,
    padding: Pair = 0,
) -> jax.Array:
    """Puts every value where its maximum came from, and zero elsewhere.

    With the geometry of the pooling that made the indices, and windows that do not overlap, the
    result is written without a scatter, 2 to 3 times faster. Otherwise any indices are accepted; if
    several values claim one position, the last in row-major order gets it, and the gradient, on
    every device. (PyTorch on a CPU gives the same values; its gradient goes to all claimants.)

    Args:
      x: Array [..., h, w, C].
      indices: Flat positions `row * W + column` in the result's plane, integers shaped as `x`.
      output_size: Height and width of the result: the size before pooling.
      window: Window of the pooling. Without it, `stride` and `padding` have no effect.
      stride: Stride of the pooling; that of the window if not given.
      padding: Padding of the pooling.

    Returns:
      Array [..., *output_size, C] of the dtype of `x`.

    Raises:
      ValueError: If the shapes of `x`, `indices` and `output_size` do not belong together.
    """
    if x.shape != indices.shape or x.ndim < 3 or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(
            f"max_unpool: values {x.dtype}{list(x.shape)} and indices "
            f"{indices.dtype}{list(indices.shape)}; both are [..., height, width, channels], the "
            "indices integers from max_pool_with_argmax."
        )
    size = tuple(output_size)
    if window is None:
        return _put_by_scatter(x, indices, size)
    window, stride, padding = _geometry(window, stride, padding)
    fitting = {_cells(size, window, stride, padding, ceil_mode) for ceil_mode in (False, True)}
    if x.shape[-3:-1] not in fitting:
        raise ValueError(
            f"max_unpool: window={window}, stride={stride}, padding={padding} pool an image of "
            f"{size} to {' or '.join(map(str, sorted(fitting)))}, but x is {x.shape[-3:-1]}; "
            "output_size is the size before the pooling."
        )
    if _overlap(window, stride):
        return _put_by_scatter(x, indices, size)
    return _put_by_cells(x, indices, size, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _put_by_scatter(x: jax.Array, indices: jax.Array, size: tuple[int, int]) -> jax.Array:
    return _put_by_scatter_forward(x, indices, size)[0]


def _put_by_scatter_forward(
    x: jax.Array, indices: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Finds the last source of each position, then gathers.

    The order of a scatter's writes is up to the device, but a maximum does not depend on it.
    """
    *lead, height, width, channels = x.shape
    flat = (math.prod(lead), height * width, channels)
    image, order, channel = _grid(flat)
    last = jnp.full((flat[0], size[0] * size[1], channels), -1, jnp.int32)
    last = last.at[image, indices.reshape(flat), channel].max(order, mode="drop")
    y = jnp.where(last < 0, 0, jnp.take_along_axis(x.reshape(flat), last, axis=1))
    return y.reshape(*lead, *size, channels), (indices, last)


def _put_by_scatter_backward(
    size: tuple[int, int], residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None]:
    indices, last = residuals
    flat = (last.shape[0], indices.shape[-3] * indices.shape[-2], last.shape[-1])
    positions = indices.reshape(flat)
    won = jnp.take_along_axis(last, positions, axis=1) == _grid(flat)[1]
    picked = jnp.take_along_axis(gradient.reshape(last.shape), positions, axis=1)
    return jnp.where(won, picked, 0).reshape(indices.shape), None


_put_by_scatter.defvjp(_put_by_scatter_forward, _put_by_scatter_backward)


def _grid(shape: tuple[int, int, int]) -> list[jax.Array]:
    """Returns the number of the image, of the pixel and of the channel, each of the same shape."""
    return [jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(3)]


def adaptive_avg_pool(x: jax.Array, bins: Pair) -> jax.Array:
    """Averages over a fixed grid of windows, as uneven as the size demands.

    Window `i` of an axis covers `floor(i * size / bins)` to `ceil((i + 1) * size / bins)`, the rule
    of PyTorch's `adaptive_avg_pool2d`: neighbours overlap where `bins` does not divide the size.

    Args:
      x: Float array [..., H, W, C].
      bins: Height and width of the result, or one number for both.

    Returns:
      Array [..., *bins, C] of the dtype of `x`; bfloat16 and float16 are averaged in float32.

    Raises:
      ValueError: If `x` has fewer than three axes, or a number of bins is less than 1.
    """
    weights = []
    for size, count in zip(x.shape[-3:-1], _checked_bins(x, bins)):
        start, stop = (jnp.array(ends)[:, None] for ends in zip(*_windows(size, count)))
        pixel = jnp.arange(size)[None]
        inside = (start <= pixel) & (pixel < stop)
        weights.append(jnp.where(inside, 1 / (stop - start), 0))
    return resample(x, *weights)


def adaptive_max_pool(x: jax.Array, bins: Pair) -> jax.Array:
    """Takes the maximum over the windows of `adaptive_avg_pool`.

    Args:
      x: Array [..., H, W, C].
      bins: Height and width of the result, or one number for both.

    Returns:
      Array [..., *bins, C] of the dtype of `x`.

    Raises:
      ValueError: As `adaptive_avg_pool`.
    """
    for axis, count in zip((x.ndim - 3, x.ndim - 2), _checked_bins(x, bins)):
        maxima = [
            jnp.max(jax.lax.slice_in_dim(x, start, stop, axis=axis), axis=axis)
            for start, stop in _windows(x.shape[axis], count)
        ]
        x = jnp.stack(maxima, axis=axis)
    return x


def _checked_bins(x: jax.Array, bins: Pair) -> tuple[int, int]:
    if x.ndim < 3 or min(_pair(bins)) < 1:
        raise ValueError(
            f"adaptive pooling of {x.dtype}{list(x.shape)} to bins={bins}: needs "
            "[..., height, width, channels] and at least 1 bin."
        )
    return _pair(bins)


def _windows(size: int, bins: int) -> list[tuple[int, int]]:
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _geometry(
    window: Pair, stride: Pair | None, padding: Pair
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Returns window, stride and padding as pairs."""
    geometry = tuple(map(_pair, (window, window if stride is None else stride, padding)))
    for k, s, p in zip(*geometry):
        if k < 1 or s < 1 or not 0 <= 2 * p <= k:
            raise ValueError(
                f"pooling window={window}, stride={stride}, padding={padding}: window and stride "
                "are at least 1, padding at most half the window."
            )
    return geometry


def _cells(
    size: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
) -> tuple[int, int]:
    """Returns the number of windows along each axis, by the rule of Caffe and PyTorch."""
    cells = []
    for n, k, s, p in zip(size, window, stride, padding):
        room = n + 2 * p - k
        if not ceil_mode:
            cells.append(room // s + 1)
        else:
            count = -(-room // s) + 1
            cells.append(count - ((count - 1) * s >= n + p))
    return tuple(cells)


def _border(
    size: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    cells: tuple[int, int],
) -> list[tuple[int, int]]:
    """Returns the pixels to add before and after each axis, so that every window is whole."""
    return [
        (p, max((count - 1) * s + k - p - n, 0))
        for n, k, s, p, count in zip(size, window, stride, padding, cells)
    ]


def _overlap(window: tuple[int, int], stride: tuple[int, int]) -> bool:
    return any(k > s for k, s in zip(window, stride))


def _max_pool(
    x: jax.Array,
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    cells: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
    """Returns the maxima and their positions, looking at all windows' pixels in turn."""
    size = x.shape[-3:-1]
    last = [(n - 1) * s for n, s in zip(cells, stride)]
    border = _border(size, window, stride, padding, cells)
    low = jnp.array(-jnp.inf, x.dtype)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + border + [(0, 0)], constant_values=low)
    values = indices = None
    for i in range(window[0]):
        for j in range(window[1]):
            pixel = padded[..., i : i + last[0] + 1 : stride[0], j : j + last[1] + 1 : stride[1], :]
            # Clipped, because a window of -inf alone must not name a position in the padding.
            row, column = (
                jnp.maximum(jnp.arange(n, dtype=jnp.int32) * s - p + offset, 0)
                for n, s, p, offset in zip(cells, stride, padding, (i, j))
            )
            position = jnp.broadcast_to(
                (row[:, None] * size[1] + column[None, :])[..., None], pixel.shape
            )
            if values is None:
                values, indices = pixel, position
            else:
                better = (pixel > values) | jnp.isnan(pixel)
                values = jnp.where(better, pixel, values)
                indices = jnp.where(better, position, indices)
    return values, indices


# Windows that do not overlap cut the image into cells of stride x stride pixels, and a position
# belongs to one cell. Picking and putting are then comparisons of each pixel's position with its
# cell's index, without gather or scatter, and each is the transpose of the other.


def _cell_positions(
    cells: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], width: int
) -> jax.Array:
    """Returns the position of each pixel, int32 [h, stride, w, stride]."""
    row, column = (
        jnp.arange(n * s, dtype=jnp.int32) - p for n, s, p in zip(cells, stride, padding)
    )
    position = row[:, None] * width + column[None, :]
    return position.reshape(cells[0], stride[0], cells[1], stride[1])


def _put_by_cells(
    x: jax.Array,
    indices: jax.Array,
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> jax.Array:
    *lead, height, width, channels = x.shape
    position = _cell_positions((height, width), stride, padding, size[1])[..., None]
    pixels = [
        jnp.where(indices == jnp.broadcast_to(position[:, i, :, j], x.shape), x, 0)
        for i in range(stride[0])
        for j in range(stride[1])
    ]
    y = jnp.stack(pixels, axis=-2).reshape(*lead, height, width, *stride, channels)
    y = y.swapaxes(-4, -3).reshape(*lead, height * stride[0], width * stride[1], channels)
    return _shift(y, (-padding[0], -padding[1]), size)


def _pick_by_cells(
    x: jax.Array, indices: jax.Array, stride: tuple[int, int], padding: tuple[int, int]
) -> jax.Array:
    *lead, height, width, channels = indices.shape
    position = _cell_positions((height, width), stride, padding, x.shape[-2])
    cells = _shift(x, padding, (height * stride[0], width * stride[1]))
    cells = cells.reshape(*lead, height, stride[0], width, stride[1], channels)
    found = jnp.broadcast_to(position[..., None], cells.shape) == indices[..., :, None, :, None, :]
    return jnp.where(found, cells, 0).sum(axis=(-4, -2))


def _shift(x: jax.Array, start: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """Moves an image down and right and cuts or zero-fills it to `size`."""
    border = [(p, n - p - m, 0) for p, n, m in zip(start, size, x.shape[-3:-1])]
    none = (0, 0, 0)
    return jax.lax.pad(x, jnp.array(0, x.dtype), [none] * (x.ndim - 3) + [*border, none])


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _with_gradient_of_pick(
    x: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> jax.Array:
    """Returns `values`; its derivative is that of picking them out of `x`."""
    return values


@_with_gradient_of_pick.defjvp
def _(
    stride: tuple[int, int], padding: tuple[int, int], primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    # The function itself, so that this derivative can be differentiated again.
    values = _with_gradient_of_pick(*primals, stride, padding)
    return values, _pick_by_cells(tangents[0], primals[2], stride, padding)
