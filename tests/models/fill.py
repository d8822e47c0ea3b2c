"""Variables of a network without compiling its initialiser."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def random_variables(net: nn.Module, image: jax.Array) -> dict[str, Any]:
    """Returns He-normal kernels, and biases, scales and statistics that a fresh network has not."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    ranges = {"bias": (-0.2, 0.2), "mean": (-0.2, 0.2), "scale": (0.6, 1.4), "var": (0.6, 1.4)}

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            value = rng.standard_normal(leaf.shape) * np.sqrt(2 / fan_in)
        else:
            value = rng.uniform(*ranges[name], leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    return jax.tree.map_with_path(fill, shapes)
