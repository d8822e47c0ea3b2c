"""The spatial kernel, which depends on the size of the image alone: two ways to apply it.

`planar` is the two-dimensional permutohedral lattice, equal to Krähenbühl and Koltun's; its tables
are computed once for each size and become constants of the program. `separable` convolves rows and
columns with the Gaussian itself.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from segjax.crf import lattice
from segjax.crf.boundary import fence
from segjax.crf.kernels import positions


@functools.lru_cache(maxsize=16)
def planar(height: int, width: int, sigma: float) -> tuple[lattice.Lattice, np.ndarray]:
    """The lattice of all pixels of an image, and the sums of the kernel, as numpy arrays.

    Returns:
      The lattice, of the capacity that it needs, and float32 [H W].
    """
    extent = ((width - 1) / sigma, (height - 1) / sigma)
    with jax.ensure_compile_time_eval():
        points = positions(height, width, sigma)
        corners = jax.jit(lattice.sort_corners, static_argnums=1)(points, extent)
        build = jax.jit(lattice.build, static_argnums=1, static_argnames="capacity")
        tables = build(corners, extent, capacity=int(corners.count))
        sums = jax.jit(lattice.kernel_sums)(tables, jnp.asarray(True))
    tables = jax.tree.map(np.asarray, tables)
    # Rows without members are the last ones.
    keep = len(tables.row_point) - np.count_nonzero(tables.row_vertex == 0)
    return tables._replace(
        row_point=tables.row_point[:keep],
        row_weight=tables.row_weight[:keep],
        row_vertex=tables.row_vertex[tables.row_vertex > 0],
    ), np.asarray(sums)


def _convolve(values: Array, sigma: float) -> Array:
    """Convolves [n, M] along the first axis with a Gaussian; what is outside counts as zero."""
    n = values.shape[0]
    radius = min(math.ceil(5.5 * sigma), n - 1)  # cuts off 3e-7 of the centre
    if radius > 64:
        distance = (np.arange(n)[:, None] - np.arange(n)[None]) / sigma
        matrix = jnp.asarray(np.exp(-0.5 * distance**2), jnp.float32)
        return jnp.dot(matrix, values, precision=jax.lax.Precision.HIGHEST)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    padded = jnp.pad(values, ((radius, radius), (0, 0)))
    return functools.reduce(jnp.add, (t * padded[k : k + n] for k, t in enumerate(taps)))


def separable(values: Array, shape: tuple[int, int], sigma: float, alive: Array) -> Array:
    """Filters values [H W, C] of an image of `shape` with an unnormalised Gaussian.

    The columns are convolved in a layout [W, H C], so that both passes read along contiguous rows.
    """
    height, width = shape
    classes = values.shape[1]

    def down(x: Array) -> Array:
        rows = _convolve(x.reshape(height, width * classes), sigma)
        rows = rows.reshape(height, width, classes)
        return rows.transpose(1, 0, 2).reshape(width, height * classes)

    def across(x: Array) -> Array:
        columns = _convolve(x, sigma).reshape(width, height, classes)
        return columns.transpose(1, 0, 2).reshape(-1, classes)

    return fence(across, alive, fence(down, alive, values))


def separable_sums(height: int, width: int, sigma: float) -> np.ndarray:
    """The kernel summed over all pixels, at each: float32 [H W]."""
    sums = [
        np.exp(-0.5 * ((np.arange(n)[:, None] - np.arange(n)[None]) / sigma) ** 2).sum(1)
        for n in (height, width)
    ]
    return np.outer(*sums).reshape(-1).astype(np.float32)
