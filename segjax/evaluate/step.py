"""The one evaluation step: of training, of `segjax eval` and of every protocol."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from segjax import crf_rnn, losses, metrics, rows
from segjax.config import Config
from segjax.crf_rnn import Kernels
from segjax.predict import program
from segjax.predict.protocols import Protocol
from segjax.steps import AXIS

# image: uint8 [B, H, W, 3], label: uint8 [B, H, W], size: int32 [B, 2]
Batch = dict[str, jax.Array]


class Scored(NamedTuple):
    """What one version of the scores comes to.

    Attributes:
      counts: confusion matrices summed over devices, int32 [C, C] by name: "all", and "trimap_<w>"
        by band width in pixels.
      loss: sum of the cross entropies at the labels' size, and the number of pixels in it, summed
        over devices, float32 [2].
      labels: this device's label maps, uint8 (beyond 255 classes uint16) [B, H, W].
    """

    counts: Any
    loss: Any
    labels: Any


class Outcome(NamedTuple):
    """The scores of the network, and with a CRF those after it, else None."""

    network: Scored
    crf: Scored | None = None


def eval_step(
    variables: dict[str, Any],
    batch: Batch,
    *,
    config: Config,
    protocol: Protocol,
    kernels: Kernels | None = None,
    class_weights: jax.Array | None = None,
) -> Outcome:
    """Scores a batch, to be mapped over the devices by `steps.parallel`.

    Args:
      variables: "params" and "batch_stats".
      batch: this device's images and labels on the canvas; "size" is height and width of each
        image without the filling, 0 for an image that fills up the last batch.
      config: of the run.
      protocol: how images become scores.
      kernels: of the CRF that refines the scores; () for none, None for the one that was learnt
        with the network, where one was.
      class_weights: float32 [C] of the loss.
    """
    label = batch["label"].astype(jnp.int32)
    canvas = jnp.array(label.shape[1:], jnp.int32)
    size = jnp.where((batch["size"] == 0).any(-1, keepdims=True), canvas, batch["size"])
    image, label = (rows.split(x, config.train.rows) for x in (batch["image"], label))
    scores = program.scores(variables, image, size, config=config, protocol=protocol)
    if kernels is None and config.crf.learn:
        kernels = crf_rnn.kernels(variables["params"]["crf"], config.crf)

    def scored(scores: jax.Array) -> Scored:
        prediction = jnp.argmax(scores, axis=-1)
        loss = jnp.stack(losses.cross_entropy(scores, label, class_weights=class_weights))
        return Scored(
            jax.lax.psum(_counts(label, prediction, size, config), AXIS),
            jax.lax.psum(loss, AXIS),
            prediction.astype(program.label_type(config.model.num_classes)),
        )

    if not kernels:
        return Outcome(scored(scores))
    refined = crf_rnn.refine(scores, batch["image"], size, kernels, config.crf)
    return Outcome(scored(scores), scored(refined))


def _counts(
    label: jax.Array, prediction: jax.Array, size: jax.Array, config: Config
) -> dict[str, jax.Array]:
    """Counts the pixels of label maps int32 [B, H, W] by class, over all of them and in bands."""
    count = functools.partial(
        metrics.confusion_matrix, prediction=prediction, num_classes=config.model.num_classes
    )
    counts = {"all": count(label)}
    for width in config.eval.trimap_widths:
        counts[f"trimap_{width}"] = count(metrics.trimap(label, width, size=size))
    return counts


def out_axes(refined: bool) -> Outcome:
    """Returns `out_axes` of `steps.parallel` for `eval_step`, with a CRF or without."""
    version = Scored(counts=None, loss=None, labels=0)
    return Outcome(version, version if refined else None)
