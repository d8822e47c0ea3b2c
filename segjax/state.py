"""The state of a training run, and the network as a function of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from segjax import crf_rnn, optim
from segjax.config import CRF, Config, Input

FROZEN_NORM = r"(^|/)bn[^/]*/"  # the affine parameters of BatchNorm layers


@flax.struct.dataclass
class TrainState:
    """All that training changes, a frozen pytree."""

    step: jax.Array  # int32 [], batches seen
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate: their moving average where one is kept."""
        averaged = optim.averaged_params(self.opt_state)
        return self.params if averaged is None else averaged


def init_variables(
    model: nn.Module, key: jax.Array, size: tuple[int, int], crf: CRF | None = None
) -> dict[str, Any]:
    """Returns the variables of a network for RGB images of a size, "params" and "batch_stats".

    Where a CRF is learnt with the network, "params" holds its parameters as "crf".
    """
    image = jnp.zeros((1, *size, 3), jnp.float32)
    variables = jax.jit(lambda key: model.init({"params": key}, image, train=False))(key)
    params = variables["params"]
    if crf is not None and crf.learn:
        params = {**params, "crf": crf_rnn.init(crf, model.num_classes)}
    return {"params": params, "batch_stats": variables.get("batch_stats", {})}


def transformation(config: Config, params: Any) -> optax.GradientTransformation:
    """Returns the optimiser of a run; frozen BatchNorm layers keep their affine parameters."""
    norm = getattr(config.model, "norm", None)
    frozen = (FROZEN_NORM,) if norm is not None and norm.frozen else ()
    return optim.make(config.optim, params, steps=config.train.steps, frozen=frozen)


def create(variables: dict[str, Any], tx: optax.GradientTransformation) -> TrainState:
    """Returns the state at step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
    )


def forward(
    model: nn.Module,
    variables: Mapping[str, Any],
    image: jax.Array,
    input: Input,
    key: jax.Array | None = None,
) -> tuple[dict[str, jax.Array], Any]:
    """Runs a network on images as they come.

    Args:
      model: a module of segjax.models.
      variables: its "params" and "batch_stats".
      image: uint8 or float [B, H, W, 3], RGB in 0..255.
      input: how images are normalised for this network.
      key: of dropout; with a key the network is in training mode.

    Returns:
      Its outputs by name, "logits" [B, h, w, C] among them, and the new BatchNorm statistics.
    """
    image = normalize(image, input)
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    if key is None:
        return model.apply(variables, image, train=False), variables["batch_stats"]
    outputs, changed = model.apply(
        variables, image, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    return outputs, changed.get("batch_stats", variables["batch_stats"])


def normalize(image: jax.Array, input: Input) -> jax.Array:
    """Returns what a network is fed, `(image - mean) / std`, float32 of the same shape.

    Args:
      image: RGB in 0..255, [..., 3].
      input: mean and standard deviation; with `bgr` the channels come out in that order.
    """
    last = (1,) * (image.ndim - 1) + (3,)
    mean, std = (jnp.asarray(v, jnp.float32).reshape(last) for v in (input.mean, input.std))
    image = (image.astype(jnp.float32) - mean) / std
    return image[..., ::-1] if input.bgr else image


def with_norm(model: nn.Module, **changes: Any) -> nn.Module:
    """Returns the network with fields of its `norm` changed; one without BatchNorm stays."""
    if not hasattr(model, "norm"):
        return model
    return model.clone(norm=dataclasses.replace(model.norm, **changes))
