"""Parts that several networks share."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(unsafe_hash=True)
class Norm:
    """How a network's BatchNorm layers behave."""

    decay: float = 0.9  # of the running statistics: Flax's momentum, one minus torch's
    epsilon: float = 1e-5
    frozen: bool = False  # running statistics are used, and they and the affine stay as they are
    axis_name: str | None = None  # mapped axis over which batch statistics are shared


def batch_norm(norm: Norm, train: bool, dtype: str, name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the BatchNorm layer that `norm` describes, with statistics and affine in float32.

    `name` starts with "bn": the optimiser finds the affine parameters to freeze by that.
    """
    layer = nn.BatchNorm(
        use_running_average=norm.frozen or not train,
        momentum=norm.decay,
        epsilon=norm.epsilon,
        dtype=jnp.dtype(dtype),
        axis_name=None if norm.frozen else norm.axis_name,
        name=name,
    )
    # Flax subtracts the float32 mean from the input as it is: strict promotion wants one type.
    return lambda x: layer(x.astype(jnp.float32))
