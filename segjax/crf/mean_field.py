"""Mean-field inference in a fully connected CRF.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
2011, Algorithm 1:

    Q_i(l) = softmax(-u_i(l))
    repeat
        message passing    m_k(i, l) = sum_j k(f_i, f_j) Q_j(l), normalised
        compatibility      e_i(l) = sum_k sum_l' mu_k(l, l') m_k(i, l')
        local update       Q_i(l) = exp(-u_i(l) - e_i(l))
        normalise          Q_i

The sum over j includes i, as in the authors' programs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from segjax.crf import checks, exact, lattice, nystrom, spatial
from segjax.crf.fence import runtime_true
from segjax.crf.kernels import Features, Kernel, Spatial, extent, features

NORMALIZATIONS = ("symmetric", "after", "before", "none")
FILTERS = ("lattice", "exact", "nystrom")
SPATIAL_FILTERS = ("lattice", "separable")
GROWTH = 2**0.25  # of the capacities that are planned: little is provided for in vain
EMPTY = np.float32(-1e30)  # logit of a class that only fills a row


class Operator(NamedTuple):
    """after * K(before * values): what one kernel does to values [N, C]."""

    tables: Any
    before: Array | None  # float32 [N]; None: already in the tables
    after: Array | None
    alive: Array  # bool []


def _apply_lattice(op: Operator, values: Array, transpose: bool) -> Array:
    forward, backward = op.tables
    if transpose:
        return lattice.apply(backward, values, op.alive, reverse=True)
    return lattice.apply(forward, values, op.alive)


def _apply_symmetric(function: Callable, op: Operator, values: Array, transpose: bool) -> Array:
    before, after = (op.after, op.before) if transpose else (op.before, op.after)
    return after[:, None] * function(op.tables, before[:, None] * values, op.alive)


_apply_exact = functools.partial(_apply_symmetric, lambda f, v, _: exact.apply(f, v))
_apply_nystrom = functools.partial(_apply_symmetric, lambda t, v, _: nystrom.apply(t, v))


@functools.lru_cache(maxsize=64)
def _apply_separable(shape: tuple[int, int], sigma: float) -> Callable:
    def convolve(_: None, values: Array, alive: Array) -> Array:
        return spatial.separable(values, shape, sigma, alive)

    return functools.partial(_apply_symmetric, convolve)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def message_passing(apply: Callable, operator: Operator, q: Array) -> Array:
    """Filters the marginals [N, C]. Its gradient filters the cotangent with the transpose.

    The operator depends on the image alone and has no gradient.
    """
    return apply(operator, q, False)


def _message_passing_fwd(apply: Callable, operator: Operator, q: Array) -> tuple[Array, Operator]:
    return apply(operator, q, False), operator


def _message_passing_bwd(apply: Callable, operator: Operator, cotangent: Array) -> tuple:
    return None, apply(operator, cotangent, True)


message_passing.defvjp(_message_passing_fwd, _message_passing_bwd)


def _norms(sums: Array, normalization: str, inside: Array | None = None) -> tuple[Array, Array]:
    """The factors before and after the filter, from the kernel summed over all pixels [N].

    Pixels that do not exist, 0 in `inside`, neither send nor receive.
    """
    if inside is not None:
        before, after = _norms(sums, normalization)
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


def _lattice_operator(
    tables: lattice.Lattice,
    sums: Array,
    normalization: str,
    alive: Array,
    inside: Array | None = None,
) -> Operator:
    before, after = _norms(sums, normalization, inside)
    forward = lattice.scale(tables, before, after)
    backward = forward if before is after else lattice.scale(tables, after, before)
    return Operator((forward, backward), None, None, alive)


@functools.lru_cache(maxsize=16)
def _planar(
    height: int, width: int, sigma: float, normalization: str
) -> tuple[lattice.Lattice, lattice.Lattice]:
    """The scaled tables of a spatial kernel, and of its transpose, as numpy arrays."""
    tables, sums = spatial.planar(height, width, sigma)
    with jax.ensure_compile_time_eval():
        operator = _lattice_operator(tables, jnp.asarray(sums), normalization, jnp.asarray(True))
    forward, backward = operator.tables
    forward = jax.tree.map(np.asarray, forward)
    same = backward is operator.tables[0]
    return forward, forward if same else jax.tree.map(np.asarray, backward)


def _spatial_operator(
    kernel: Spatial,
    shape: tuple[int, int],
    normalization: str,
    method: str,
    alive: Array,
    inside: Array | None,
) -> tuple[Callable, Operator]:
    if method == "lattice" and inside is not None:
        tables = jax.tree.map(jnp.asarray, spatial.planar(*shape, float(kernel.sigma))[0])
        sums = lattice.kernel_sums(tables, alive, inside)
        return _apply_lattice, _lattice_operator(tables, sums, normalization, alive, inside)
    if method == "lattice":
        tables = _planar(*shape, float(kernel.sigma), normalization)
        return _apply_lattice, Operator(jax.tree.map(jnp.asarray, tables), None, None, alive)
    if inside is None:
        sums = jnp.asarray(spatial.separable_sums(*shape, kernel.sigma))
    else:
        sums = spatial.separable(inside[:, None], shape, kernel.sigma, alive)[:, 0]
    norms = _norms(sums, normalization, inside)
    return _apply_separable(shape, float(kernel.sigma)), Operator(None, *norms, alive)


def _compatibility(weight: Array, message: Array) -> Array:
    """Minus the energy e of one kernel: Potts, one weight for each class, or a matrix [C, C]."""
    if weight.ndim < 2:
        return weight * message if weight.ndim == 0 else weight[None] * message
    return -jnp.dot(message, weight.T, precision=lax.Precision.HIGHEST)


def _row_width(num_classes: int) -> int:
    """Classes in a row of values: rows that are multiples of eight numbers are read as vectors."""
    if num_classes <= 8:
        return num_classes
    return -(-num_classes // 8) * 8


def _widen(weight: Array, width: int) -> Array:
    weight = jnp.asarray(weight, jnp.float32)
    return lax.pad(weight, np.float32(0), [(0, width - size, 0) for size in weight.shape])


def _infer(
    logits: Array,
    weights: list[Array],
    operators: list[tuple[Callable, Operator]],
    num_iterations: int,
) -> Array:
    """Runs the iterations on logits [N, C]; returns the logits of the marginals."""

    def iteration(current: Array, _: None) -> tuple[Array, None]:
        q = jax.nn.softmax(current, -1)
        updated = logits
        for weight, (apply, operator) in zip(weights, operators):
            updated = updated + _compatibility(weight, message_passing(apply, operator, q))
        return updated, None

    return lax.scan(iteration, logits, length=num_iterations)[0]


def _bucket(count: int, points: int, dimension: int, growth: float) -> int:
    """The smallest capacity for a number of vertices; the largest, if none is large enough.

    Capacities are an eighth of the points, times a power of `growth`; the largest always suffices.
    """
    powers = math.ceil(math.log(max(1.0, 8 * count / points), growth) - 1e-9)
    return min(math.ceil(points / 8 * growth**powers), (dimension + 1) * points)


def _ladder(points: int, dimension: int) -> tuple[int, ...]:
    """Capacities that one program holds where none is given."""
    return (*(math.ceil(s * points) for s in (0.2, 1.0, 2.0)), (dimension + 1) * points)


def _inside(mask: Array | None) -> Array | None:
    return None if mask is None else mask.reshape(-1).astype(jnp.float32)


def _sort(
    image: Array, mask: Array | None, kernels: tuple[Kernel, ...]
) -> tuple[list[lattice.Corners], Array]:
    """Sorts the corners of each lattice of an image; the largest number of vertices, int32 []."""
    corners = [
        lattice.sort_corners(features(k, image, _inside(mask)), extent(k, *image.shape[:2]))
        for k in kernels
        if not isinstance(k, Spatial)
    ]
    return corners, functools.reduce(jnp.maximum, (c.count for c in corners), jnp.int32(0))


def _refine(
    logits: Array,
    image: Array,
    mask: Array | None,
    kernels: tuple[Kernel, ...],
    sorted_corners: tuple[list[lattice.Corners], Array] | None,
    num_iterations: int,
    normalization: str,
    method: str,
    spatial_method: str,
    capacity: tuple[int, ...],
) -> tuple[Array, Array]:
    """One image: logits [H, W, C] and, int32 [], the largest number of vertices of a lattice."""
    height, width, classes = logits.shape
    if num_iterations == 0:
        return logits, jnp.int32(0)
    alive = runtime_true(logits)
    wide = _row_width(classes)
    flat = logits.reshape(-1, classes)
    flat = jnp.pad(flat, ((0, 0), (0, wide - classes)), constant_values=EMPTY)
    weights = [_widen(kernel.weight, wide) for kernel in kernels]
    inside = _inside(mask)
    corners, count = [], jnp.int32(0)
    if method == "lattice":
        corners, count = sorted_corners or _sort(image, mask, kernels)

    def run(capacity: int) -> Array:
        remaining = iter(corners)
        operators = []
        for kernel in kernels:
            if isinstance(kernel, Spatial):
                shape = (height, width)
                operators.append(
                    _spatial_operator(kernel, shape, normalization, spatial_method, alive, inside)
                )
            elif method == "lattice":
                box = extent(kernel, height, width)
                tables = lattice.build(next(remaining), box, capacity=capacity)
                sums = lattice.kernel_sums(tables, alive, inside)
                operator = _lattice_operator(tables, sums, normalization, alive, inside)
                operators.append((_apply_lattice, operator))
            else:
                points = jnp.stack(features(kernel, image, inside), 1)
                apply = _apply_exact if method == "exact" else _apply_nystrom
                tables = points if method == "exact" else nystrom.build(points)
                one = jnp.ones(points.shape[0], jnp.float32)
                values = (one if inside is None else inside)[:, None]
                sums = apply(Operator(tables, one, one, alive), values, False)[:, 0]
                norms = _norms(jnp.maximum(sums, np.float32(0)), normalization, inside)
                operators.append((apply, Operator(tables, *norms, alive)))
        return _infer(flat, weights, operators, num_iterations)

    if not corners:
        refined = run(0)
    else:
        branch = sum((count > c).astype(jnp.int32) for c in capacity[:-1])
        branches = [functools.partial(run, c) for c in capacity]
        refined = lax.switch(branch, branches) if len(capacity) > 1 else run(capacity[0])
        # An overflow must not be missed: the tables would mix unrelated pixels.
        refined = jnp.where(count <= capacity[-1], refined, np.float32(np.nan))
    return refined[:, :classes].reshape(logits.shape), count


def _feature_values(kernels: tuple[Kernel, ...]) -> list[Array]:
    return [kernel.values for kernel in kernels if isinstance(kernel, Features)]


def _with_features(kernels: tuple[Kernel, ...], values: list[Array]) -> tuple[Kernel, ...]:
    remaining = iter(values)
    return tuple(
        dataclasses.replace(k, values=next(remaining)) if isinstance(k, Features) else k
        for k in kernels
    )


def _each(function: Callable, inputs: tuple, *, together: bool) -> Any:
    """Applies a function of one image to a batch.

    On the CPU images follow one another: a batched gather is not a fast one there.
    """
    if jax.tree.leaves(inputs)[0].shape[0] == 1:
        outputs = function(jax.tree.map(lambda x: x[0], inputs))
        return jax.tree.map(lambda x: x[None], outputs)
    one_by_one = functools.partial(lax.map, function)
    default = jax.vmap(function) if together else one_by_one
    return lax.platform_dependent(inputs, cpu=one_by_one, default=default)


@jax.jit
def _sort_batch(
    image: Array, mask: Array | None, kernels: tuple[Kernel, ...]
) -> tuple[list[lattice.Corners], Array]:
    """Sorts the corners for images [B, H, W, 3]; returns numbers of vertices too, int32 [B]."""

    def one(inputs: tuple) -> tuple[list[lattice.Corners], Array]:
        image, mask, values = inputs
        return _sort(image, mask, _with_features(kernels, values))

    return _each(one, (image, mask, _feature_values(kernels)), together=True)


OPTIONS = ("num_iterations", "normalization", "method", "spatial_method", "capacity")


@functools.partial(jax.jit, static_argnames=OPTIONS)
def _refine_batch(
    logits: Array,
    image: Array,
    mask: Array | None,
    kernels: tuple[Kernel, ...],
    sorted_corners: tuple[list[lattice.Corners], Array] | None,
    **options: Any,
) -> tuple[Array, Array]:
    """Refines logits [B, H, W, C]; returns the number of vertices of each image too, int32 [B]."""
    image = lax.stop_gradient(image)
    values = lax.stop_gradient(_feature_values(kernels))

    def one(inputs: tuple) -> tuple[Array, Array]:
        logits, image, mask, values, corners = inputs
        return _refine(logits, image, mask, _with_features(kernels, values), corners, **options)

    inputs = (logits.astype(jnp.float32), image, mask, values, sorted_corners)
    # A batched switch would compute all capacities.
    return _each(one, inputs, together=len(options["capacity"]) == 1)


def _add_batch(kernels: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    return _with_features(kernels, [values[None] for values in _feature_values(kernels)])


def refine_logits(
    logits: Array,
    image: Array,
    kernels: tuple[Kernel, ...],
    *,
    mask: Array | None = None,
    num_iterations: int = 10,
    normalization: str = "symmetric",
    filter: str = "lattice",
    spatial_filter: str | None = None,
    capacity: int | None = None,
) -> Array:
    """Runs mean-field inference; returns logits whose softmax are the marginals.

    These are what a loss takes when network and CRF are trained together; see `mean_field` for
    arguments, errors and the choice of a capacity.
    """
    checks.shapes(logits, image, kernels)
    if mask is not None:
        checks.mask(mask, logits)
    checks.choice("normalization", normalization, NORMALIZATIONS)
    checks.choice("filter", filter, FILTERS)
    if spatial_filter is None:
        spatial_filter = "lattice" if filter == "lattice" else "separable"
    checks.choice("spatial_filter", spatial_filter, SPATIAL_FILTERS)
    if num_iterations < 0:
        raise ValueError(f"num_iterations is {num_iterations}; it is 0 or more")
    height, width = logits.shape[-3:-1]
    if filter == "lattice":
        checks.keys_fit(kernels, height, width)
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity is {capacity}; it is a number of vertices, see segjax.crf.plan")
    arrays = jax.tree.leaves((logits, image, mask, kernels))
    traced = any(isinstance(x, jax.core.Tracer) for x in arrays)
    if not traced:
        checks.values(logits, image)
    batched = logits.ndim == 4
    if not batched:
        logits, image, kernels = logits[None], image[None], _add_batch(kernels)
        mask = None if mask is None else mask[None]
    kernels = tuple(kernels)
    points, dimension = height * width, _dimension(kernels, height, width)
    corners = None
    if filter != "lattice" or dimension == 0 or num_iterations == 0:
        capacities = (0,)  # there is no lattice that depends on the image
    elif capacity is not None:
        capacities = (int(capacity),)
    elif traced:
        capacities = _ladder(points, dimension)
    else:
        corners = _sort_batch(image, mask, kernels)
        capacities = (_bucket(int(corners[1].max()), points, dimension, GROWTH),)
    refined, count = _refine_batch(
        logits,
        image,
        mask,
        kernels,
        corners,
        num_iterations=num_iterations,
        normalization=normalization,
        method=filter,
        spatial_method=spatial_filter,
        capacity=capacities,
    )
    if not traced and int(count.max()) > capacities[-1]:
        if int(count.max()) > (dimension + 1) * points:
            raise ValueError("Features.values span more than Features.extent tells")
        raise ValueError(
            f"the image needs {int(count.max())} lattice vertices and capacity is {capacity}: pass"
            " capacity=segjax.crf.plan(image, kernels), or leave it out"
        )
    return refined if batched else refined[0]


def mean_field(logits: Array, image: Array, kernels: tuple[Kernel, ...], **options: Any) -> Array:
    """Refines the scores of a network with a fully connected CRF.

    Args:
      logits: floating point [H, W, C] or [B, H, W, C], the scores at the size of the image; minus
        the unary energies. What is added to all classes of a pixel has no effect. -inf excludes a
        class.
      image: uint8 [..., H, W, 3], or floating point in 0..255; RGB, not normalised.
      kernels: the kernels and their weights; see `PRESETS`. Weights may be traced and learnt.
      mask: bool [H, W] or [B, H, W], true where there is a pixel: what is padding neither sends nor
        receives, and its result has no meaning. None where all are. Padding changes nothing but
        what is approximated: a little of the spatial lattice, at the border to the padding, whose
        values are blurred through vertices that the smaller lattice does not have, and the
        landmarks of "nystrom".
      num_iterations: the papers use 10; 0 returns the softmax of the logits.
      normalization: how each kernel is normalised by its sum over all pixels: "symmetric" divides
        by the root before and after filtering (pydensecrf's default), "after" as the DeepLab
        authors' program does, "before", or "none".
      filter: how messages are passed for colours and features. "lattice" is the permutohedral
        lattice of the original program; "exact" sums over all pairs of pixels, O(N^2); "nystrom" is
        made of matrix products only, for TPUs.
      spatial_filter: how messages are passed for `Spatial` kernels: "lattice" as in the original
        program (the default of the lattice), or "separable", exact (the default of the others).
      capacity: vertices that the lattice provides for. A number from `plan` makes the smallest and
        fastest program; where it is too small, the result is NaN under jit and an error outside.
        None never fails. Outside jit the vertices are counted first, and the smallest program that
        holds them goes on from there. Under jit it makes one program that holds several capacities
        and chooses while it runs, which takes four times as long to compile; under vmap that
        computes all of them, so give a number there.

    Returns:
      The marginals Q, float32 of the shape of the logits. Gradients reach logits and weights; the
      image, features and standard deviations have none.

    Raises:
      ValueError: shapes or dtypes do not fit; a standard deviation is not positive; and, outside a
        compiled program, logits hold NaN, the image is not in 0..255, or capacity is too small.
    """
    return jax.nn.softmax(refine_logits(logits, image, kernels, **options), -1)


def _dimension(kernels: tuple[Kernel, ...], height: int, width: int) -> int:
    boxes = (extent(k, height, width) for k in kernels if not isinstance(k, Spatial))
    return max(map(len, boxes), default=0)


@jax.jit
def _count(image: Array, mask: Array | None, kernels: tuple[Kernel, ...]) -> Array:
    """The largest number of vertices of a lattice of images [B, H, W, 3]: int32 []."""
    return _sort_batch(image, mask, kernels)[1].max()


def plan(
    image: Array,
    kernels: tuple[Kernel, ...],
    *,
    mask: Array | None = None,
    growth: float = GROWTH,
) -> int:
    """Counts the lattice vertices of an image; returns the capacity to pass to `mean_field`.

    Capacities come from a list, so that images of one size share few programs. Runs on the
    host, outside a compiled program; for many images, plan for a typical one and leave a margin.

    Args:
      image: [H, W, 3], or [B, H, W, 3] for what all of them need; 0..255.
      kernels: as for `mean_field`; their weights do not matter.
      mask: bool [H, W] or [B, H, W], as for `mean_field`.
      growth: ratio of a capacity to the one before it in the list, above 1. Large ratios make few
        programs, small ones fast programs.
    """
    if not 1 < growth < math.inf:
        raise ValueError(f"growth is {growth}; it is above 1, for example 2")
    if np.ndim(image) not in (3, 4) or image.shape[-1] != 3:
        raise ValueError(f"image has shape {np.shape(image)}; it is [H, W, 3] or [B, H, W, 3]")
    height, width = image.shape[-3:-1]
    checks.keys_fit(kernels, height, width)
    if image.ndim == 3:
        image, kernels = image[None], _add_batch(kernels)
        mask = None if mask is None else mask[None]
    count = int(_count(image, mask, tuple(kernels)))
    return _bucket(count, height * width, _dimension(kernels, height, width), growth)
