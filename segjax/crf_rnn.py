"""The fully connected CRF as a layer after a network: what is learnt of it, and how it is applied.

Zheng et al., "Conditional Random Fields as Recurrent Neural Networks", 2015. Mean field is a layer
like any other: its gradient trains the network and the CRF together. As in the paper, these are
learnt: the weight of each kernel for each class, and the compatibility of each pair of classes. The
standard deviations of the kernels are fixed.

The compatibility starts as a Potts model: 1 for two different classes, 0 on the diagonal. The
authors' program starts with minus the identity. The two differ by the same number for all classes
of a pixel, so the result is the same.
"""

from typing import Any

import jax
import jax.numpy as jnp

from segjax import crf, ops
from segjax.config import CRF

Kernels = tuple[crf.Kernel, ...]


def init(config: CRF, num_classes: int) -> dict[str, jax.Array]:
    """Returns the parameters that are learnt, with their first values.

    Args:
      config: holds the weights that the two kernels start with.
      num_classes: C.

    Returns:
      float32 arrays: "bilateral" [C] and "spatial" [C], the weights of the two kernels, and
      "compatibility" [C, C], the penalty of the row's class at one pixel with the column's class at
      another.
    """
    return {
        "bilateral": jnp.full(num_classes, config.w1, jnp.float32),
        "spatial": jnp.full(num_classes, config.w2, jnp.float32),
        "compatibility": 1 - jnp.eye(num_classes, dtype=jnp.float32),
    }


def kernels(params: dict[str, jax.Array], config: CRF) -> Kernels:
    """Returns the kernels that have learnt weights.

    Args:
      params: the parameters, as `init` returns them.
      config: holds the standard deviations.
    """
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
    """Refines the scores of a network with a fully connected CRF, which ignores the padding.

    Args:
      scores: logits, or logarithms of probabilities, float32 [B, H, W, C].
      image: uint8 or floating point in 0..255, [B, H, W, 3]; RGB, not normalised.
      size: int32 [B, 2], height and width of each image without its padding, which is at the bottom
        and on the right; None where no image is padded.
      kernels: a value of `segjax.crf.PRESETS`, the result of `kernels`, or your own.
      config: the run's settings of the CRF: normalisation and number of iterations.
      num_iterations: of mean field; None for `config.test_iterations`.
      capacity: as for `segjax.crf.mean_field`. None compiles one program for every image of this
        size; a number from `segjax.crf.plan` compiles faster, once for each number.

    Returns:
      float32 [B, H, W, C]; its softmax is the refined probabilities.
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
    """Refines a network's logits with the CRF that is trained with it.

    What fills an image up to the canvas sends and receives messages here, since augmentation moves
    it anywhere; evaluation and prediction leave it out.

    Args:
      outputs: the outputs of the network.
      image: float32 [B, H, W, 3] in 0..255: what the network saw, before normalisation.
      params: the parameters, as `init` returns them.
      config: the run's settings of the CRF.
      align_corners: how the logits are upsampled, see `segjax.ops.resize`.

    Returns:
      The outputs, where "logits" are now refined and as large as the image, and "unary" are the
      network's own logits.
    """
    unary = outputs["logits"].astype(jnp.float32)
    size = image.shape[1:3]
    scores = ops.resize(unary, size, align_corners=align_corners, antialias=False)
    refined = refine(
        scores, image, None, kernels(params, config), config, num_iterations=config.train_iterations
    )
    return {**outputs, "logits": refined, "unary": unary}


def on_image(size: jax.Array, canvas: tuple[int, int]) -> jax.Array:
    """Returns which pixels of a canvas are an image and not padding.

    Args:
      size: int32 [B, 2], height and width of each image; it lies at the top on the left.
      canvas: H, W.

    Returns:
      bool [B, H, W].
    """
    rows = jnp.arange(canvas[0])[None, :, None] < size[:, 0, None, None]
    return rows & (jnp.arange(canvas[1])[None, None] < size[:, 1, None, None])
