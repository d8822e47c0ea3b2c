"""Large images in overlapping tiles whose probabilities fade into each other.

Tiles of a row go left to right, rows top to bottom. A tile's probabilities are multiplied by ramps
over its overlaps; the ramps of neighbours add up to one. What is still to be added to lies in a
carry: the strip of the row above, and the strip of the tile on the left. So the memory is that of
one tile and one strip of the image's width, whatever its height.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

ALIGN = 32  # pixels; the coarsest grid of any network: tiles start on it
Carry = tuple[jax.Array, jax.Array]  # float32 [overlap, width, C], [tile, overlap, C]


def check(tile: int, overlap: int) -> None:
    """Raises ValueError where tiles cannot be laid."""
    if not 0 < 2 * overlap <= tile or (tile - overlap) % ALIGN:
        raise ValueError(
            f"tile={tile} with overlap={overlap} pixels: the overlap is at most half a tile, and "
            f"tile - overlap is a multiple of {ALIGN}, for example tile=512, overlap=128"
        )


def grid(size: tuple[int, int], step: int) -> tuple[int, int]:
    """Returns how many rows and columns of blocks of `step` pixels cover an image."""
    return math.ceil(size[0] / step), math.ceil(size[1] / step)


def cut(image: np.ndarray, top: int, left: int, tile: int, fill: np.ndarray) -> np.ndarray:
    """Returns a tile, uint8 [tile, tile, 3], with the colour `fill` beyond the image."""
    part = image[top : top + tile, left : left + tile]
    canvas = np.broadcast_to(fill, (tile, tile, 3)).copy()
    canvas[: part.shape[0], : part.shape[1]] = part
    return canvas


def start(columns: int, num_classes: int, tile: int, overlap: int) -> Carry:
    """Returns the carry before the first tile."""
    width = columns * (tile - overlap) + overlap
    return (
        jnp.zeros((overlap, width, num_classes), jnp.float32),
        jnp.zeros((tile, overlap, num_classes), jnp.float32),
    )


def blend(
    probs: jax.Array, carry: Carry, row: jax.Array, column: jax.Array
) -> tuple[jax.Array, Carry]:
    """Adds a tile; a pure function to be jitted with what makes `probs`.

    Args:
      probs: float32 [tile, tile, C].
      carry: of the tile before.
      row: int32 number of the tile's row.
      column: int32 number of the tile's column.

    Returns:
      The finished block, float32 [step, step, C] with step = tile - overlap, whose corner is the
      tile's; and the new carry.
    """
    above, left = carry
    overlap, tile = above.shape[0], left.shape[0]
    step = tile - overlap
    x = column * step
    zero = jnp.zeros_like(x)

    # In the first column the strip above has been added to by nobody.
    corner = jnp.zeros_like(left).at[:overlap].set(above[:, :overlap])
    left = jnp.where(column == 0, corner, left)
    strip = jax.lax.dynamic_slice(
        above, (zero, x + overlap, zero), (overlap, step, above.shape[-1])
    )
    sums = probs * _ramp(tile, overlap, row == 0)[:, None] * _ramp(tile, overlap, column == 0)[None]
    sums = sums.at[:, :overlap].add(left).at[:overlap, overlap:].add(strip)
    above = jax.lax.dynamic_update_slice(above, sums[step:, :step], (zero, x, zero))
    return sums[:step, :step], (above, sums[:, step:])


def _ramp(tile: int, overlap: int, first: jax.Array) -> jax.Array:
    """Weights [tile, 1] along an axis: they rise over the first overlap and fall over the last."""
    rise = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / overlap) ** 2
    middle = np.ones(tile - 2 * overlap)
    inner = np.concatenate([rise, middle, rise[::-1]]).astype(np.float32)
    outer = np.concatenate([np.ones(overlap), middle, rise[::-1]]).astype(np.float32)
    return jnp.where(first, outer, inner)[:, None]
