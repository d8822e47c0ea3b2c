"""What is compared: a network of segjax.models, its counterpart in torch, and the images.

Reading this file does not need torch; building a counterpart does.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from segjax import models, pretrained
from segjax.models.deeplab_v1 import MSC_STRIDES
from tests.reference import fill

BLOCKS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2)}


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison; wide images, so that the largest rates have taps inside the map."""

    model: nn.Module
    build: Callable[[], Any]  # the torch module
    sizes: tuple[tuple[int, int], ...]  # height, width of the images; one even, one 8k + 1
    source: str | pretrained.Source  # a key of pretrained.SOURCES; or names of our own
    kind: str = "safetensors"  # of the file the weights travel in: or "caffemodel"
    outputs: tuple[str, ...] = ("logits",)  # of the model, in the order of the torch module


def _torch(module: str, name: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(f"tests.reference.{module}"), name)(
        *args, **kwargs
    )


CASES = {
    "torchvision_deeplabv3": Case(
        models.TorchvisionDeepLabV3(num_classes=5, depth=50),
        _torch("torchvision_import", "DeepLabV3", 5),
        ((33, 321), (64, 80)),
        "torchvision_deeplabv3",
        outputs=("logits", "aux"),
    ),
    "semseg_pspnet": Case(
        models.PSPNet(num_classes=5, depth=26, width=16),
        _torch("pspnet", "PSPNet", 5, BLOCKS[26], width=16),
        ((65, 97), (64, 120)),
        "semseg_pspnet",
        outputs=("logits", "aux"),
    ),
    "kazuto1011_deeplabv2": Case(
        models.DeepLabV2ResNet(num_classes=5, depth=26, width=16, scales=(1.0,)),
        _torch("deeplab_v2", "DeepLabV2", 5, BLOCKS[26], width=16),
        ((41, 241), (64, 208)),
        "kazuto1011_deeplabv2",
    ),
    "deeplab_v2_msc": Case(
        models.DeepLabV2ResNet(num_classes=5, depth=14, width=16),
        _torch("deeplab_v2", "MultiScale", num_classes=5, units=BLOCKS[14], width=16),
        ((65, 129), (64, 120)),
        "kazuto1011_deeplabv2",
        outputs=("logits", "scale_100", "scale_075", "scale_050"),
    ),
    "deeplab_v1_large_fov": Case(
        models.DeepLabV1(num_classes=5, width=64, body_width=8),
        _torch("vgg", "LargeFOV", 5, width=64, divide=8),
        ((41, 209), (48, 200)),
        "deeplab_vgg_caffe",
        "caffemodel",
    ),
    "deeplab_v1_7x7": Case(
        models.DeepLabV1(num_classes=5, kernel_size=7, rate=4, width=64, body_width=8),
        _torch("vgg", "LargeFOV", 5, 7, 4, width=64, divide=8),
        ((41, 209), (48, 200)),
        "deeplab_vgg_caffe",
        "caffemodel",
    ),
    "deeplab_v1_4x4": Case(
        models.DeepLabV1(num_classes=5, kernel_size=4, rate=8, width=64, body_width=8),
        _torch("vgg", "LargeFOV", 5, 4, 8, width=64, divide=8),
        ((41, 209), (48, 200)),
        "deeplab_vgg_caffe",
        "caffemodel",
    ),
    "deeplab_v1_msc": Case(
        models.DeepLabV1(num_classes=5, width=64, body_width=8, msc=tuple(MSC_STRIDES)),
        _torch("vgg", "MScLargeFOV", 5, width=64, divide=8),
        ((41, 209), (60, 106)),
        dataclasses.replace(
            pretrained.SOURCES["deeplab_vgg_caffe"],
            mark=r"msc0_conv1\.weight",
            table=(
                *pretrained.SOURCES["deeplab_vgg_caffe"].table,
                (r"msc(\d)/conv(\d)", "msc<1>_conv<2>"),
            ),
        ),
    ),
    "deeplab_v2_vgg": Case(
        models.DeepLabV2VGG(num_classes=5, width=64, body_width=8),
        _torch("vgg", "ASPP", 5, width=64, divide=8),
        ((41, 241), (48, 240)),
        "deeplab_vgg_caffe",
        "caffemodel",
    ),
    "segnet": Case(
        models.SegNet(num_classes=3, widths=(8, 16, 32, 64, 64)),
        _torch("segnet", "SegNet", 3, divide=8),
        ((33, 41), (30, 38)),
        "segnet_caffe",
        "caffemodel",
    ),
    "segnet_basic": Case(
        models.SegNetBasic(num_classes=3, width=8),
        _torch("segnet", "SegNetBasic", 3, width=8),
        ((33, 41), (30, 38)),
        "segnet_caffe",
        "caffemodel",
    ),
}


def image(case: str, size: tuple[int, int], batch: int = 1) -> np.ndarray:
    """Returns the NHWC image of a case."""
    return fill.image((batch, *size, 3), f"{case}/{size[0]}x{size[1]}")


def counterpart(name: str) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Returns the torch module with its weights filled, evaluating, and their shapes by name."""
    import torch

    module = CASES[name].build()
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    weights = fill.weights(shapes, name)
    module.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    return module.eval(), shapes


def run(module: Any, image: np.ndarray) -> list[np.ndarray]:
    """Returns the outputs of a torch module for an NHWC image, in NHWC."""
    import torch

    with torch.no_grad():
        found = module(torch.tensor(image.transpose(0, 3, 1, 2)))
    found = [found] if isinstance(found, torch.Tensor) else found
    return [output.numpy().transpose(0, 2, 3, 1) for output in found]
