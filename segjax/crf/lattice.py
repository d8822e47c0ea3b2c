"""Gaussian filtering on the permutohedral lattice: splat, blur, slice.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010. The
choice of the simplex, the order of the blur and the scale follow Krähenbühl and Koltun's program
("Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", 2011), so that results
can be compared with it number by number.

A lattice in d dimensions has vertices of d + 1 classes (the remainder of their coordinates by
d + 1); each point lies in a simplex with one corner of every class. Everything is of static shape:
`capacity` vertices are provided for, and `count` says how many the points need. Where count exceeds
capacity the tables are meaningless and the caller must not use the result.

Layouts are chosen for speed. Values are [N, C] with the classes contiguous. The splat is a gather:
rows of up to L points, one row for every vertex, then the rows of vertices with more than L points,
which are added to the first. Per-point tables are d + 1 separate arrays where a stack would make
the compiler compute every row for every other.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from segjax.crf.fence import fence

LARGE = np.float32(3e38)


class Lattice(NamedTuple):
    """Index tables and weights of a lattice over N points in d dimensions.

    Vertex 0 stands for all vertices that do not exist, and always holds zero.
    """

    corner: Array  # int32 [d+1, N]: the vertices of the simplex around each point
    slice_weight: Array  # float32 [d+1, N]: barycentric coordinates
    row_point: Array  # int32 [R, L]: the points that are splatted on each row
    row_weight: Array  # float32 [R, L]: their barycentric coordinates, 0 where a row is not full
    row_vertex: (
        Array  # int32 [R - capacity - 1]: the vertex of each row after the first of a vertex
    )
    # d + 1 pairs of int32 [capacity+1]: the vertices before and after in each direction. Single
    # arrays: a slice of a stacked one would be copied in every iteration.
    neighbours: tuple[tuple[Array, Array], ...]
    count: Array  # int32 []: vertices needed


def scale(lattice: Lattice, before: Array, after: Array) -> Lattice:
    """Returns the lattice of the filter `after * K(before * values)`; both float32 [N].

    The constant that makes the filter's centre one, about, is in it too.
    """
    d = lattice.corner.shape[0] - 1
    return lattice._replace(
        slice_weight=lattice.slice_weight * (after * np.float32(1 / (1 + 2.0**-d)))[None],
        row_weight=lattice.row_weight * before[lattice.row_point],
    )


def _gather(values: Array, index: Array) -> Array:
    return values.at[index].get(mode="clip")


def splat(lattice: Lattice, values: Array) -> Array:
    """Adds the values of points [N, C] to the corners of their simplices: [capacity+1, C]."""
    vertices = lattice.row_point.shape[0] - lattice.row_vertex.shape[0]

    def rows(point: Array, weight: Array) -> Array:
        total = weight[:, 0, None] * _gather(values, point[:, 0])
        for slot in range(1, point.shape[1]):
            total = total + weight[:, slot, None] * _gather(values, point[:, slot])
        return total

    first = rows(lattice.row_point[:vertices], lattice.row_weight[:vertices])
    further = rows(lattice.row_point[vertices:], lattice.row_weight[vertices:])
    return first.at[lattice.row_vertex].add(further, mode="drop")


def _unchanged(x: Array) -> Array:
    """Returns x. A clip to all of float32 gives the loop over classes some bulk.

    Below about 300 instructions LLVM unrolls that loop instead of vectorising it: 2.2 times slower.
    """
    return jnp.clip(x, -LARGE, LARGE)


def blur(lattice: Lattice, cells: Array, alive: Array, *, reverse: bool = False) -> Array:
    """Convolves the values of vertices [capacity+1, C] with (1/2, 1, 1/2) in each direction.

    Args:
      lattice: the lattice.
      cells: float32.
      alive: bool [], from `runtime_true`.
      reverse: last direction first, which is the transpose.
    """

    def step(cells: Array, before: Array, after: Array) -> Array:
        before, after = _gather(cells, before), _gather(cells, after)
        if cells.shape[1] <= 16:
            cells, before, after = _unchanged(cells), _unchanged(before), _unchanged(after)
        return _unchanged(cells + np.float32(0.5) * (before + after))

    for before, after in reversed(lattice.neighbours) if reverse else lattice.neighbours:
        cells = fence(step, alive, cells, before, after)
    return cells


def slice_(lattice: Lattice, cells: Array) -> Array:
    """Interpolates the values of vertices [capacity+1, C] at the points: [N, C]."""
    corners = zip(lattice.slice_weight, lattice.corner)
    return functools.reduce(jnp.add, (w[:, None] * _gather(cells, c) for w, c in corners))


def apply(lattice: Lattice, values: Array, alive: Array, *, reverse: bool = False) -> Array:
    """Filters values [N, C] float32; see `scale` for the constant."""
    return slice_(lattice, blur(lattice, splat(lattice, values), alive, reverse=reverse))


def kernel_sums(lattice: Lattice, alive: Array, inside: Array | None = None) -> Array:
    """Filters a one at every point, or `inside` float32 [N]: float32 [N]."""
    ones = jnp.ones(lattice.corner.shape[1], jnp.float32)
    values = (ones if inside is None else inside)[:, None]
    return apply(scale(lattice, ones, ones), values, alive)[:, 0]
