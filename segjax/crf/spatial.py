"""The spatial kernel, which depends on the size of the image alone: two ways to apply it.

`planar` is the two-dimensional permutohedral lattice, equal to Krähenbühl and Koltun's; its tables
are computed once for each size and become constants of the program. `separable` convolves rows and
columns with the Gaussian itself.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from segjax.crf import lattice, vertices
from segjax.crf.fence import fence
from segjax.crf.kernels import positions


def run_now(function: Callable, *arrays: Any) -> Any:
    """Runs a function of numpy arrays as one program, also while another function is traced.

    The program is not kept: it holds as much memory as the tables that it makes.

    Returns:
      What the function returns, with numpy arrays.
    """
    return jax.device_get(jax.jit(function).lower(*arrays).compile()(*arrays))


@functools.lru_cache(maxsize=16)
def planar(height: int, width: int, sigma: float) -> tuple[lattice.Lattice, np.ndarray]:
    """The lattice of all pixels of an image, and the sums of the kernel, as numpy arrays.

    Returns:
      The lattice, of the capacity that it needs, and float32 [H W].
    """
    extent = ((width - 1) / sigma, (height - 1) / sigma)
    corners = run_now(
        lambda *points: vertices.sort_corners(points, extent), *positions(height, width, sigma)
    )
    capacity = int(corners.count)

    def build(corners: vertices.Corners, alive: Array) -> tuple[lattice.Lattice, Array]:
        tables = vertices.build(corners, extent, capacity=capacity)
        return tables, lattice.kernel_sums(tables, alive)

    tables, sums = run_now(build, corners, np.asarray(True))
    # Rows without members are the last ones.
    keep = len(tables.row_point) - np.count_nonzero(tables.row_vertex > capacity)
    return tables._replace(
        row_point=tables.row_point[:keep],
        row_weight=tables.row_weight[:keep],
        row_vertex=tables.row_vertex[tables.row_vertex <= capacity],
    ), sums


def _convolve(values: Array, axis: int, step: int, sigma: float, alive: Array) -> Array:
    """Convolves [n, m] along an axis with a Gaussian; what is outside counts as zero.

    Args:
      values: float32; on the axis, groups of `step` numbers, which are shifted together.
      axis: 0 or 1.
      step: numbers in a group.
      sigma: standard deviation in groups.
      alive: bool [], from `runtime_true`.
    """
    n = values.shape[axis] // step
    radius = min(math.ceil(5.5 * sigma), n - 1)  # cuts off 3e-7 of the centre
    if radius > 64:
        distance = (np.arange(n)[:, None] - np.arange(n)[None]) / sigma
        matrix = jnp.asarray(np.exp(-0.5 * distance**2), jnp.float32)
        groups = values.reshape((n, -1) if axis == 0 else (-1, n, step))
        rule = "ij,jm->im" if axis == 0 else "ij,hjc->hic"
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum(rule, matrix, groups, precision=highest).reshape(values.shape)

    def convolve(padded: Array) -> Array:
        def shifted(by: int) -> Array:
            start = (radius + by) * step
            return jax.lax.slice_in_dim(padded, start, start + n * step, axis=axis)

        total = shifted(0)
        for k in range(1, radius + 1):
            tap = np.float32(math.exp(-0.5 * (k / sigma) ** 2))
            total = total + tap * (shifted(k) + shifted(-k))
        return total

    width = [(0, 0), (0, 0)]
    width[axis] = (radius * step, radius * step)
    # Padding by itself: fused, it would be a comparison for each number that is read.
    return fence(convolve, alive, fence(lambda x: jnp.pad(x, width), alive, values))


def separable(values: Array, shape: tuple[int, int], sigma: float, alive: Array) -> Array:
    """Filters values [H W, C] of an image of `shape` with an unnormalised Gaussian."""
    height, width = shape
    classes = values.shape[1]
    rows = values.reshape(height, width * classes)
    rows = _convolve(rows, 0, 1, sigma, alive)
    return _convolve(rows, 1, classes, sigma, alive).reshape(-1, classes)


def separable_sums(height: int, width: int, sigma: float) -> np.ndarray:
    """The kernel summed over all pixels, at each: float32 [H W]."""
    sums = [
        np.exp(-0.5 * ((np.arange(n)[:, None] - np.arange(n)[None]) / sigma) ** 2).sum(1)
        for n in (height, width)
    ]
    return np.outer(*sums).reshape(-1).astype(np.float32)
