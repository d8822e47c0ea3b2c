"""The fully connected CRF behind a network: its parameters where it is learnt, and its place.

Zheng et al., "Conditional Random Fields as Recurrent Neural Networks", 2015: mean field is a layer
like others, and network and CRF are trained end to end. Learnt are, as there, a weight of each
kernel for each class and the compatibility of each pair of classes; the widths of the kernels stay.

They start as a Potts model, ones off the diagonal. The authors' program starts with minus the
identity, which differs by a constant per pixel and so not at all.
"""

from typing import Any

import jax
import jax.numpy as jnp

from segjax import crf, ops
from segjax.config import CRF

Kernels = tuple[crf.Kernel, ...]


def init(config: CRF, num_classes: int) -> dict[str, jax.Array]:
    """Returns what is learnt of a CRF, at the start, float32.

    "bilateral" [C] and "spatial" [C], the weights of the two kernels, and "compatibility" [C, C],
    the penalty of a row's class beside a column's.
    """
    return {
        "bilateral": jnp.full(num_classes, config.w1, jnp.float32),
        "spatial": jnp.full(num_classes, config.w2, jnp.float32),
        "compatibility": 1 - jnp.eye(num_classes, dtype=jnp.float32),
    }


def kernels(params: dict[str, jax.Array], config: CRF) -> Kernels:
    """Returns the kernels of learnt parameters, those of `init`."""
    compatibility = params["compatibility"]
    return crf.deeplab_kernels(
        compatibility * params["bilateral"][None],
        config.alpha,
        config.beta,
        compatibility * params["spatial"][None],
        config.gamma,
    )


def refine(
    scores: jax.Array,
    image: jax.Array,
    size: jax.Array | None,
    kernels: Kernels,
    config: CRF,
    *,
    num_iterations: int | None = None,
    capacity: int | None = None,
) -> jax.Array:
    """Refines the scores of images on a canvas by a fully connected CRF.

    Args:
      scores: logits, or logarithms of probabilities, float32 [B, H, W, C].
      image: uint8 or floating point in 0..255, [B, H, W, 3]; RGB, not normalised.
      size: int32 [B, 2], height and width of each image without the filling at the bottom and on
        the right, which takes no part; None where there is none.
      kernels: a value of `segjax.crf.PRESETS`, of `kernels`, or your own.
      config: of the run; says how kernels are normalised.
      num_iterations: of mean field; `config.test_iterations` unless given.
      capacity: as for `segjax.crf.mean_field`.

    Returns:
      float32 [B, H, W, C], whose softmax is the refined probabilities.
    """
    return crf.refine_logits(
        scores,
        image,
        kernels,
        mask=None if size is None else on_image(size, image.shape[1:3]),
        num_iterations=config.test_iterations if num_iterations is None else num_iterations,
        normalization=config.normalization,
        capacity=capacity,
    )


def train_outputs(
    outputs: dict[str, jax.Array], image: jax.Array, params: Any, config: CRF, align_corners: bool
) -> dict[str, jax.Array]:
    """Puts the CRF behind a network's outputs for a training step.

    Args:
      outputs: of the network.
      image: float32 [B, H, W, 3] in 0..255, as the network saw it but not normalised.
      params: of `init`.
      config: of the run.
      align_corners: how logits are upsampled.

    Returns:
      The outputs with "logits" refined, at the size of the image; the network's own are "unary".
    """
    unary = outputs["logits"].astype(jnp.float32)
    size = image.shape[1:3]
    scores = ops.resize(unary, size, align_corners=align_corners, antialias=False)
    refined = refine(
        scores, image, None, kernels(params, config), config, num_iterations=config.train_iterations
    )
    return {**outputs, "logits": refined, "unary": unary}


def on_image(size: jax.Array, canvas: tuple[int, int]) -> jax.Array:
    """Returns bool [B, *canvas]: true on the images, of sizes int32 [B, 2], of a canvas."""
    rows = jnp.arange(canvas[0])[None, :, None] < size[:, 0, None, None]
    return rows & (jnp.arange(canvas[1])[None, None] < size[:, 1, None, None])
