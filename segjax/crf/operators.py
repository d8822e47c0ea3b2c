"""The sums over all pixels that pass messages: one operator for each kernel, by three filters."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from segjax.crf import exact, lattice, nystrom, spatial, vertices
from segjax.crf.kernels import Bilateral, Features, Kernel, Spatial, extent, features

NORMALIZATIONS = ("symmetric", "after", "before", "none")
FILTERS = ("lattice", "exact", "nystrom")
SPATIAL_FILTERS = ("lattice", "separable")

# The kernel K of tables, values [N, C], `alive`, and whether to transpose.
Filter = Callable[[Any, Array, Array, bool], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operator:
    """after * K(before * values): what one kernel does to values [N, C].

    Attributes:
      filter: K.
      tables: arrays that the filter reads.
      before: float32 [N]; None where the tables hold both factors.
      after: as before.
      alive: bool [], from `runtime_true`.
    """

    filter: Filter = dataclasses.field(metadata={"static": True})
    tables: Any
    before: Array | None
    after: Array | None
    alive: Array


def apply(operator: Operator, values: Array, *, transpose: bool = False) -> Array:
    """Applies an operator, or its transpose, to values float32 [N, C]."""
    before, after = operator.before, operator.after
    if before is None:
        return operator.filter(operator.tables, values, operator.alive, transpose)
    if transpose:
        before, after = after, before
    filtered = operator.filter(operator.tables, before[:, None] * values, operator.alive, transpose)
    return after[:, None] * filtered


@jax.custom_vjp
def message_passing(operator: Operator, q: Array) -> Array:
    """Filters the marginals [N, C]. The gradient filters the cotangent with the transpose.

    The operator depends on the image alone and has no gradient.
    """
    return apply(operator, q)


def _message_passing_fwd(operator: Operator, q: Array) -> tuple[Array, Operator]:
    return apply(operator, q), operator


def _message_passing_bwd(operator: Operator, cotangent: Array) -> tuple[None, Array]:
    return None, apply(operator, cotangent, transpose=True)


message_passing.defvjp(_message_passing_fwd, _message_passing_bwd)


def create(
    kernels: Sequence[Kernel],
    image: Array,
    inside: Array | None,
    corners: Sequence[vertices.Corners],
    alive: Array,
    *,
    normalization: str,
    filter: str,
    spatial_filter: str,
    capacity: int,
) -> list[Operator]:
    """Creates the operator of each kernel for one image.

    Args:
      kernels: the kernels; their weights do not matter.
      image: [H, W, 3], 0..255.
      inside: float32 [H W], 1 for the pixels that exist; None where all do.
      corners: of each kernel that is not spatial, for filter "lattice".
      alive: bool [], from `runtime_true`.
      normalization: one of `NORMALIZATIONS`.
      filter: one of `FILTERS`.
      spatial_filter: one of `SPATIAL_FILTERS`.
      capacity: number of vertices that each lattice provides for.
    """
    shape = image.shape[:2]
    remaining = iter(corners)
    operators = []
    for kernel in kernels:
        if isinstance(kernel, Spatial):
            create_one = planar_operator if spatial_filter == "lattice" else separable_operator
            operator = create_one(kernel, shape, normalization, alive, inside)
        elif filter == "lattice":
            box = extent(kernel, *shape)
            tables = vertices.build(next(remaining), box, capacity=capacity)
            sums = lattice.kernel_sums(tables, alive, inside)
            operator = lattice_operator(tables, sums, normalization, alive, inside)
        else:
            operator = dense_operator(kernel, image, filter, normalization, alive, inside)
        operators.append(operator)
    return operators


def _norms(sums: Array, normalization: str, inside: Array | None = None) -> tuple[Array, Array]:
    """The factors before and after the filter, from the kernel summed over all pixels [N].

    Pixels that do not exist, 0 in `inside`, neither send nor receive.
    """
    if inside is not None:
        # Not a product: far from the image, rounding may bring a sum below 0 and its root to NaN.
        before, after = _norms(jnp.where(inside > 0, sums, np.float32(1)), normalization)
        return (before * inside,) * 2 if before is after else (before * inside, after * inside)
    ones = jnp.ones_like(sums)
    tiny = np.float32(1e-20)
    if normalization == "symmetric":
        return (lax.rsqrt(sums + tiny),) * 2
    if normalization == "after":
        return ones, 1 / (sums + tiny)
    if normalization == "before":
        return 1 / (sums + tiny), ones
    return ones, ones


def _filter_lattice(tables: tuple, values: Array, alive: Array, transpose: bool) -> Array:
    forward, backward = tables
    return lattice.apply(backward if transpose else forward, values, alive, reverse=transpose)


def lattice_operator(
    tables: lattice.Lattice,
    sums: Array,
    normalization: str,
    alive: Array,
    inside: Array | None = None,
) -> Operator:
    """The operator of a lattice, whose tables hold the factors; `sums` of `lattice.kernel_sums`."""
    before, after = _norms(sums, normalization, inside)
    forward = lattice.scale(tables, before, after)
    backward = forward if before is after else lattice.scale(tables, after, before)
    return Operator(_filter_lattice, (forward, backward), None, None, alive)


@functools.lru_cache(maxsize=16)
def _planar_tables(
    height: int, width: int, sigma: float, normalization: str
) -> tuple[lattice.Lattice, lattice.Lattice]:
    """The scaled tables of a spatial kernel, and of its transpose, as numpy arrays."""
    tables, sums = spatial.planar(height, width, sigma)

    def scaled(*arrays: Any) -> tuple[lattice.Lattice, lattice.Lattice | None]:
        forward, backward = lattice_operator(*arrays, normalization, np.asarray(True)).tables
        return forward, None if backward is forward else backward

    forward, backward = spatial.run_now(scaled, tables, sums)
    return forward, forward if backward is None else backward


def planar_operator(
    kernel: Spatial,
    shape: tuple[int, int],
    normalization: str,
    alive: Array,
    inside: Array | None,
) -> Operator:
    """The operator of a spatial kernel on a two-dimensional lattice."""
    sigma = float(kernel.sigma)
    if inside is None:
        tables = jax.tree.map(jnp.asarray, _planar_tables(*shape, sigma, normalization))
        return Operator(_filter_lattice, tables, None, None, alive)
    tables = jax.tree.map(jnp.asarray, spatial.planar(*shape, sigma)[0])
    sums = lattice.kernel_sums(tables, alive, inside)
    return lattice_operator(tables, sums, normalization, alive, inside)


def separable_operator(
    kernel: Spatial,
    shape: tuple[int, int],
    normalization: str,
    alive: Array,
    inside: Array | None,
) -> Operator:
    """The operator of a spatial kernel by two convolutions, which are exact."""
    sigma = float(kernel.sigma)

    def convolve(_: None, values: Array, alive: Array, transpose: bool) -> Array:
        del transpose  # it is symmetric
        return spatial.separable(values, shape, sigma, alive)

    if inside is None:
        sums = jnp.asarray(spatial.separable_sums(*shape, kernel.sigma))
    else:
        sums = spatial.separable(inside[:, None], shape, kernel.sigma, alive)[:, 0]
    return Operator(convolve, None, *_norms(sums, normalization, inside), alive)


def _filter_exact(points: Array, values: Array, alive: Array, transpose: bool) -> Array:
    del alive, transpose  # it is symmetric
    return exact.apply(points, values)


def _filter_nystrom(tables: nystrom.LowRank, values: Array, alive: Array, transpose: bool) -> Array:
    del alive, transpose  # it is symmetric
    return nystrom.apply(tables, values)


def dense_operator(
    kernel: Bilateral | Features,
    image: Array,
    filter: str,
    normalization: str,
    alive: Array,
    inside: Array | None,
) -> Operator:
    """The operator of a kernel by filter "exact" or "nystrom"."""
    points = jnp.stack(features(kernel, image, inside), 1)
    exactly = filter == "exact"
    function, tables = (
        (_filter_exact, points) if exactly else (_filter_nystrom, nystrom.build(points))
    )
    one = jnp.ones(points.shape[0], jnp.float32)
    values = (one if inside is None else inside)[:, None]
    sums = apply(Operator(function, tables, one, one, alive), values)[:, 0]
    norms = _norms(jnp.maximum(sums, np.float32(0)), normalization, inside)
    return Operator(function, tables, *norms, alive)
