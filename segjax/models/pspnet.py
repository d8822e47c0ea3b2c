"""PSPNet (Zhao et al., CVPR 2017): pooling at four scales over a dilated ResNet.

Parameter paths: `backbone/...` (segjax.models.resnet, deep stem); `ppm/conv1/kernel`,
`ppm/bn1/{scale,bias}` to conv4, in the order of the bins; `head/conv/kernel`, `head/bn`,
`head/logits/{kernel,bias}`; `aux/conv`, `aux/bn`, `aux/logits`.

Deviations: the stride lies in the 3x3 convolutions and the map precedes the pooled ones, 1 to 6, as
in the authors' PyTorch code; their Caffe nets have the stride in the 1x1 and the pooled maps in the
order 6 to 1. Logits are returned at the output stride and upsampled by the loss and the predictor.
From scratch, kernels start He-normal; the paper starts from ImageNet weights.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import ops
from segjax.models.layers import FCNHead, Norm, batch_norm, conv
from segjax.models.resnet import ResNet

POOLS = {"average": ops.adaptive_avg_pool, "max": ops.adaptive_max_pool}


class PyramidPooling(nn.Module):
    """The pyramid pooling module (section 3.2): the map and its means over four grids.

    For each of N entries of `bins` the map is pooled to a bins x bins grid, reduced to C/N channels
    (1x1 convolution, BatchNorm, ReLU), resized back with aligned corners and appended to the map:
    float [B, H, W, C] to [B, H, W, 2C], any size. The windows are those of adaptive pooling, as
    even as possible. The Caffe nets have fixed windows, which are the same where 6 divides the
    size, as at 60 (input 473) and 90 (input 713).

    >>> ppm = PyramidPooling(bins=(1, 2, 3, 6))
    >>> y, variables = ppm.init_with_output(jax.random.key(0), jnp.ones((2, 60, 60, 32)))
    >>> y.shape, variables["params"]["conv1"]["kernel"].shape
    ((2, 60, 60, 64), (1, 1, 32, 8))
    """

    bins: tuple[int, ...] = (1, 2, 3, 6)  # cells along each side of the grids
    pool: str = "average"  # or "max"
    norm: Norm = dataclasses.field(default_factory=Norm)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r}: use one of {sorted(POOLS)}")
        maps = [x.astype(self.dtype)]
        for i, bins in enumerate(self.bins, start=1):
            y = POOLS[self.pool](x, bins)  # [B, bins, bins, C]
            y = conv(x.shape[-1] // len(self.bins), 1, self.dtype, f"conv{i}")(y)
            y = nn.relu(batch_norm(self.norm, train, self.dtype, f"bn{i}")(y))
            maps.append(ops.resize(y, x.shape[1:3], align_corners=True, antialias=False))
        return jnp.concatenate(maps, axis=-1)


class PSPNet(nn.Module):
    """PSPNet on a ResNet with deep stem at output stride 8.

    Parameters without and with the auxiliary head: 46,782,550 and 49,180,908 at depth 50 with 150
    classes, 65,708,501 and 68,073,706 at depth 101 with 21.

    Maps float [B, H, W, 3] to float32 [B, h, w, num_classes] under "logits" and under "aux", the
    head on stage 3 that helps training (loss weight 0.4, section 3.3). A compiled program that does
    not read "aux" does not compute it. 473 becomes 60, 713 becomes 90. The authors upsample both to
    the labels' size for the loss.
    """

    num_classes: int
    depth: int = 101  # a key of resnet.STAGE_SIZES
    output_stride: int = 8  # input pixels per pixel of the logits
    bins: tuple[int, ...] = (1, 2, 3, 6)  # of the pyramid
    pool: str = "average"  # or "max"
    stem: str = "deep"  # "plain" fits torchvision's ImageNet weights
    width: int = 64  # channels of the first convolution
    norm: Norm = dataclasses.field(default_factory=lambda: Norm(decay=0.95))
    dtype: str = "float32"
    remat: bool = False  # see resnet.ResNet

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        backbone = ResNet(
            self.depth,
            self.output_stride,
            stem=self.stem,
            width=self.width,
            norm=self.norm,
            dtype=self.dtype,
            remat=self.remat,
            name="backbone",
        )
        ends = backbone(image, train)
        x = PyramidPooling(self.bins, self.pool, self.norm, self.dtype, name="ppm")(
            ends["stage4"], train
        )  # [B, H/8, W/8, 4096]

        def head(end: str, name: str) -> FCNHead:
            return FCNHead(
                self.num_classes,
                ends[end].shape[-1] // 4,
                dropout=0.1,
                dropout_dims=(1, 2),
                norm=self.norm,
                dtype=self.dtype,
                name=name,
            )

        logits = head("stage4", "head")(x, train)
        return {"logits": logits, "aux": head("stage3", "aux")(ends["stage3"], train)}
