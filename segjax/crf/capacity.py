"""How many vertices a lattice provides for: counted before, planned, or chosen by the program."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from segjax.crf import batches, checks, vertices
from segjax.crf.kernels import Kernel, Spatial, extent, features

Sorted = tuple[list[vertices.Corners], Array]  # of each lattice; vertices needed, int32

GROWTH = 2**0.25  # of the capacities that are planned: little is provided for in vain
SMALL = 4096  # pixels up to which a program is faster than three more are compiled


def plan(
    image: Array,
    kernels: tuple[Kernel, ...],
    *,
    mask: Array | None = None,
    growth: float = GROWTH,
) -> int:
    """Counts the lattice vertices of an image; returns the capacity to pass to `mean_field`.

    Each capacity makes a program of its own for each size of image, so capacities are rounded up
    to a list: an eighth of the number of pixels, and that times powers of `growth`. The time of a
    program grows with its capacity.

    For a data set of many sizes, pad the images to one size, give `mask` in both functions, and
    take `growth=2`: then 7 programs at most serve all images. For programs whose capacity has to
    be known beforehand, plan for a typical image and leave a margin.

    Args:
      image: [H, W, 3], or [B, H, W, 3] for what all of them need; 0..255.
      kernels: as for `mean_field`; their weights do not matter.
      mask: bool [H, W] or [B, H, W], as for `mean_field`.
      growth: ratio of a capacity to the one before it, above 1. With the default, 2 ** 0.25, a
        program provides for at most 19 % more vertices than its image needs, and one size has up
        to 24 programs; with 2, for twice as many at most, and up to 7 programs.

    Returns:
      Number of vertices.

    Raises:
      ValueError: shapes or dtypes do not fit, or `growth` is not above 1. Cannot be called inside a
        compiled program.
    """
    if not 1 < growth < math.inf:
        raise ValueError(f"growth is {growth}; it is above 1, for example 2")
    image = checks.as_array("image", image)
    mask = None if mask is None else checks.as_array("mask", mask)
    checks.image_form(image)
    checks.mask_form(mask, image.shape[:-1])
    checks.kernel_forms(kernels, image.shape[:-1])
    height, width = image.shape[-3:-1]
    checks.keys_fit(kernels, height, width)
    needed = int(count(image, mask, tuple(kernels)))
    return bucket(needed, height * width, dimension(kernels, height, width), growth)


def dimension(kernels: Sequence[Kernel], height: int, width: int) -> int:
    """The largest number of features of a kernel that needs a lattice of the image; 0 for none."""
    boxes = (extent(k, height, width) for k in kernels if not isinstance(k, Spatial))
    return max(map(len, boxes), default=0)


def bucket(count: int, points: int, dimension: int, growth: float = GROWTH) -> int:
    """The smallest capacity for a number of vertices; the largest, if none is large enough.

    Capacities are an eighth of the points, times a power of `growth`; the largest always suffices.
    """
    powers = math.ceil(math.log(max(1.0, 8 * count / points), growth) - 1e-9)
    return min(math.ceil(points / 8 * growth**powers), (dimension + 1) * points)


def ladder(points: int, dimension: int) -> tuple[int, ...]:
    """Capacities that one program holds where none is given: the last suffices for any image, and
    is alone where that is small."""
    shares = (0.2, 1.0, 2.0) if points > SMALL else ()
    return (*(math.ceil(share * points) for share in shares), (dimension + 1) * points)


def provide(
    image: Array,
    mask: Array | None,
    kernels: tuple[Kernel, ...],
    capacity: int | None,
    *,
    traced: bool,
) -> tuple[tuple[int, ...], Sorted | None]:
    """Decides what the program for an image or a batch provides for.

    Args:
      image: [H, W, 3] or [B, H, W, 3], 0..255.
      mask: as for `mean_field`, and the next two.
      kernels: the kernels.
      capacity: the number that was asked for; None for any number that may be needed.
      traced: whether this is inside a compiled program, where vertices cannot be counted.

    Returns:
      The capacities that the program chooses from, and what was sorted to find them.
    """
    height, width = image.shape[-3:-1]
    features = dimension(kernels, height, width)
    if features == 0:
        return (0,), None
    if capacity is not None:
        return (int(capacity),), None
    if traced:
        return ladder(height * width, features), None
    corners = sort_batch(image, mask, kernels)
    return (bucket(int(np.max(corners[1])), height * width, features),), corners


def choose(function: Callable[[int], Array], capacities: tuple[int, ...], count: Array) -> Array:
    """Returns the function of the smallest capacity that holds `count` vertices, int32 [].

    NaN where none does: the tables would mix unrelated pixels, which must not be missed.
    """
    branch = sum((count > c).astype(jnp.int32) for c in capacities[:-1])
    branches = [functools.partial(function, c) for c in capacities]
    result = lax.switch(branch, branches) if len(branches) > 1 else branches[0]()
    return jnp.where(count <= capacities[-1], result, np.float32(np.nan))


def as_floats(mask: Array | None) -> Array | None:
    """The mask [H, W] of an image as float32 [H W], 1 for the pixels that exist."""
    return None if mask is None else mask.reshape(-1).astype(jnp.float32)


def sort(image: Array, mask: Array | None, kernels: tuple[Kernel, ...]) -> Sorted:
    """Sorts the corners of each lattice of an image; the largest number of vertices, int32 []."""
    corners = [
        vertices.sort_corners(features(k, image, as_floats(mask)), extent(k, *image.shape[:2]))
        for k in kernels
        if not isinstance(k, Spatial)
    ]
    return corners, functools.reduce(jnp.maximum, (c.count for c in corners), jnp.int32(0))


@jax.jit
def sort_batch(image: Array, mask: Array | None, kernels: tuple[Kernel, ...]) -> Sorted:
    """Sorts the corners for an image or a batch; numbers of vertices, int32 [] or [B]."""

    def one(inputs: tuple) -> Sorted:
        image, mask, values = inputs
        return sort(image, mask, batches.with_features(kernels, values))

    inputs = (image, mask, batches.feature_values(kernels))
    return batches.each(one, inputs, batched=image.ndim == 4, together=True)


@jax.jit
def count(image: Array, mask: Array | None, kernels: tuple[Kernel, ...]) -> Array:
    """The largest number of vertices of a lattice of an image or of a batch: int32 []."""
    return sort_batch(image, mask, kernels)[1].max()
