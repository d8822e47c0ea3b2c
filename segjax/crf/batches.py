"""From functions of one image to batches of images."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array, lax

from segjax.crf.kernels import Features, Kernel


def feature_values(kernels: Sequence[Kernel]) -> list[Array]:
    """Returns the arrays of kernels that belong to images: those of every `Features`."""
    return [kernel.values for kernel in kernels if isinstance(kernel, Features)]


def with_features(kernels: Sequence[Kernel], values: Sequence[Array]) -> tuple[Kernel, ...]:
    """Returns the kernels with other arrays in place of those that `feature_values` returns."""
    remaining = iter(values)
    return tuple(
        dataclasses.replace(k, values=next(remaining)) if isinstance(k, Features) else k
        for k in kernels
    )


def each(function: Callable, inputs: tuple, *, batched: bool, together: bool) -> Any:
    """Applies a function of one image to each of a batch.

    On the CPU images follow one another: a batched gather is not a fast one there.

    Args:
      function: from a tuple of arrays, or pytrees of arrays, to arrays.
      inputs: the tuple, with a first axis of images everywhere if `batched`.
      batched: false for a single image.
      together: compute images at the same time where the device is not a CPU.
    """
    if not batched:
        return function(inputs)
    if jax.tree.leaves(inputs)[0].shape[0] == 1:
        outputs = function(jax.tree.map(lambda x: x[0], inputs))
        return jax.tree.map(lambda x: x[None], outputs)
    one_by_one = functools.partial(lax.map, function)
    default = jax.vmap(function) if together else one_by_one
    return lax.platform_dependent(inputs, cpu=one_by_one, default=default)
