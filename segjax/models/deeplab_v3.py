"""DeepLab v3 (Chen et al., 2017, arXiv 1706.05587): parallel and cascaded atrous convolution.

Parameter paths: `backbone/...` (segjax.models.resnet); `aspp/conv1/kernel`, `aspp/bn1/{scale,bias}`
to conv4 (1x1, then the rates in order), `aspp/conv_pool`, `aspp/bn_pool` (image-level features),
`aspp/conv_project`, `aspp/bn_project`; `logits/{kernel,bias}`.

Deviations: the stride lies in the first 1x1 convolution of a stage, as in the ResNet the paper
cites; the TensorFlow release has it in the last block of the stage before. In both, the rates are
the paper's and a body computes the same values at every output stride. Logits are returned at
the output stride; the loss and the predictor upsample them. Image-level features are the mean of
the whole map; the release averages over a fixed window as large as the map of the training crop
(33x33 at 513), which is the same at that size. From scratch, kernels start He-normal.

Caution: torchvision's ImageNet weights were trained with the stride in the 3x3 convolution. By
default the networks here have it in the 1x1: the weights have the right shapes, but the network
computes something else with them. Use them with `DeepLabV3(..., stride_in="3x3",
first_rate="previous")`, as configs/ do. Then all layers but those changed by multi-grid compute
what they were trained for; the first block of a dilated stage has half the paper's rate.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.models.layers import Norm, batch_norm, conv
from segjax.models.resnet import ResNet


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image-level features (section 3.3).

    A 1x1 convolution, one 3x3 convolution per rate and the mean of the whole map, each with
    `features` channels, BatchNorm and ReLU, are concatenated in that order and projected to
    `features` channels: float [B, H, W, C] to [B, H, W, features], any size. In training the
    BatchNorm of the pooled branch sees one value per image: with one image it gives its bias.

    >>> aspp = ASPP(features=32, rates=(6, 12, 18))
    >>> y, variables = aspp.init_with_output(jax.random.key(0), jnp.ones((2, 33, 33, 16)))
    >>> y.shape, variables["params"]["conv_project"]["kernel"].shape
    ((2, 33, 33, 32), (1, 1, 160, 32))
    """

    features: int = 256
    rates: tuple[int, ...] = (6, 12, 18)
    norm: Norm = dataclasses.field(default_factory=Norm)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def branch(x: jax.Array, suffix: str, size: int = 1, rate: int = 1) -> jax.Array:
            layer = conv(self.features, size, self.dtype, f"conv{suffix}", rate=rate)
            return nn.relu(batch_norm(self.norm, train, self.dtype, f"bn{suffix}")(layer(x)))

        branches = [branch(x, "1")]
        branches += [branch(x, str(i), 3, rate) for i, rate in enumerate(self.rates, start=2)]
        pooled = branch(x.mean(axis=(1, 2), keepdims=True, dtype=jnp.float32), "_pool")
        # Its gradient is a sum over the map, which stalls in bfloat16 (`atrous.add_bias`).
        pooled = jnp.broadcast_to(pooled.astype(jnp.float32), branches[0].shape)
        branches.append(pooled.astype(self.dtype))
        return branch(jnp.concatenate(branches, axis=-1), "_project")


def classifier(num_classes: int, dtype: str) -> nn.Module:
    """Returns the 1x1 convolution `logits`."""
    init = nn.initializers.truncated_normal(0.01)
    return conv(num_classes, 1, dtype, "logits", use_bias=True, kernel_init=init)


class DeepLabV3(nn.Module):
    """DeepLab v3 with parallel atrous convolution, the paper's final model (section 4.2).

    58,040,661 parameters for 21 classes; depth 50: 39,048,533. The same variables serve any output
    stride: train at 16, evaluate at 8. torchvision's weights need stride_in="3x3", see above.

    Maps float [B, H, W, 3] to {"logits": float32 [B, h, w, num_classes]}: 513 becomes 33 at output
    stride 16 and 65 at 8. The paper upsamples them to the labels' size for the loss.
    """

    num_classes: int
    depth: int = 101  # a key of resnet.STAGE_SIZES
    output_stride: int = 16  # input pixels per pixel of the logits
    multi_grid: tuple[int, ...] = (1, 2, 4)  # rates in stage 4, times the stage's
    rates: tuple[int, ...] = (6, 12, 18)  # of ASPP at output stride 16; doubled at 8
    features: int = 256  # channels of ASPP
    dropout: float = 0.1  # before the classifier, as in the release; the paper names none
    stride_in: str = "1x1"  # torchvision's weights need "3x3"; see resnet.ResNet
    first_rate: str = "full"  # or "previous", torchvision's; see resnet.plan
    width: int = 64  # channels of the first convolution
    norm: Norm = dataclasses.field(default_factory=lambda: Norm(decay=0.9997))
    dtype: str = "float32"
    remat: bool = False  # see resnet.ResNet

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        backbone = ResNet(
            self.depth,
            self.output_stride,
            self.multi_grid,
            stride_in=self.stride_in,
            first_rate=self.first_rate,
            width=self.width,
            norm=self.norm,
            dtype=self.dtype,
            remat=self.remat,
            name="backbone",
        )
        x = backbone(image, train)["stage4"]  # [B, H/16, W/16, 2048]
        rates = tuple(rate * 16 // self.output_stride for rate in self.rates)
        x = ASPP(self.features, rates, self.norm, self.dtype, name="aspp")(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return {"logits": classifier(self.num_classes, self.dtype)(x).astype(jnp.float32)}


class DeepLabV3Cascade(nn.Module):
    """DeepLab v3 with cascaded atrous convolution: stage 4 copied three times (section 3.2).

    Each copy doubles the rate. 82,706,517 parameters for 21 classes; depth 50: 63,714,389. The
    default multi-grid is the best of Table 3. torchvision's weights need stride_in="3x3", as in
    DeepLabV3.

    Maps float [B, H, W, 3] to {"logits": float32 [B, h, w, num_classes]}, as DeepLabV3.
    """

    num_classes: int
    depth: int = 101  # a key of resnet.STAGE_SIZES
    output_stride: int = 16  # input pixels per pixel of the logits; up to 256 (Table 1)
    multi_grid: tuple[int, ...] = (1, 2, 1)  # rates in stages 4 to 7, times the stage's
    cascade: int = 3  # copies of stage 4; 0: "block4", 3: "block7"
    stride_in: str = "1x1"  # torchvision's weights need "3x3"; see resnet.ResNet
    first_rate: str = "full"  # or "previous", torchvision's; see resnet.plan
    width: int = 64  # channels of the first convolution
    norm: Norm = dataclasses.field(default_factory=lambda: Norm(decay=0.9997))
    dtype: str = "float32"
    remat: bool = False  # see resnet.ResNet

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        backbone = ResNet(
            self.depth,
            self.output_stride,
            self.multi_grid,
            self.cascade,
            stride_in=self.stride_in,
            first_rate=self.first_rate,
            width=self.width,
            norm=self.norm,
            dtype=self.dtype,
            remat=self.remat,
            name="backbone",
        )
        x = backbone(image, train)[f"stage{4 + self.cascade}"]  # [B, H/16, W/16, 2048]
        return {"logits": classifier(self.num_classes, self.dtype)(x).astype(jnp.float32)}
