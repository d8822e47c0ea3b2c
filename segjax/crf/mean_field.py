"""Mean-field inference in a fully connected CRF: `algorithm_1`, and the functions to call.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
2011. In the paper's letters, psi_u are the unary energies, minus the logits of a network; k^(m) are
the kernels, Gaussians of the features f of two pixels; mu^(m) is the penalty of two labels, the
kernel's weight included:

    Q_i(l) = exp(-psi_u(l)) / Z_i                                 initialise
    repeat
        Q~_i^(m)(l) = sum_j k^(m)(f_i, f_j) Q_j(l)                message passing
        Q^_i(l) = sum_m sum_l' mu^(m)(l, l') Q~_i^(m)(l')         compatibility transform
        Q_i(l) = exp(-psi_u(l) - Q^_i(l))                         local update
        normalise Q_i

Differences, both as in the authors' programs: the sum over j includes i, and each kernel is
normalised by its sum over all pixels.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from segjax.crf import batches, checks, operators
from segjax.crf.capacity import Sorted, as_floats, choose, provide, sort
from segjax.crf.fence import fence, runtime_true
from segjax.crf.kernels import Kernel
from segjax.crf.operators import Operator, message_passing

EMPTY = np.float32(-1e30)  # logit of a class that only fills a row


def algorithm_1(
    logits: Array, kernels: Sequence[Operator], mu: Sequence[Array], num_iterations: int
) -> Array:
    """Runs the iterations for one image.

    Args:
      logits: -psi_u, float32 [N, C].
      kernels: k^(m), one operator each.
      mu: mu^(m), float32 [] (Potts), [C] or [C, C] each.
      num_iterations: a fixed number, where the paper asks for convergence.

    Returns:
      float32 [N, C], the logarithm of Q before it is normalised; its softmax is Q.
    """

    def iteration(log_q: Array, _: None) -> tuple[Array, None]:
        q = jax.nn.softmax(log_q, -1)  # normalise
        log_q = logits
        for kernel, penalty in zip(kernels, mu):
            message = message_passing(kernel, q)
            energy = compatibility_transform(penalty, message)
            log_q = log_q - energy  # local update
        return log_q, None

    return lax.scan(iteration, logits, length=num_iterations)[0]


def compatibility_transform(mu: Array, message: Array) -> Array:
    """Returns the energy sum_l' mu(l, l') message(l'), float32 [N, C].

    Potts, mu(l, l') = w [l != l'], and its form with a weight for each class give -w message(l),
    which differs by a number for each pixel: the softmax does not see it.
    """
    if mu.ndim < 2:
        return -(mu * message if mu.ndim == 0 else mu[None] * message)
    return jnp.dot(message, mu.T, precision=lax.Precision.HIGHEST)


def mean_field(
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
    """Refines the scores of a network with a fully connected CRF.

    Args:
      logits: floating point [H, W, C] or [B, H, W, C], the scores at the size of the image; minus
        the unary energies. What is added to all classes of a pixel has no effect. -inf excludes a
        class. NaN, +inf, or -inf for all classes of a pixel are refused outside a compiled program.
        Inside one, +inf makes its class certain (several share the pixel), a pixel of -inf alone
        starts with equal probabilities, and so does one with NaN, whose own result is NaN.
      image: uint8 [..., H, W, 3], or floating point in 0..255; RGB, not normalised. A PIL image of
        mode RGB will do.
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
        made of matrix products only, for TPUs. The lattice is the default on every backend: labels
        must not depend on the machine, and most `PRESETS` compare colours sharply, where it is the
        better approximation. On a TPU it costs more. Compiled for a v5e, an image of 321x321 with
        21 classes: XLA counts, each loop once, 767 GB of memory traffic for the lattice and 4 for
        "nystrom", on paper 940 and 5 ms; in 10 iterations the lattice gathers 1,354 million
        numbers, "nystrom" takes 51 GFLOP of matrix products, "exact" 5,156. No TPU has been
        measured. So try "nystrom" there where colours are compared loosely (sigma_rgb >= 10).
      spatial_filter: how messages are passed for `Spatial` kernels: "lattice" as in the original
        program (the default of the lattice), or "separable", exact (the default of the others).
      capacity: vertices that the lattice provides for. A number from `plan` makes the smallest and
        fastest program; where it is too small, the result is NaN under jit and an error outside.
        None never fails. Outside jit the vertices are counted first, and the smallest program that
        holds them goes on from there. Under jit it makes one program that holds several capacities
        and chooses while it runs, which takes four times as long to compile; under vmap that
        computes all of them, so give a number there. (Up to 64x64 pixels it holds the largest.)

    Returns:
      The marginals Q, float32 of the shape of the logits. Gradients reach logits and weights; the
      image, features and standard deviations have none.

    Raises:
      ValueError: shapes or dtypes do not fit; a standard deviation is not positive; and, outside a
        compiled program, logits are NaN, +inf or all -inf at a pixel, the image is not in 0..255,
        or capacity is too small.
    """
    refined = refine_logits(
        logits,
        image,
        kernels,
        mask=mask,
        num_iterations=num_iterations,
        normalization=normalization,
        filter=filter,
        spatial_filter=spatial_filter,
        capacity=capacity,
    )
    return _softmax(refined)


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

    Returns:
      float32 of the shape of the logits: the logarithm of the marginals Q, up to a number for each
      pixel.
    """
    if spatial_filter is None:
        spatial_filter = "lattice" if filter == "lattice" else "separable"
    options = {
        "num_iterations": num_iterations,
        "normalization": normalization,
        "filter": filter,
        "spatial_filter": spatial_filter,
    }
    logits, image = checks.as_array("logits", logits), checks.as_array("image", image)
    mask = None if mask is None else checks.as_array("mask", mask)
    checks.shapes(logits, image, mask, kernels)
    checks.options(**options, capacity=capacity)
    if filter == "lattice":
        checks.keys_fit(kernels, *logits.shape[-3:-1])
    arrays = jax.tree.leaves((logits, image, mask, kernels))
    traced = any(isinstance(x, jax.core.Tracer) for x in arrays)
    if not traced:
        checks.values(logits, image, mask)
    kernels = tuple(kernels)
    capacities, corners = (0,), None  # for no lattice that depends on the image
    if filter == "lattice" and num_iterations > 0:
        capacities, corners = provide(image, mask, kernels, capacity, traced=traced)
    refined, count = _refine_batch(
        logits, image, mask, kernels, corners, **options, capacities=capacities
    )
    if not traced:
        checks.fits(int(np.max(count)), capacities[-1], kernels, *image.shape[-3:-1])
    return refined


_softmax = jax.jit(functools.partial(jax.nn.softmax, axis=-1))  # one program, not five

OPTIONS = ("num_iterations", "normalization", "filter", "spatial_filter", "capacities")


@functools.partial(jax.jit, static_argnames=OPTIONS)
def _refine_batch(
    logits: Array,
    image: Array,
    mask: Array | None,
    kernels: tuple[Kernel, ...],
    corners: Sorted | None,
    *,
    num_iterations: int,
    normalization: str,
    filter: str,
    spatial_filter: str,
    capacities: tuple[int, ...],
) -> tuple[Array, Array]:
    """Refines an image or a batch; returns numbers of vertices too, int32 [] or [B]."""
    image = lax.stop_gradient(image)
    values = lax.stop_gradient(batches.feature_values(kernels))

    def one(inputs: tuple) -> tuple[Array, Array]:
        logits, image, mask, values, corners = inputs
        return _refine_image(
            logits,
            image,
            mask,
            batches.with_features(kernels, values),
            corners,
            num_iterations=num_iterations,
            normalization=normalization,
            filter=filter,
            spatial_filter=spatial_filter,
            capacities=capacities,
        )

    inputs = (logits.astype(jnp.float32), image, mask, values, corners)
    # A batched switch would compute all capacities.
    return batches.each(one, inputs, batched=logits.ndim == 4, together=len(capacities) == 1)


def _refine_image(
    logits: Array,
    image: Array,
    mask: Array | None,
    kernels: tuple[Kernel, ...],
    sorted_corners: Sorted | None,
    *,
    num_iterations: int,
    normalization: str,
    filter: str,
    spatial_filter: str,
    capacities: tuple[int, ...],
) -> tuple[Array, Array]:
    """Refines logits [H, W, C]; returns the largest number of vertices of a lattice, int32 []."""
    alive = runtime_true(logits)
    logits, unknown = fence(_settle, alive, logits)
    if num_iterations == 0:
        return jnp.where(unknown, np.float32(np.nan), logits), jnp.int32(0)
    classes = logits.shape[-1]
    wide = _row_width(classes)
    rows = logits.reshape(-1, classes)
    rows = jnp.pad(rows, ((0, 0), (0, wide - classes)), constant_values=EMPTY)
    mu = [_widen(kernel.weight, wide) for kernel in kernels]
    corners, count = [], jnp.int32(0)
    if filter == "lattice":
        corners, count = sorted_corners or sort(image, mask, kernels)

    create = functools.partial(
        operators.create,
        kernels,
        image,
        as_floats(mask),
        corners,
        alive,
        normalization=normalization,
        filter=filter,
        spatial_filter=spatial_filter,
    )

    def run(capacity: int) -> Array:
        return algorithm_1(rows, create(capacity=capacity), mu, num_iterations)

    refined = choose(run, capacities, count)
    refined = refined[:, :classes].reshape(logits.shape)
    return jnp.where(unknown, np.float32(np.nan), refined), count


def _settle(logits: Array) -> tuple[Array, Array]:
    """Replaces what is not finite, float32 [H, W, C], so that it cannot spread to other pixels.

    Returns:
      The logits: where some are +inf, these become 0 and the others -inf; where all are -inf, or
      one is NaN, all become 0. And bool [H, W, 1]: where one is NaN.
    """
    largest = logits.max(-1, keepdims=True)
    certain = jnp.where(logits == np.inf, np.float32(0), np.float32(-np.inf))
    settled = jnp.where(largest == np.inf, certain, logits)
    return jnp.where(largest > -np.inf, settled, np.float32(0)), jnp.isnan(largest)


def _row_width(num_classes: int) -> int:
    """Classes in a row of values: rows that are multiples of eight numbers are read as vectors."""
    if num_classes <= 8:
        return num_classes
    return -(-num_classes // 8) * 8


def _widen(weight: Array, width: int) -> Array:
    weight = jnp.asarray(weight, jnp.float32)
    return lax.pad(weight, np.float32(0), [(0, width - size, 0) for size in weight.shape])
