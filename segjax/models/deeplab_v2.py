"""DeepLab v2 (Chen et al., PAMI 2017): atrous spatial pyramids on VGG16 and ResNet, three scales.

Parameter paths. VGG16: `backbone/stage1/conv1` ..., and per branch `fc6_1`, `fc7_1`, `fc8_1` to
`fc8_4`, each with {kernel,bias}. ResNet: `backbone/stem/conv1/kernel` ... (segjax.models.resnet)
and `aspp/branch1/{kernel,bias}` to `aspp/branch4`.

Deviations: the CRF is segjax.crf, after the network. From scratch, the body starts He-normal; the
paper starts from ImageNet or COCO weights.
"""

import dataclasses
import fractions
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import ops
from segjax.models.atrous import AtrousConv
from segjax.models.deeplab_v1 import fc6_fc7
from segjax.models.layers import Norm, check_image, conv
from segjax.models.resnet import ResNet
from segjax.models.vgg import VGG16


def multi_scale(
    score: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    scales: tuple[float, ...] = (1.0, 0.75, 0.5),
) -> dict[str, jax.Array]:
    """Scores an image at several scales and fuses the scores by their maximum (section 4.1).

    All resizing aligns corners: 321 is 241 and 161 at scales 0.75 and 0.5, and a stride of 8
    makes 41, 31 and 21 of them. The weights of kazuto1011 are from code that does not align corners
    and rounds sizes down, 321 to 240 and 160; here they are run as the paper's.

    Args:
      score: maps an image [B, H, W, 3] to logits [B, h, w, C].
      image: float [B, H, W, 3].
      scales: factors of the image's size; the first gives the grid of the result.

    Returns:
      "logits": the maximum, on the grid of the first scale; and each scale's own map as the paper
      supervises it: "scale_100" and "scale_075" on that grid, and "scale_050", whose grid is half
      as fine, on its own.
    """
    check_image(image)
    maps = {}
    for scale in scales:
        share = fractions.Fraction(str(scale))  # a size that jax.export leaves open has no float
        size = tuple((n - 1) * share.numerator // share.denominator + 1 for n in image.shape[1:3])
        scaled = image
        if scale != 1:
            scaled = ops.resize(image, size, align_corners=True, antialias=False)
        maps[scale] = score(scaled)
    grid = maps[scales[0]].shape[1:3]
    on_grid = {
        scale: ops.resize(logits, grid, align_corners=True, antialias=False)
        for scale, logits in maps.items()
    }
    fused = jnp.stack(list(on_grid.values())).max(axis=0)
    supervised = {
        f"scale_{round(100 * scale):03d}": maps[scale] if scale <= 0.5 else on_grid[scale]
        for scale in scales
    }
    return {"logits": fused, **supervised}


class SumASPP(nn.Module):
    """Atrous spatial pyramid pooling of DeepLab v2: class scores of several rates, summed.

    Maps float [B, H, W, C] to logits, float32 [B, H, W, num_classes]: one 3x3 convolution with
    bias per rate, nothing between them and the features (section 3.2, the ResNet form).
    Parameter paths: `branch1/{kernel,bias}` ... in the order of the rates.

    >>> aspp = SumASPP(num_classes=21)
    >>> y, variables = aspp.init_with_output(jax.random.key(0), jnp.ones((1, 41, 41, 16)))
    >>> y.shape, sorted(variables["params"])
    ((1, 41, 41, 21), ['branch1', 'branch2', 'branch3', 'branch4'])
    """

    num_classes: int
    rates: tuple[int, ...] = (6, 12, 18, 24)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scores = [
            AtrousConv(
                self.num_classes,
                rate=rate,
                use_bias=True,
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.01),
                name=f"branch{i}",
            )(x).astype(jnp.float32)
            for i, rate in enumerate(self.rates, start=1)
        ]
        return sum(scores)


class DeepLabV2VGG(nn.Module):
    """DeepLab v2 on VGG16: one fc6-fc7-fc8 branch per rate, scores summed (section 4.1.2).

    The default is ASPP-L; rates (2, 4, 8, 12) make ASPP-S and (12,) LargeFOV. 37,877,652
    parameters for 21 classes and four rates.

    Maps float [B, H, W, 3] to {"logits": float32 [B, h, w, num_classes]} at output stride 8: 321
    becomes 41. The paper trains on labels shrunk to that grid.
    """

    num_classes: int
    rates: tuple[int, ...] = (6, 12, 18, 24)  # of fc6, one branch each
    width: int = 1024  # channels of fc6 and fc7
    body_width: int = 64  # channels of the first convolution
    dtype: str = "float32"
    remat: bool = False  # see vgg.VGG16

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        features = VGG16(self.body_width, self.dtype, self.remat, name="backbone")(image)["pool5"]
        scores = []
        for i, rate in enumerate(self.rates, start=1):
            x = fc6_fc7(features, self.width, 3, rate, train, self.dtype, suffix=f"_{i}")
            fc8 = conv(
                self.num_classes,
                1,
                self.dtype,
                f"fc8_{i}",
                use_bias=True,
                kernel_init=nn.initializers.normal(0.01),
            )
            scores.append(fc8(x).astype(jnp.float32))
        return {"logits": sum(scores)}


class DeepLabV2ResNet(nn.Module):
    """DeepLab v2 on ResNet-101: res4 at rate 2, res5 at rate 4, a summed ASPP, three input scales.

    The body is Caffe's: the stride lies in the 1x1 convolutions, pooling rounds up, BatchNorm is
    frozen. 44,048,532 parameters for 21 classes. Rates (12,) make the LargeFOV head, scales (1.0,)
    the network without multi-scale inputs.

    Maps float [B, H, W, 3] to float32 [B, h, w, num_classes] at output stride 8 under "logits", the
    maximum over the scales, and each scale's own under "scale_100", "scale_075", "scale_050": the
    paper's training adds the losses of all four (`multi_scale`). 321 becomes 41, "scale_050" 21.
    """

    num_classes: int
    depth: int = 101  # a key of resnet.STAGE_SIZES
    output_stride: int = 8  # input pixels per pixel of the logits
    rates: tuple[int, ...] = (6, 12, 18, 24)  # of the head
    scales: tuple[float, ...] = (1.0, 0.75, 0.5)  # of the input
    width: int = 64  # channels of the first convolution
    norm: Norm = dataclasses.field(default_factory=lambda: Norm(frozen=True))
    dtype: str = "float32"
    remat: bool = False  # see resnet.ResNet

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        backbone = ResNet(
            self.depth,
            self.output_stride,
            stride_in="1x1",
            ceil_mode=True,
            width=self.width,
            norm=self.norm,
            dtype=self.dtype,
            remat=self.remat,
            name="backbone",
        )
        aspp = SumASPP(self.num_classes, self.rates, self.dtype, name="aspp")
        return multi_scale(lambda x: aspp(backbone(x, train)["stage4"]), image, self.scales)
