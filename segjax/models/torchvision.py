"""torchvision's DeepLab v3: the network of its published weights, which is not the paper's.

Parameter paths: `backbone/...` (segjax.models.resnet), `aspp/...` (segjax.models.deeplab_v3),
`head/{conv,bn,logits}` and `aux/{conv,bn,logits}`.
"""

import dataclasses

import flax.linen as nn
import jax

from segjax.models.deeplab_v3 import ASPP
from segjax.models.layers import FCNHead, Norm
from segjax.models.resnet import ResNet


class TorchvisionDeepLabV3(nn.Module):
    """torchvision's deeplabv3_resnet50 and deeplabv3_resnet101, for their published weights.

    It differs from the paper's: output stride 8 without multi-grid, the first block of a dilated
    stage at the rate of the stage before, a 3x3 convolution after ASPP, an auxiliary head on stage
    3 (loss weight 0.5), and align_corners False wherever its logits are resized. 60,996,202
    parameters for 21 classes; depth 50: 42,004,074.

    Maps float [B, H, W, 3] to float32 [B, h, w, num_classes] under "logits" and "aux".
    """

    num_classes: int
    depth: int = 101  # a key of resnet.STAGE_SIZES
    rates: tuple[int, ...] = (12, 24, 36)  # of ASPP
    features: int = 256  # channels of ASPP
    width: int = 64  # channels of the first convolution
    norm: Norm = dataclasses.field(default_factory=Norm)
    dtype: str = "float32"
    remat: bool = False  # see resnet.ResNet

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        backbone = ResNet(
            self.depth,
            output_stride=8,
            first_rate="previous",
            width=self.width,
            norm=self.norm,
            dtype=self.dtype,
            remat=self.remat,
            name="backbone",
        )
        ends = backbone(image, train)
        x = ASPP(self.features, self.rates, self.norm, self.dtype, name="aspp")(
            ends["stage4"], train
        )
        x = nn.Dropout(0.5, deterministic=not train)(x)
        head = FCNHead(
            self.num_classes, self.features, norm=self.norm, dtype=self.dtype, name="head"
        )
        aux = FCNHead(
            self.num_classes,
            ends["stage3"].shape[-1] // 4,
            dropout=0.1,
            norm=self.norm,
            dtype=self.dtype,
            name="aux",
        )
        return {"logits": head(x, train), "aux": aux(ends["stage3"], train)}
