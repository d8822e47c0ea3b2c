"""The permutohedral lattice around a point: simplex, barycentric coordinates, keys of vertices.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010;
pages are of that paper. Points are given as d arrays [N], one for each feature, and coordinates on
the plane of the lattice as d + 1: a stack would make the compiler compute every row for every
other.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array


def elevate(features: tuple[Array, ...]) -> tuple[Array, ...]:
    """Maps points to the plane of the lattice (p. 5): d arrays [N] to d + 1 arrays [N]."""
    d = len(features)
    total = jnp.zeros_like(features[0])
    elevated = []
    for j in range(d, 0, -1):
        scaled = features[j - 1] * np.float32(math.sqrt(2 / 3) * (d + 1) / math.sqrt(j * (j + 1)))
        elevated.append(total - np.float32(j) * scaled)
        total = total + scaled
    return (total, *reversed(elevated))


def _nearest(elevated: tuple[Array, ...]) -> list[Array]:
    """The nearest remainder-0 point, in units of d + 1, not yet on the plane: float32 [N] each."""
    inverse = np.float32(1) / np.float32(len(elevated))
    return [jnp.round(e * inverse) for e in elevated]


def rank_words(elevated: tuple[Array, ...]) -> tuple[Array, ...]:
    """Where each coordinate's difference to the nearest point stands among all, largest first.

    Ranks are in [-d, 2d]; one below 0 or above d tells that this coordinate of the nearest point
    must move to come back to the plane. Returned as int32 [N] words of six ranks, five bits each.
    """
    size = len(elevated)
    nearest = _nearest(elevated)
    difference = [e - v * np.float32(size) for e, v in zip(elevated, nearest)]
    rank = [sum(nearest).astype(jnp.int32)] * size
    for i in range(size):
        for j in range(i + 1, size):
            less = (difference[i] < difference[j]).astype(jnp.int32)
            rank[i] = rank[i] + less
            rank[j] = rank[j] + 1 - less
    words = []
    for start in range(0, size, 6):
        word = jnp.zeros_like(rank[0])
        for k, r in enumerate(rank[start : start + 6]):
            word = word | ((r + size - 1) << (5 * k))
        words.append(word)
    return tuple(words)


def first_corner(
    elevated: tuple[Array, ...], words: tuple[Array, ...]
) -> tuple[list[Array], list[Array]]:
    """The simplex of each point: its remainder-0 corner in units of d + 1, and the ranks, int32."""
    size = len(elevated)
    corner, ranks = [], []
    for i, nearest in enumerate(_nearest(elevated)):
        rank = ((words[i // 6] >> (5 * (i % 6))) & 31) - (size - 1)
        move = (rank < 0).astype(jnp.int32) - (rank >= size).astype(jnp.int32)
        corner.append(nearest.astype(jnp.int32) + move)
        ranks.append(rank + size * move)
    return corner, ranks


def barycentric(elevated: tuple[Array, ...], words: tuple[Array, ...]) -> Array:
    """Barycentric coordinates (p. 10): float32 [d+1, N]."""
    size = len(elevated)
    corner, ranks = first_corner(elevated, words)
    remainder = jnp.arange(size, dtype=jnp.int32)[:, None]
    weight = jnp.where(remainder == 0, np.float32(1), np.float32(0))
    inverse = np.float32(1) / np.float32(size)
    for e, c, rank in zip(elevated, corner, ranks):
        offset = ((e - c.astype(jnp.float32) * np.float32(size)) * inverse)[None]
        plus = rank[None] == size - 1 - remainder
        minus = rank[None] == jnp.where(remainder == 0, 0, size - remainder)
        weight = weight + jnp.where(plus, offset, jnp.where(minus, -offset, np.float32(0)))
    return weight


def _digits(extent: tuple[float, ...]) -> tuple[list[int], list[int]]:
    """Smallest value and number of values of each digit of a key, neighbours included."""
    d = len(extent)
    low, number = [], []
    for j, largest in enumerate(extent, start=1):
        elevated = largest * math.sqrt(2 / 3) * (d + 1) / math.sqrt(j * (j + 1))
        low.append(-math.ceil(j * elevated / (d + 1)) - 4)
        number.append(4 - low[-1])
    return low, number


def key_space(extent: tuple[float, ...]) -> int:
    """Number of keys of one class of vertices for features in [0, extent]."""
    return math.prod(_digits(extent)[1])


def key_of(coordinates: list[Array], remainder: Array, extent: tuple[float, ...]) -> Array:
    """An integer that identifies a vertex within its class: int32, below `key_space(extent)`.

    The coordinates are given without the remainder, in units of d + 1, and without the first, which
    follows from the others. They fill a slanted box; subtracting what a digit may be expected to be
    from the digits after it makes the box upright, so that keys are small.
    """
    d = len(coordinates)
    low, number = _digits(extent)
    key = jnp.zeros_like(coordinates[0])
    tail = jnp.zeros_like(coordinates[0])
    for j in range(d, 0, -1):
        slant = (tail.astype(jnp.float32) + np.float32(0.5)) * np.float32(1 / ((d + 1) * (j + 1)))
        digit = coordinates[j - 1] + jnp.floor(slant).astype(jnp.int32) - low[j - 1]
        key = key * number[j - 1] + digit
        tail = tail + coordinates[j - 1] * (d + 1) + remainder
    return key


def corner_coordinates(corner: list[Array], ranks: list[Array], remainder: Array) -> list[Array]:
    """Coordinates 1..d of the corner of class `remainder`, in units of d + 1."""
    d = len(corner) - 1
    return [c - (r > d - remainder).astype(jnp.int32) for c, r in zip(corner[1:], ranks[1:])]
