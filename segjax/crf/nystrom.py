"""A low-rank approximation of the kernel, of matrix products only: the filter for TPUs.

Williams and Seeger, "Using the Nyström Method to Speed Up Kernel Machines", 2001: K is replaced by
F A F', F the kernel between pixels and landmarks and A the inverse of the kernel between landmarks.
What is missing on the diagonal is added back (Snelson and Ghahramani, "Sparse Gaussian Processes
using Pseudo-inputs", 2006), so that a pixel far from every landmark keeps itself. Better than the
lattice where colours are compared loosely (sigma_rgb >= 10), worse where they are compared sharply.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from segjax.crf import exact

LANDMARKS = 512
SAMPLE = 8192  # pixels that the landmarks are fitted to
ROUNDS = 3  # of k-means
JITTER = np.float32(1e-3)


class LowRank(NamedTuple):
    """K ~ factor @ factor' + diagonal; symmetric."""

    factor: Array  # float32 [N, R]
    diagonal: Array  # float32 [N, 1]


def _product(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def landmarks(points: Array, number: int = LANDMARKS) -> Array:
    """Centres of k-means on a fixed random sample of the points [N, d]: float32 [R, d]."""
    order = jax.random.permutation(jax.random.key(0), points.shape[0])
    sample = points[order[:SAMPLE]]
    centres = sample[:number]

    def refine(centres: Array, _: None) -> tuple[Array, None]:
        square = jnp.sum(jnp.square(centres), 1)
        nearest = jnp.argmin(square[None] - 2 * _product(sample, centres.T), 1)
        member = jax.nn.one_hot(nearest, centres.shape[0], dtype=jnp.float32)
        size = member.sum(0)[:, None]
        mean = _product(member.T, sample) / jnp.maximum(size, np.float32(1))
        return jnp.where(size > 0, mean, centres), None

    return lax.scan(refine, centres, length=ROUNDS)[0]


def build(points: Array) -> LowRank:
    """Factorises the kernel of points [N, d], in units of standard deviations; 4 N R bytes."""
    centres = landmarks(points)
    within = exact.kernel(centres, centres)
    jitter = JITTER * jnp.eye(within.shape[0], dtype=jnp.float32)
    root = jnp.linalg.cholesky(within + jitter)
    across = exact.kernel(centres, points)
    factor = jax.scipy.linalg.solve_triangular(root, across, lower=True).T
    diagonal = np.float32(1) - jnp.sum(jnp.square(factor), 1, keepdims=True)
    return LowRank(factor, jnp.maximum(diagonal, np.float32(0)))


def apply(tables: LowRank, values: Array) -> Array:
    """Filters values [N, C]."""
    low_rank = _product(tables.factor, _product(tables.factor.T, values))
    return low_rank + tables.diagonal * values
