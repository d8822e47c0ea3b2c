"""Images in, label maps out: network, protocol and CRF as pure functions to be jitted whole."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import crf, crf_rnn
from segjax.config import Config
from segjax.crf_rnn import Kernels
from segjax.predict import protocols, tiles
from segjax.predict.protocols import Protocol

Size = tuple[int, int]  # height, width in pixels


def label_type(num_classes: int) -> type[np.unsignedinteger]:
    """Returns the type of the ids of so many classes: uint8, beyond 255 classes uint16."""
    return np.uint8 if num_classes <= 255 else np.uint16


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
    refined = _refined(variables, image, size, config, protocol, kernels, capacity)
    labels = refined.argmax(-1).astype(label_type(config.model.num_classes))
    return labels, jax.nn.softmax(refined) if probs else None


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
    refined = _refined(variables, image[None], size[None], config, protocol, kernels, capacity)
    soft = jax.nn.softmax(refined)
    block, carry = tiles.blend(soft[0], carry, place[0], place[1])
    if not probs:
        block = block.argmax(-1).astype(label_type(config.model.num_classes))
    return block, carry


def scores(
    variables: dict[str, Any],
    image: jax.Array,
    size: jax.Array,
    *,
    config: Config,
    protocol: Protocol,
) -> jax.Array:
    """Returns what a network says about images by a protocol, float32 [B, H, W, C].

    Arguments as in `segment`; the scores are those of `protocols.scores`.
    """
    return protocols.scores(
        protocols.network(protocols.adapt(config.model, protocol), variables, config.input),
        image.astype(jnp.float32),
        size,
        protocol=protocol,
        fill=config.input.mean,
        align_corners=config.loss.align_corners,
    )


def capacity_of(batch: np.ndarray, size: np.ndarray, kernels: Kernels) -> int | None:
    """Returns the capacity that the lattices of all images of a batch fit in; None without CRF.

    Each capacity makes a program that holds the network too: few of them.
    """
    if not kernels:
        return None
    masks = np.asarray(crf_rnn.on_image(size, batch.shape[1:3]))
    return max(crf.plan(i, kernels, mask=m, growth=2) for i, m in zip(batch, masks, strict=True))


def _refined(
    variables: dict[str, Any],
    image: jax.Array,
    size: jax.Array,
    config: Config,
    protocol: Protocol,
    kernels: Kernels,
    capacity: int | None,
) -> jax.Array:
    found = scores(variables, image, size, config=config, protocol=protocol)
    if not kernels:
        return found
    return crf_rnn.refine(found, image, size, kernels, config.crf, capacity=capacity)
