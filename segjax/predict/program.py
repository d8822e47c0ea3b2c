"""Images in, label maps out: network, protocol and CRF as pure functions to be jitted whole."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import crf
from segjax import crf_rnn as refinement
from segjax.config import Config
from segjax.crf_rnn import Kernels
from segjax.predict import protocols, tiles
from segjax.predict.prediction import label_type
from segjax.predict.protocols import Protocol

Size = tuple[int, int]  # height, width in pixels

# The CRF of the network's paper, where the protocol names none.
CRFS = {
    "DeepLabV1": "deeplab_v1_largefov",
    "DeepLabV2VGG": "deeplab_v2_vgg16",
}
DEFAULT_CRF = "deeplab_v2_resnet101"

TUNED = "crf.json"  # in the folder of a run
LETTERS = ("w1", "alpha", "beta", "w2", "gamma")  # in it; arguments of crf.deeplab_kernels


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


def crf_kernels(
    choice: bool | str | Kernels | None,
    protocol: Protocol,
    model: Any,
    own: Mapping[str, Kernels] | None = None,
) -> Kernels:
    """Returns the kernels that an option `crf` means.

    Args:
      choice: None for the CRF that was learnt with the network, if one was; False for none; True
        for the first of these that there is: one of the run's own, the protocol's, that of the
        network's paper, DeepLab v2's; the name of a preset or of one of the run's own; or kernels.
      protocol: of the prediction.
      model: the network.
      own: of the run, by name: "learnt" with the network, "tuned" by `segjax tune-crf`.

    Raises:
      ValueError: there is none of that name.
    """
    own = own or {}
    if choice is None:
        return own.get("learnt", ())
    if choice is True:
        paper = protocol.crf or CRFS.get(type(model).__name__, DEFAULT_CRF)
        choice = next(iter(own), paper)
    if isinstance(choice, str):
        known = {**own, **crf.PRESETS}
        if choice not in known:
            hints = {
                "tuned": "segjax tune-crf makes 'tuned'",
                "learnt": "'learnt' is of a run with --config.crf.learn=True",
            }
            hint = f"; {hints[choice]}" if choice in hints else ""
            raise ValueError(f"crf={choice!r}; accepted are {', '.join(known)}{hint}")
        return known[choice]
    return tuple(choice or ())


def own_crfs(
    config: Config, variables: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, Kernels]:
    """Returns the CRFs of a run: "learnt" with the network, "tuned" by `segjax tune-crf`.

    Args:
      config: of the run.
      variables: of the run.
      folder: of the run, or of weights; a result of tuning is its crf.json.

    Raises:
      ValueError: crf.json is damaged.
    """
    own: dict[str, Kernels] = {}
    if config.crf.learn:
        own["learnt"] = refinement.kernels(variables["params"]["crf"], config.crf)
    path = folder / TUNED
    if path.exists():
        try:
            point = json.loads(path.read_text())
            own["tuned"] = crf.deeplab_kernels(*(float(point[letter]) for letter in LETTERS))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no result of segjax tune-crf: {error!r}; remove it or tune again"
            ) from error
    return own


def capacity_of(batch: np.ndarray, size: np.ndarray, kernels: Kernels) -> int | None:
    """Returns the capacity that the lattices of all images of a batch fit in; None without CRF.

    Each capacity makes a program that holds the network too: few of them.
    """
    if not kernels:
        return None
    masks = np.asarray(refinement.on_image(size, batch.shape[1:3]))
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
    return refinement.refine(found, image, size, kernels, config.crf, capacity=capacity)
