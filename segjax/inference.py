"""Images in, label maps out: network, protocol and CRF as pure functions to be jitted whole."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import crf, protocols, tiles
from segjax.config import Config
from segjax.labelmaps import label_type
from segjax.protocols import Protocol

Size = tuple[int, int]  # height, width in pixels
Kernels = tuple[crf.Kernel, ...]

# The CRF of the network's paper, where the protocol names none.
CRFS = {
    "DeepLabV1": "deeplab_v1_largefov",
    "DeepLabV2VGG": "deeplab_v2_vgg16",
}
DEFAULT_CRF = "deeplab_v2_resnet101"


def segment(
    variables: dict[str, Any],
    image: jax.Array,
    size: jax.Array,
    *,
    config: Config,
    protocol: Protocol,
    kernels: Kernels = (),
    probs: bool = False,
    capacity: int | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Images in, label maps out, network and CRF in one function to jit.

    Args:
      variables: "params" and "batch_stats".
      image: uint8 [B, H, W, 3], filled up at the bottom and on the right with the mean colour.
      size: int32 [B, 2], height and width of each image without the filling.
      config: of the run.
      protocol: one of `protocols.PROTOCOLS`.
      kernels: of the CRF that refines the scores at the image's resolution; none for no CRF.
      probs: whether to return the probabilities too.
      capacity: of the CRF's lattice, from `segjax.crf.plan`; None holds every one that may be
        needed.

    Returns:
      Labels uint8 (beyond 255 classes uint16) [B, H, W], and probabilities float32 [B, H, W, C] or
      None. Beyond an image's size both are meaningless.
    """
    scores = _scores(variables, image, size, config, protocol, kernels, capacity)
    labels = scores.argmax(-1).astype(label_type(config.model.num_classes))
    return labels, jax.nn.softmax(scores) if probs else None


def segment_tile(
    variables: dict[str, Any],
    image: jax.Array,
    size: jax.Array,
    *,
    carry: tiles.Carry,
    place: jax.Array,
    config: Config,
    protocol: Protocol,
    kernels: Kernels = (),
    probs: bool,
    capacity: int | None = None,
) -> tuple[jax.Array, tiles.Carry]:
    """Segments one tile, uint8 [tile, tile, 3], and blends it with its neighbours.

    Args:
      variables: as in `segment`.
      image: as in `segment`, without the first axis.
      size: as in `segment`, int32 [2].
      carry: of `tiles.blend`.
      place: int32 [2], number of the tile's row and column.
      config: as in `segment`.
      protocol: as in `segment`.
      kernels: as in `segment`.
      probs: return probabilities in place of labels.
      capacity: as in `segment`.

    Returns:
      The finished block, labels [step, step] or probabilities [step, step, C], and the carry.
    """
    scores = _scores(variables, image[None], size[None], config, protocol, kernels, capacity)
    soft = jax.nn.softmax(scores)
    block, carry = tiles.blend(soft[0], carry, place[0], place[1])
    if not probs:
        block = block.argmax(-1).astype(label_type(config.model.num_classes))
    return block, carry


def refine(
    scores: jax.Array,
    image: jax.Array,
    size: jax.Array,
    kernels: Kernels,
    *,
    capacity: int | None = None,
) -> jax.Array:
    """Refines the scores of images on a canvas by a fully connected CRF.

    Args:
      scores: of `protocols.scores`, float32 [B, H, W, C].
      image: uint8 [B, H, W, 3], filled up at the bottom and on the right. Filling takes no part.
      size: int32 [B, 2], height and width of each image without the filling.
      kernels: a value of `segjax.crf.PRESETS`, or your own.
      capacity: as for `segjax.crf.mean_field`.

    Returns:
      float32 [B, H, W, C], whose softmax is the refined probabilities.
    """
    mask = on_image(size, image.shape[1:3])
    return crf.refine_logits(scores, image, kernels, mask=mask, capacity=capacity)


def on_image(size: jax.Array, canvas: Size) -> jax.Array:
    """Returns bool [B, *canvas]: true on the images, of sizes int32 [B, 2], of a canvas."""
    rows = jnp.arange(canvas[0])[None, :, None] < size[:, 0, None, None]
    return rows & (jnp.arange(canvas[1])[None, None] < size[:, 1, None, None])


def crf_kernels(choice: bool | str | Kernels, protocol: Protocol, model: Any) -> Kernels:
    """Returns the kernels that an option `crf` means, none for False.

    Raises:
      ValueError: there is no preset of that name.
    """
    if choice is True:
        choice = protocol.crf or CRFS.get(type(model).__name__, DEFAULT_CRF)
    if isinstance(choice, str):
        if choice not in crf.PRESETS:
            raise ValueError(f"crf={choice!r}; accepted are {', '.join(crf.PRESETS)}")
        return crf.PRESETS[choice]
    return tuple(choice or ())


def capacity_of(batch: np.ndarray, size: np.ndarray, kernels: Kernels) -> int | None:
    """Returns the capacity that the lattices of all images of a batch fit in; None without CRF."""
    if not kernels:
        return None
    masks = np.asarray(on_image(size, batch.shape[1:3]))
    return max(crf.plan(i, kernels, mask=m) for i, m in zip(batch, masks, strict=True))


def _scores(
    variables: dict[str, Any],
    image: jax.Array,
    size: jax.Array,
    config: Config,
    protocol: Protocol,
    kernels: Kernels,
    capacity: int | None,
) -> jax.Array:
    model = protocols.adapt(config.model, protocol)
    scores = protocols.scores(
        protocols.network(model, variables, config.input),
        image.astype(jnp.float32),
        size,
        protocol=protocol,
        fill=config.input.mean,
        align_corners=config.loss.align_corners,
    )
    return refine(scores, image, size, kernels, capacity=capacity) if kernels else scores
