"""Parts that several networks share."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import ops


@dataclasses.dataclass(unsafe_hash=True)
class Norm:
    """How a network's BatchNorm layers behave."""

    decay: float = 0.9  # of the running statistics: Flax's momentum, one minus torch's
    epsilon: float = 1e-5
    frozen: bool = False  # running statistics are used, and they and the affine stay as they are
    axis_name: str | None = None  # mapped axis over which batch statistics are shared


def batch_norm(
    norm: Norm, train: bool, dtype: str, name: str, shift: float = 0.0
) -> Callable[[jax.Array], jax.Array]:
    """Returns the BatchNorm layer that `norm` describes, with statistics and affine in float32.

    `name` starts with "bn": the optimiser finds the affine parameters to freeze by that. `shift` is
    the affine's at the start.
    """
    layer = nn.BatchNorm(
        use_running_average=norm.frozen or not train,
        momentum=norm.decay,
        epsilon=norm.epsilon,
        dtype=jnp.float32,
        bias_init=nn.initializers.constant(shift),
        axis_name=None if norm.frozen else norm.axis_name,
        name=name,
    )
    # Flax mixes types on its way to `dtype`, which strict promotion forbids: it sees float32 alone.
    return lambda x: layer(x.astype(jnp.float32)).astype(dtype)


class MaxUnpool(nn.Module):
    """`segjax.ops.max_unpool` as a layer, without parameters.

    Given the geometry of the pooling; windows that do not overlap take the fast form.

    >>> x = jnp.array([[1.0, 2.0, 5.0], [4.0, 3.0, 0.0]])[None, :, :, None]
    >>> values, indices = ops.max_pool_with_argmax(x, window=2, ceil_mode=True)
    >>> MaxUnpool(window=2).apply({}, values, indices, output_size=x.shape[1:3])[0, :, :, 0]
    Array([[0., 0., 5.],
           [4., 0., 0.]], dtype=float32)
    """

    window: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None  # that of the window if not given
    padding: int | tuple[int, int] = 0

    def __call__(self, x: jax.Array, indices: jax.Array, output_size: tuple[int, int]) -> jax.Array:
        return ops.max_unpool(
            x,
            indices,
            output_size,
            window=self.window,
            stride=self.stride,
            padding=self.padding,
        )
