"""The sum over all pairs of pixels, in tiles: O(N^2), the measure of the other filters."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

TILE = 1024  # pixels; a tile of pairs is 4 MB


def _tiles(x: Array, fill: float) -> Array:
    n = x.shape[0]
    tile = min(TILE, n)
    padding = ((0, -n % tile),) + ((0, 0),) * (x.ndim - 1)
    return jnp.pad(x, padding, constant_values=fill).reshape(-1, tile, *x.shape[1:])


def kernel(a: Array, b: Array) -> Array:
    """exp(-|a_i - b_j|^2 / 2) of points [A, d] and [B, d]: float32 [A, B].

    Differences are squared one by one: the expanded form loses the digits that matter where points
    are far from the origin.
    """
    square = jnp.zeros((a.shape[0], b.shape[0]), jnp.float32)
    for k in range(a.shape[1]):
        square = square + jnp.square(a[:, k, None] - b[None, :, k])
    return jnp.exp(np.float32(-0.5) * square)


def apply(points: Array, values: Array) -> Array:
    """Returns sum_j exp(-|f_i - f_j|^2 / 2) values_j, the pixel itself included.

    Args:
      points: float32 [N, d].
      values: float32 [N, C].
    """
    n, classes = values.shape
    columns = (_tiles(points, 0.0), _tiles(values, 0.0))

    def row(here: Array) -> Array:
        def add(total: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
            there, value = column
            product = jnp.dot(kernel(here, there), value, precision=lax.Precision.HIGHEST)
            return total + product, None

        start = jnp.zeros((here.shape[0], classes), jnp.float32)
        return lax.scan(add, start, columns)[0]

    return lax.map(row, columns[0]).reshape(-1, classes)[:n]
