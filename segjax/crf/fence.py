"""Edges that a compiler may not fuse across.

A gather whose result is read more than once, or a gather of a gather, must not be fused with what
follows: the compiler for the CPU computes the inner one again for every element of the outer one,
or falls back to a serial loop, ten to a hundred times slower. `lax.optimization_barrier` is gone
there before fusion happens; a conditional, on a value that only the running program knows, is not.
Where the barrier works (GPU, TPU) it is used, since a conditional would wait for the host.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

UNUSED_NAN = 0x7FA5A5A5  # a signalling not-a-number, which no arithmetic returns


def runtime_true(x: Array) -> Array:
    """Returns a true bool [] that a compiler cannot know to be true.

    Args:
      x: float32 of any shape, data of the running program (not a constant).
    """
    return lax.bitcast_convert_type(x.reshape(-1)[0], jnp.int32) != UNUSED_NAN


def fence(function: Callable, alive: Array, *args: Array) -> Array | tuple:
    """Returns `function(*args)`, compiled by itself.

    Args:
      function: pure function of arrays; returns an array or a tuple of arrays.
      alive: bool [], from `runtime_true`.
      *args: arrays, or pytrees of arrays.
    """

    function = jax.jit(function, inline=True)  # traced once for all three uses

    def conditional(alive: Array, *args: Array) -> Array | tuple:
        out = jax.eval_shape(function, *args)

        def nothing(*_: Array) -> Array | tuple:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), out)

        return lax.cond(alive, function, nothing, *args)

    def barrier(alive: Array, *args: Array) -> Array | tuple:
        del alive
        return lax.optimization_barrier(function(*args))

    return lax.platform_dependent(alive, *args, cpu=conditional, default=barrier)
