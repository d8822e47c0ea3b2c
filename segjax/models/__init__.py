"""The networks, one paper per file."""

from segjax.models.atrous import AtrousConv
from segjax.models.deeplab_v1 import DeepLabV1
from segjax.models.deeplab_v2 import DeepLabV2ResNet, DeepLabV2VGG, SumASPP
from segjax.models.deeplab_v3 import ASPP, DeepLabV3, DeepLabV3Cascade
from segjax.models.layers import FCNHead, MaxUnpool, Norm
from segjax.models.pspnet import PSPNet, PyramidPooling
from segjax.models.resnet import ResNet
from segjax.models.segnet import SegNet, SegNetBasic, monte_carlo
from segjax.models.torchvision import TorchvisionDeepLabV3

__all__ = [
    "ASPP",
    "AtrousConv",
    "DeepLabV1",
    "DeepLabV2ResNet",
    "DeepLabV2VGG",
    "DeepLabV3",
    "DeepLabV3Cascade",
    "FCNHead",
    "MaxUnpool",
    "Norm",
    "PSPNet",
    "PyramidPooling",
    "ResNet",
    "SegNet",
    "SegNetBasic",
    "SumASPP",
    "TorchvisionDeepLabV3",
    "monte_carlo",
]
