"""Builds the lattice of an image: sorts the corners of all simplices, counts and links vertices.

Every array is of static shape. `sort_corners` tells how many vertices the points need, whatever
that is; `build` provides for `capacity` of them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from segjax.crf import simplex
from segjax.crf.fence import fence, runtime_true
from segjax.crf.lattice import Lattice


def _sort_with_index(keys: list[Array], alive: Array) -> list[tuple[Array, Array]]:
    """Sorts each int32 [N] key array; returns the sorted keys and where they came from.

    Key and index are sorted as one 64-bit integer, several times faster than a sort by key. The
    CPU runs each sort on one thread and spreads them badly over threads when they become ready one
    after the other; made ready together and tied into two chains, they run on two threads.
    """
    n = keys[0].shape[0]
    bits = max(1, math.ceil(math.log2(n)))

    def pack(*keys: Array) -> tuple[Array, ...]:
        index = lax.iota(jnp.int64, n)
        return tuple((key.astype(jnp.int64) << bits) | index for key in keys)

    pairs, last = [], None
    with jax.enable_x64(True):
        for i, pair in enumerate(fence(pack, alive, *keys)):
            if i % -(-len(keys) // 2):
                pair = pair + jnp.minimum(last, jnp.int64(0))  # adds zero
            pair = lax.sort(pair, is_stable=False)
            last = pair[0]
            position = (pair & ((1 << bits) - 1)).astype(jnp.int32)
            pairs.append(((pair >> bits).astype(jnp.int32), position))
    return pairs


def _cumsum(x: Array) -> Array:
    """Inclusive cumulative sum of int32 [N], in blocks, which the CPU does in parallel."""
    block = 512
    n = x.shape[0]
    rows = jnp.pad(x, (0, -n % block)).reshape(-1, block)
    totals = rows.sum(1)
    return (jnp.cumsum(rows, 1) + (jnp.cumsum(totals) - totals)[:, None]).reshape(-1)[:n]


def _find(keys: Array, start: Array, end: Array, query: Array, longest: int) -> Array:
    """Positions of queries in the ascending stretches [start, end) of keys; 0 where absent.

    Args:
      keys: int32 [V].
      start: int32 [V], and the next: the stretch to search for each query of a column.
      end: int32 [V].
      query: int32 [Q, V].
      longest: number of keys in a stretch at most.
    """
    start, end = (jnp.broadcast_to(bound[None], query.shape) for bound in (start, end))
    steps = math.ceil(math.log2(min(longest, keys.shape[0]) + 1))

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) >> 1
        right = (keys.at[middle].get(mode="clip") < query) & (low < high)
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    low, _ = lax.fori_loop(0, steps, halve, (start, end))
    return jnp.where((low < end) & (keys.at[low].get(mode="clip") == query), low, 0)


class Corners(NamedTuple):
    """The corners of the simplices of all points, sorted by class and key; P = (d+1) N of them."""

    elevated: tuple[Array, ...]
    words: tuple[Array, ...]
    key: Array  # int32 [P]
    point: Array  # int32 [P]
    new: Array  # bool [P]: the first of a vertex
    vertex: Array  # int32 [P]: counted from 1
    count: (
        Array  # int32 []: vertices needed; (d+1) N + 1, more than can be, if a feature is outside
    )


def sort_corners(features: tuple[Array, ...], extent: tuple[float, ...]) -> Corners:
    """Finds the simplex of each point and sorts the corners of all of them.

    Args:
      features: d float32 arrays [N], each in units of the standard deviation of the Gaussian.
      extent: largest value of each feature; the smallest is 0.
    """
    n, size = features[0].shape[0], len(features) + 1
    alive = runtime_true(features[-1])

    def within(*features: Array) -> Array:
        # A division may be rounded up; the keys leave room for more than that.
        most = [np.float32(e * (1 + 1e-5)) for e in extent]
        inside = [jnp.all((f >= 0) & (f <= m)) for f, m in zip(features, most)]
        return jnp.all(jnp.stack(inside))

    fits = fence(within, alive, *features)
    # Decisions about the simplex are made once, from numbers rounded once: kernels that compute
    # the same expression may round it differently.
    elevated = fence(lambda *f: simplex.elevate(f), alive, *features)
    words = fence(lambda *e: simplex.rank_words(e), alive, *elevated)
    corner, ranks = simplex.first_corner(elevated, words)
    keys = [
        simplex.key_of(simplex.corner_coordinates(corner, ranks, np.int32(r)), np.int32(r), extent)
        for r in range(size)
    ]
    ordered = _sort_with_index(keys, alive)

    def join(*arrays: Array) -> tuple[Array, Array]:
        return jnp.concatenate(arrays[:size]), jnp.concatenate(arrays[size:])

    key, point = fence(join, alive, *(k for k, _ in ordered), *(p for _, p in ordered))
    first_of_class = lax.broadcasted_iota(jnp.int32, (size, n), 1) == 0
    new = first_of_class.reshape(-1) | (key != jnp.roll(key, 1))
    vertex = fence(lambda x: _cumsum(x.astype(jnp.int32)), alive, new)
    count = jnp.where(fits, vertex[-1], n * size + 1)
    return Corners(elevated, words, key, point, new, vertex, count)


def row_length(dimension: int, points: int, capacity: int) -> int:
    """Points per row of the splat: short rows waste no reads, long rows need few additions."""
    return 4 if (dimension + 1) * points < 8 * capacity else 8


def build(corners: Corners, extent: tuple[float, ...], *, capacity: int) -> Lattice:
    """Builds the lattice.

    Args:
      corners: from `sort_corners`.
      extent: the same as there.
      capacity: number of vertices to provide for; the tables are valid if count <= capacity.
    """
    d, n = len(extent), corners.elevated[0].shape[0]
    size, points = d + 1, (d + 1) * n
    alive = runtime_true(corners.elevated[0])

    # Entry p of the sorted list is corner p // N of point `point[p]`.
    entry = jnp.arange(points, dtype=jnp.int32)
    remainder = lax.broadcasted_iota(jnp.int32, (size, n), 0)
    place = (remainder * n).reshape(-1) + corners.point
    corner = jnp.zeros(points, jnp.int32)
    corner = corner.at[place].set(
        jnp.minimum(corners.vertex, capacity), unique_indices=True, mode="promise_in_bounds"
    )
    first = jnp.full(capacity + 2, points, jnp.int32)
    first = first.at[jnp.where(corners.new, corners.vertex, capacity + 2)].set(entry, mode="drop")

    vertex = jnp.arange(capacity + 1, dtype=jnp.int32)
    live = (vertex > 0) & (vertex <= corners.count)
    start = first[:-1]
    members = jnp.where(live, first[1:] - start, 0)
    neighbours = _neighbours(corners, extent, jnp.minimum(start, points - 1), live, n)

    weight = fence(lambda e, w: simplex.barycentric(e, w), alive, corners.elevated, corners.words)
    sorted_weight = fence(lambda w, i: w.reshape(-1)[i], alive, weight, place)
    length = row_length(d, n, capacity)
    row_start, row_members, row_vertex = _rows(start, members, points // length, length, alive)
    slot = jnp.arange(length, dtype=jnp.int32)[None]
    used = slot < row_members[:, None]
    index = jnp.minimum(row_start[:, None] + slot, points - 1)
    return Lattice(
        corner=corner.reshape(size, n),
        slice_weight=weight,
        row_point=jnp.where(used, corners.point[index], 0),
        row_weight=jnp.where(used, sorted_weight[index], np.float32(0)),
        row_vertex=row_vertex,
        neighbours=neighbours,
        count=corners.count,
    )


def _rows(
    start: Array, members: Array, extra: int, length: int, alive: Array
) -> tuple[Array, Array, Array]:
    """Splits the members of each vertex into rows: first entry, members and vertex of each row.

    The first row of every vertex comes first, in order. The vertex is returned for the others only;
    it is one that does not exist for rows without members.
    """
    vertex = jnp.arange(start.shape[0], dtype=jnp.int32)
    more = jnp.maximum((members + length - 1) // length - 1, 0)
    offset = _cumsum(more) - more
    owner = jnp.zeros(extra, jnp.int32)
    owner = lax.cummax(owner.at[jnp.where(more > 0, offset, extra)].set(vertex, mode="drop"))
    number = jnp.arange(extra, dtype=jnp.int32) - offset[owner] + 1
    used = number <= more[owner]
    further_start = start[owner] + number * length
    further_members = jnp.where(used, jnp.minimum(members[owner] - number * length, length), 0)

    def join(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array]:
        return jnp.concatenate([a, b]), jnp.concatenate([jnp.minimum(c, length), d])

    rows = fence(join, alive, start, further_start, members, further_members)
    return (*rows, jnp.where(used, owner, start.shape[0]))


def _neighbours(
    corners: Corners, extent: tuple[float, ...], entry: Array, live: Array, n: int
) -> tuple[tuple[Array, Array], ...]:
    """The vertices before and after each vertex in each direction of the blur.

    The one before, in direction j, has the coordinates minus 1, and plus d in coordinate j. Its
    remainder is one less; at remainder 0 it wraps, and all coordinates but j lose one unit.

    Args:
      corners: the sorted corners.
      extent: of the features.
      entry: int32 [capacity+1]: an entry of the sorted list for each vertex.
      live: bool [capacity+1]: the vertices that exist.
      n: number of points.
    """
    size = len(corners.elevated)
    alive = runtime_true(corners.elevated[0])
    remainder = entry // n
    point = corners.point[entry]

    def coordinates(point: Array, remainder: Array) -> tuple[Array, ...]:
        elevated = tuple(e[point] for e in corners.elevated)
        words = tuple(w[point] for w in corners.words)
        return tuple(simplex.corner_coordinates(*simplex.first_corner(elevated, words), remainder))

    below = jnp.where(remainder == 0, size - 1, remainder - 1)
    wrap = (remainder == 0).astype(jnp.int32)
    moved = fence(
        lambda p, r, w: tuple(c - w for c in coordinates(p, r)), alive, point, remainder, wrap
    )
    key = jnp.where(live, corners.key[entry], 0)
    position = jnp.arange(live.shape[0], dtype=jnp.int32)
    classes = jnp.where(live, remainder, size)
    # The first vertex of each class, and one after the last of all.
    bound = jnp.stack([jnp.sum(live & (classes < r), dtype=jnp.int32) + 1 for r in range(size + 1)])
    key, low, high = fence(lambda *x: x, alive, key, bound[below], bound[below + 1])

    queries = []
    for j in range(size):

        def shifted(remainder: Array, *coordinates: Array, j: int = j) -> Array:
            moved = [c + int(i == j) for i, c in enumerate(coordinates, 1)]
            return simplex.key_of(moved, remainder, extent)

        queries.append(fence(shifted, alive, below, *moved))

    # One search for all directions: its steps are short, and each costs something to start.
    query = fence(lambda *q: jnp.stack(q), alive, *queries)
    found = jnp.where(live[None], _find(key, low, high, query, n), 0)
    tables = []
    for before in found:
        after = jnp.zeros_like(before).at[before].set(position, mode="promise_in_bounds")
        tables.append((before, after.at[0].set(0)))
    return tuple(tables)
