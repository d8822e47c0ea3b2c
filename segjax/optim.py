"""Stochastic gradient descent as the papers run it, as one optax transformation."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from segjax import config


class AveragedState(NamedTuple):
    """Exponential moving average of the parameters."""

    averaged: optax.Params


def schedule(optim: config.Optim, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates made.

    "poly" is `lr * (1 - t / T) ** power` (DeepLab v2, section 4.2), never below `end_lr`; "step"
    multiplies by `step_factor` every `step_every` updates (DeepLab v1, section 4).

    Args:
      optim: the configuration; T is the number of updates, `steps // accumulate`.
      steps: batches of the whole run.

    Raises:
      ValueError: a field of `optim` is wrong.
    """
    config.check_optim(optim)
    updates = max(steps // optim.accumulate, 1)
    if optim.schedule == "poly":
        poly = optax.polynomial_schedule(optim.lr, 0.0, optim.power, updates)
        after = lambda t: jnp.maximum(poly(t), optim.end_lr)
    elif optim.schedule == "step":
        after = optax.exponential_decay(
            optim.lr, optim.step_every, optim.step_factor, staircase=True
        )
    else:
        after = optax.constant_schedule(optim.lr)
    if not optim.warmup:
        return after
    # The schedule keeps its own clock: warming up scales it rather than shifting it.
    return lambda t: after(t) * jnp.minimum((t + 1) / optim.warmup, 1.0)


def make(
    optim: config.Optim, params: optax.Params, *, steps: int, frozen: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """Returns the transformation of a run.

    In order: frozen parameters drop out, the gradient is clipped by its global norm, weight decay
    is added to it, it is scaled by the multiplier of its path, the momentum runs, and the schedule
    scales the result. Caffe (DeepLab v1, v2, SegNet) keeps the learning rate inside the momentum;
    the two differ only while the rate changes.

    Args:
      optim: the configuration. A path takes the first multiplier whose expression is found in it.
      params: the parameters, or their shapes; only the paths are used.
      steps: batches of the whole run.
      frozen: further regular expressions of paths that never change.

    Raises:
      ValueError: a regular expression finds no parameter, or a number is out of range.
    """
    config.check_optim(optim)
    freeze = (*optim.freeze, *frozen)
    for field, expressions in (
        ("optim.freeze", freeze),
        ("optim.no_decay", optim.no_decay),
        ("optim.lr_multipliers", optim.lr_multipliers),
    ):
        _find_all(field, expressions, params)

    # Masks are made from the tree at hand: where some parameters are frozen, they are not in it.
    steps_in_order = [
        optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity(),
        optax.add_decayed_weights(
            optim.weight_decay,
            lambda tree: by_path(tree, lambda path, _: not _any(optim.no_decay, path)),
        ),
        _multiply(optim.lr_multipliers) if optim.lr_multipliers else optax.identity(),
        optax.trace(optim.momentum, optim.nesterov) if optim.momentum else optax.identity(),
        optax.scale_by_learning_rate(schedule(optim, steps)),
    ]
    transform = optax.chain(*steps_in_order)
    if freeze:
        groups = by_path(params, lambda path, _: "frozen" if _any(freeze, path) else "trained")
        transform = optax.partition({"trained": transform, "frozen": optax.set_to_zero()}, groups)
    if optim.ema_decay:
        transform = optax.chain(transform, _average(optim.ema_decay))
    if optim.accumulate > 1:
        transform = _accumulate(transform, optim.accumulate)
    return transform


def averaged_params(opt_state: optax.OptState) -> optax.Params | None:
    """Returns the moving average of the parameters, None when the run keeps none."""
    return optax.tree.get(opt_state, "averaged")


def by_path(tree: optax.Params, f: Callable[[str, Any], Any]) -> optax.Params:
    """Maps `f("stage3/block2/conv1/kernel", leaf)` over a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: f(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), tree
    )


def _find_all(field: str, expressions: tuple[str, ...], params: optax.Params) -> None:
    paths = jax.tree.leaves(by_path(params, lambda path, _: path))
    for expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(
                f"{field}: {expression!r} is no regular expression: {error}"
            ) from error
        if not any(re.search(expression, path) for path in paths):
            shown = ", ".join(paths[:4])
            raise ValueError(
                f"{field}: {expression!r} is found in no parameter path; paths are {shown}, ..."
            )


def _any(expressions: tuple[str, ...], path: str) -> bool:
    return any(re.search(expression, path) for expression in expressions)


def _first(multipliers: dict[str, float], path: str) -> float:
    return next((f for expression, f in multipliers.items() if re.search(expression, path)), 1.0)


def _multiply(multipliers: dict[str, float]) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, _: by_path(updates, lambda path, u: u * _first(multipliers, path))
    )


def _accumulate(
    transform: optax.GradientTransformation, batches: int
) -> optax.GradientTransformation:
    several = optax.MultiSteps(transform, batches).gradient_transformation()

    def update(*args: Any) -> tuple[optax.Updates, optax.OptState]:
        # Its running mean divides float32 by int32, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return several.update(*args)

    return optax.GradientTransformation(several.init, update)


def _average(decay: float) -> optax.GradientTransformation:
    def init(params: optax.Params) -> AveragedState:
        return AveragedState(jax.tree.map(jnp.copy, params))

    def update(
        updates: optax.Updates, state: AveragedState, params: optax.Params
    ) -> tuple[optax.Updates, AveragedState]:
        mix = lambda a, p, u: decay * a + (1 - decay) * (p + u)
        return updates, AveragedState(jax.tree.map(mix, state.averaged, params, updates))

    return optax.GradientTransformation(init, update)
