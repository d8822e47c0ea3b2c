"""The papers' ways from an image to class scores: pure functions, to be jitted whole.

    network = protocols.network(config.model, variables, config.input)
    scores = protocols.scores(
        network, image, size, protocol=protocols.PROTOCOLS["pspnet"],
        fill=config.input.mean, align_corners=config.loss.align_corners,
    )
    label, probs = scores.argmax(-1), jax.nn.softmax(scores)

Images lie on a canvas, filled up at the bottom and on the right, so that a program is compiled per
canvas and not per size. Whole-image protocols work on the canvas, as the papers' do; windows are
laid over the image alone.
"""

import dataclasses
import fractions
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from segjax import ops, state
from segjax.config import Input
from segjax.models import deeplab_v2

# Images float32 [B, H, W, 3], RGB in 0..255, to logits float32 [B, h, w, C].
Network = Callable[[jax.Array], jax.Array]
Size = tuple[int, int]  # height, width in pixels
Colour = tuple[float, float, float]  # RGB in 0..255


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How an image becomes probabilities.

    Raises:
      ValueError: it has windows, `crop`, but no `base`.
    """

    scales: tuple[float, ...] = (1.0,)  # factors of the image's size
    flip: bool = False  # also see the image mirrored
    fuse: str = "mean"  # of the probabilities, or "max" of the logits, DeepLab v2's
    crop: int = 0  # pixels; side of the sliding windows, 0: the whole image at once
    base: int = 0  # pixels; the image's longer side at scale 1 under the windows
    output_stride: int = 0  # of networks with that field; 0: as trained
    crf: str = ""  # the preset of segjax.crf that belongs to it, "" for none

    def __post_init__(self) -> None:
        if self.crop and self.base < 1:
            raise ValueError(
                f"crop={self.crop} needs base, the length in pixels to which the longer side of "
                "the image is resized at scale 1"
            )
        if self.fuse not in ("mean", "max") or not self.scales:
            raise ValueError(
                f"fuse={self.fuse!r}, scales={self.scales}: fuse is 'mean' or 'max', of one "
                "scale or more"
            )
        if self.fuse == "max" and (self.flip or self.crop):
            raise ValueError(
                "fuse='max' is of whole images that are not mirrored; leave out flip and crop, or "
                "write fuse='mean'"
            )


MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

PROTOCOLS = {
    "whole": Protocol(),
    # SegNet: the tutorial's script test_segmentation_camvid.py, one pass at 360x480.
    "segnet": Protocol(),
    # DeepLab v1 (section 4): one pass, upsampled scores, CRF.
    "deeplab_v1": Protocol(crf="deeplab_v1_largefov"),
    # DeepLab v2 (section 4.1): three scales fused by maximum, no mirroring, CRF.
    "deeplab_v2": Protocol(scales=(1.0, 0.75, 0.5), fuse="max", crf="deeplab_v2_resnet101"),
    # Its network on VGG16 (Table 3): one pass, CRF.
    "deeplab_v2_vgg": Protocol(crf="deeplab_v2_vgg16"),
    # DeepLab v3 (Table 6): 77.21 at output stride 16, 78.51 at 8, 79.77 with scales and mirroring.
    "deeplab_v3_single": Protocol(output_stride=8),
    "deeplab_v3": Protocol(scales=MULTI_SCALE, flip=True, output_stride=8),
    "deeplab_v3_cityscapes": Protocol(scales=(0.75, 1.0, 1.25), flip=True, output_stride=8),
    # PSPNet (tool/test.py and config/ of the authors' PyTorch code): "single scale" mirrors too.
    "pspnet": Protocol(crop=473, base=512, flip=True),
    "pspnet_ms": Protocol(crop=473, base=512, flip=True, scales=MULTI_SCALE),
    "pspnet_cityscapes": Protocol(crop=713, base=2048, flip=True),
    "pspnet_cityscapes_ms": Protocol(crop=713, base=2048, flip=True, scales=MULTI_SCALE),
}


def find(name: str) -> Protocol:
    """Returns the protocol of a name.

    Raises:
      ValueError: there is none.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r} is unknown; accepted are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def adapt(model: Any, protocol: Protocol) -> Any:
    """Returns the network as a protocol runs it, with the same variables.

    The output stride is the protocol's, and a network with scales of its own leaves them to a
    protocol that has some.
    """
    changes = {}
    if protocol.output_stride and hasattr(model, "output_stride"):
        changes["output_stride"] = protocol.output_stride
    if len(protocol.scales) > 1 and hasattr(model, "scales"):
        changes["scales"] = (1.0,)
    return model.clone(**changes) if changes else model


def network(model: Any, variables: dict[str, Any], input: Input) -> Network:
    """Returns a trained network as a function of RGB images in 0..255.

    Args:
      model: a module of segjax.models.
      variables: "params" and "batch_stats".
      input: the normalisation it was trained with.
    """

    def apply(image: jax.Array) -> jax.Array:
        outputs, _ = state.forward(model, variables, image, input)
        return outputs["logits"].astype(jnp.float32)

    return apply


def scores(
    network: Network,
    image: jax.Array,
    size: jax.Array,
    *,
    protocol: Protocol,
    fill: Colour,
    align_corners: bool,
) -> jax.Array:
    """Runs a protocol.

    Args:
      network: of `network`, for `adapt(model, protocol)`.
      image: float32 [B, H, W, 3], RGB in 0..255, filled up at the bottom and on the right.
      size: int32 [B, 2], height and width of each image without the filling.
      protocol: one of `PROTOCOLS`, or your own.
      fill: the colour of padding, the mean of the network's input.
      align_corners: how logits are upsampled, `config.loss.align_corners`.

    Returns:
      float32 [B, H, W, C], meaningless beyond an image's size. Their softmax is the protocol's
      probabilities: they are the logits of one pass, or the logarithm of averaged probabilities.
    """
    if protocol.crop:
        probs = sliding(
            network,
            image,
            size,
            crop=protocol.crop,
            base=protocol.base,
            scales=protocol.scales,
            flip=protocol.flip,
            fill=fill,
            align_corners=align_corners,
        )
    elif protocol.fuse == "max":
        return max_fusion(network, image, scales=protocol.scales)
    elif protocol.scales == (1.0,) and not protocol.flip:
        return _upsampled(network(image), image.shape[1:3], align_corners)
    else:
        probs = whole(
            network, image, scales=protocol.scales, flip=protocol.flip, align_corners=align_corners
        )
    return jnp.log(jnp.maximum(probs, jnp.finfo(probs.dtype).tiny))


def whole(
    network: Network,
    image: jax.Array,
    *,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    align_corners: bool,
) -> jax.Array:
    """Averages the probabilities of the whole image over scales and mirroring.

    DeepLab v3's multi-scale inference (section 4.1, eval_protocol of the release): at each scale
    the logits are upsampled to the image's size before the softmax. With aligned corners a side of
    n pixels is scaled to (n - 1) * scale + 1, rounded down, otherwise to n * scale, rounded.

    Args:
      network: images to logits.
      image: float32 [B, H, W, 3], RGB in 0..255.
      scales: factors of the image's size.
      flip: also see each scale mirrored left to right.
      align_corners: how images and logits are resized.

    Returns:
      float32 [B, H, W, C].
    """
    total = None
    for scale in scales:
        size = tuple(_scaled(n, scale, align_corners) for n in image.shape[1:3])
        scaled = ops.resize(image, size, align_corners=align_corners, antialias=False)
        probs = _seen(network, scaled, image.shape[1:3], flip, align_corners)
        total = probs if total is None else total + probs
    return total / len(scales)


def max_fusion(
    network: Network, image: jax.Array, *, scales: tuple[float, ...] = (1.0, 0.75, 0.5)
) -> jax.Array:
    """Takes the largest logits over scales, DeepLab v2's fusion (section 4.1).

    The maps are fused on the grid of the first scale and then upsampled; all resizing aligns
    corners.

    Args:
      network: images to logits.
      image: float32 [B, H, W, 3], RGB in 0..255.
      scales: factors of the image's size.

    Returns:
      Logits, float32 [B, H, W, C].
    """
    logits = deeplab_v2.multi_scale(network, image, scales)["logits"]
    return _upsampled(logits, image.shape[1:3], align_corners=True)


def sliding(
    network: Network,
    image: jax.Array,
    size: jax.Array,
    *,
    crop: int,
    base: int,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = True,
    fill: Colour,
    align_corners: bool,
) -> jax.Array:
    """Averages the probabilities of overlapping windows over scales and mirroring, PSPNet's way.

    At each scale (tool/test.py of the authors' PyTorch code): the image is resized until its longer
    side has round(scale * base) pixels and the other one at least 1, is centred on at least one
    window of the mean colour, windows of crop x crop pixels step by ceil(crop * 2 / 3), the last
    one pushed back inside, each window's logits are upsampled to the window before the softmax, and
    the probabilities are divided by the number of windows that saw a pixel. They are resized to the
    image and averaged over the scales.

    One program serves all sizes on a canvas: the windows of an image are a loop of as many steps as
    that image has.

    Args:
      network: images to logits.
      image: float32 [B, H, W, 3], RGB in 0..255, filled up at the bottom and on the right.
      size: int32 [B, 2], height and width of each image without the filling.
      crop: side of a window, pixels.
      base: the longer side of the image at scale 1, pixels.
      scales: factors of `base`.
      flip: also see each window mirrored left to right.
      fill: the mean colour, RGB in 0..255.
      align_corners: how logits are upsampled to the window.

    Returns:
      float32 [B, H, W, C], zero beyond an image's size.
    """
    longest = jnp.array([round(scale * base) for scale in scales], jnp.int32)
    side = max(crop, round(max(scales) * base))
    stride = -(-crop * 2 // 3)
    pixels = [jnp.arange(n) for n in image.shape[1:3]]
    weights = functools.partial(ops.bilinear_weights, align_corners=False)  # as OpenCV resizes

    def one(image: jax.Array, size: jax.Array) -> jax.Array:
        def at_scale(total: jax.Array, longer: jax.Array) -> tuple[jax.Array, None]:
            # Rounded in integers; the longer side is exactly `longer`.
            scaled = jnp.maximum((2 * longer * size + size.max()) // (2 * size.max()), 1)
            padded = jnp.maximum(scaled, crop)
            offset = (padded - scaled) // 2
            counts = -(-(padded - crop) // stride) + 1

            into = [
                weights(jnp.arange(side) - offset[a], scaled[a], size[a], pixels[a]) for a in (0, 1)
            ]
            outside = 1 - into[0].sum(1)[:, None, None] * into[1].sum(1)[None, :, None]
            canvas = ops.resample(image, *into) + outside * jnp.array(fill, jnp.float32)[None, None]

            def window(i: jax.Array, sums: jax.Array) -> jax.Array:
                index = jnp.stack([i // counts[1], i % counts[1]])
                row, column = jnp.minimum(index * stride, padded - crop)
                view = jax.lax.dynamic_slice(canvas, (row, column, 0), (crop, crop, 3))
                probs = _seen(network, view[None], (crop, crop), flip, align_corners)[0]
                start = (row, column, jnp.zeros_like(row))
                before = jax.lax.dynamic_slice(sums, start, probs.shape)
                return jax.lax.dynamic_update_slice(sums, before + probs, start)

            sums = jnp.zeros((side, side, total.shape[-1]), jnp.float32)
            sums = jax.lax.fori_loop(0, counts[0] * counts[1], window, sums)
            visits = [_visits(side, crop, stride, counts[a], padded[a]) for a in (0, 1)]
            sums /= jnp.maximum(visits[0][:, None] * visits[1][None], 1)[..., None]
            back = [
                weights(pixels[a], size[a], scaled[a], jnp.arange(side) - offset[a]) for a in (0, 1)
            ]
            return total + ops.resample(sums, *back), None

        num_classes = jax.eval_shape(network, jnp.zeros((1, crop, crop, 3))).shape[-1]
        total = jnp.zeros((*image.shape[:2], num_classes), jnp.float32)
        return jax.lax.scan(at_scale, total, longest)[0] / len(scales)

    return jax.lax.map(lambda pair: one(*pair), (image, size))


def _seen(
    network: Network, image: jax.Array, size: Size, flip: bool, align_corners: bool
) -> jax.Array:
    """Returns probabilities [B, *size, C], the mean with the mirrored image's if `flip`."""
    both = jnp.concatenate([image, image[:, :, ::-1]]) if flip else image
    probs = jax.nn.softmax(_upsampled(network(both), size, align_corners))
    if not flip:
        return probs
    seen, mirrored = jnp.split(probs, 2)
    return (seen + mirrored[:, :, ::-1]) / 2


def _upsampled(logits: jax.Array, size: Size, align_corners: bool) -> jax.Array:
    return ops.resize(logits, size, align_corners=align_corners, antialias=False)


def _scaled(n: int, scale: float, align_corners: bool) -> int:
    share = fractions.Fraction(str(scale))  # a size that jax.export leaves open has no float
    if align_corners:
        return (n - 1) * share.numerator // share.denominator + 1
    return (2 * n * share.numerator + share.denominator) // (2 * share.denominator)


def _visits(side: int, crop: int, stride: int, count: jax.Array, padded: jax.Array) -> jax.Array:
    """How many of `count` windows along an axis see each pixel, float32 [side]."""
    index = jnp.arange(-(-(side - crop) // stride) + 1)
    start = jnp.minimum(index * stride, padded - crop)[:, None]
    pixel = jnp.arange(side)[None]
    inside = (start <= pixel) & (pixel < start + crop) & (index < count)[:, None]
    return inside.sum(0).astype(jnp.float32)
