"""Other decoders for the encoder of SegNet-Basic, after Table 1 of SegNet (section 3.3).

All have SegNet-Basic's encoder: four times a 7x7 convolution, BatchNorm, ReLU, and a 2x2 max pool.

- `Bilinear`: SegNet-Basic's decoder, but bilinear upsampling in place of unpooling. Its parameters
  are as many as SegNet-Basic's; the paper's variant of that name has 0.625 M.
- `EncoderAddition`: SegNet-Basic, and the encoder's maps of the same size are added to the result
  of each decoder. All these maps must be kept until then.
- `FCNBasic`: the last map is reduced to one channel a class; learned upsampling (transposed
  convolution, 8x8, starting as bilinear interpolation) and the addition of the encoder's maps,
  reduced likewise, lead to the full size. There is no further convolution.
- `FCNBasicNoAddition`: the same without the encoder's maps.

Sizes are rounded up by pooling, and what upsampling has too much is cut off. Each maps float
[B, H, W, 3] to {"logits": float32 [B, H, W, num_classes]}.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax import ops
from segjax.models.layers import Norm, batch_norm, check_image, conv

SHIFT = 0.001  # of every BatchNorm at the start, as in SegNet
MSRA = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Encoder(nn.Module):
    """SegNet-Basic's encoder.

    Maps [B, H, W, 3] to [B, H/16, W/16, width], the four maps before pooling, the largest first,
    and the positions of the maxima in them.
    """

    width: int
    norm: Norm

    @nn.compact
    def __call__(
        self, image: jax.Array, train: bool
    ) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        check_image(image)
        x = ops.local_response_norm(image, size=5, alpha=1e-4, beta=0.75, k=1.0)
        maps, positions = [], []
        for i in (1, 2, 3, 4):
            x = _conv(self.width, 7, f"conv{i}")(x)
            x = nn.relu(batch_norm(self.norm, train, "float32", f"bn{i}", SHIFT)(x))
            maps.append(x)
            x, indices = ops.max_pool_with_argmax(x, 2, ceil_mode=True)
            positions.append(indices)
        return x, maps, positions


class Bilinear(nn.Module):
    """SegNet-Basic with bilinear upsampling in place of unpooling."""

    num_classes: int
    width: int = 64
    norm: Norm = dataclasses.field(default_factory=Norm)

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x, maps, _ = Encoder(self.width, self.norm, name="encoder")(image, train)
        for i in (4, 3, 2, 1):
            x = ops.resize(x, maps[i - 1].shape[1:3], align_corners=False, antialias=False)
            x = _conv(self.width, 7, f"conv_decode{i}")(x)
            x = batch_norm(self.norm, train, "float32", f"bn_decode{i}", SHIFT)(x)
        return {"logits": _conv(self.num_classes, 1, "classifier")(x)}


class EncoderAddition(nn.Module):
    """SegNet-Basic that adds the encoder's maps to those of the decoder."""

    num_classes: int
    width: int = 64
    norm: Norm = dataclasses.field(default_factory=Norm)

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x, maps, positions = Encoder(self.width, self.norm, name="encoder")(image, train)
        for i in (4, 3, 2, 1):
            x = ops.max_unpool(x, positions[i - 1], maps[i - 1].shape[1:3], window=2)
            x = _conv(self.width, 7, f"conv_decode{i}")(x)
            x = batch_norm(self.norm, train, "float32", f"bn_decode{i}", SHIFT)(x) + maps[i - 1]
        return {"logits": _conv(self.num_classes, 1, "classifier")(x)}


class FCNBasic(nn.Module):
    """Learned upsampling of class scores, to which reduced maps of the encoder are added."""

    num_classes: int
    width: int = 64
    norm: Norm = dataclasses.field(default_factory=Norm)

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x, maps, _ = Encoder(self.width, self.norm, name="encoder")(image, train)
        x = _conv(self.num_classes, 1, "reduce5")(x)
        for i in (4, 3, 2, 1):
            x = _upsample(x, maps[i - 1], f"conv_decode{i}")
            x = x + _conv(self.num_classes, 1, f"reduce{i}")(maps[i - 1])
        return {"logits": x}


class FCNBasicNoAddition(nn.Module):
    """Learned upsampling of class scores alone."""

    num_classes: int
    width: int = 64
    norm: Norm = dataclasses.field(default_factory=Norm)

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        x, maps, _ = Encoder(self.width, self.norm, name="encoder")(image, train)
        x = _conv(self.num_classes, 1, "reduce5")(x)
        for i in (4, 3, 2, 1):
            x = _upsample(x, maps[i - 1], f"conv_decode{i}")
        return {"logits": x}


def bilinear_kernel(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """An initial kernel [8, 8, C, C] that interpolates every channel by 2 for itself."""
    taps = np.array([0, 0, 1, 3, 3, 1, 0, 0]) / 4
    return jnp.asarray(np.outer(taps, taps)[:, :, None, None] * np.eye(shape[-1]), dtype)


def _upsample(x: jax.Array, like: jax.Array, name: str) -> jax.Array:
    layer = nn.ConvTranspose(x.shape[-1], (8, 8), (2, 2), kernel_init=bilinear_kernel, name=name)
    height, width = like.shape[1:3]
    return layer(x)[:, :height, :width]


def _conv(features: int, size: int, name: str) -> Callable[[jax.Array], jax.Array]:
    return conv(features, size, "float32", name, use_bias=True, kernel_init=MSRA)
