"""Imports torchvision also where its compiled operators do not load (installed with --no-deps).

Its classification and segmentation networks are plain Python; only the names of two operators are
looked for while importing.
"""

import functools
import importlib.util
import pathlib
import types

import torch


@functools.cache
def torchvision() -> types.ModuleType:
    """Returns the torchvision package with its models."""
    folder = pathlib.Path(importlib.util.find_spec("torchvision").origin).parent
    try:
        for library in folder.glob("_C*.so"):
            torch.ops.load_library(library)
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
            )
    return importlib.import_module("torchvision")


class DeepLabV3(torch.nn.Module):
    """deeplabv3_resnet50 up to its last resizing: (scores, auxiliary scores) at one eighth."""

    def __init__(self, num_classes: int):
        super().__init__()
        found = torchvision().models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True
        )
        self.backbone, self.classifier = found.backbone, found.classifier
        self.aux_classifier = found.aux_classifier

    def forward(self, x):
        ends = self.backbone(x)
        return self.classifier(ends["out"]), self.aux_classifier(ends["aux"])


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of one of torchvision's networks, without making its weights."""
    models = torchvision().models
    family = models.segmentation if name.startswith("deeplab") else models
    options = {"weights_backbone": None, "aux_loss": True} if family != models else {}
    with torch.device("meta"):
        module = getattr(family, name)(weights=None, **options)
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def features(name: str) -> torch.nn.Module:
    """Returns a network that gives its stages: those of a ResNet, or VGG16's with DeepLab's pools.

    The pools have no weights, so the network they make is another with the same weights.
    """
    models = torchvision().models
    if name.startswith("resnet"):
        stages = {f"layer{i}": f"stage{i}" for i in (1, 2, 3, 4)}
        return models._utils.IntermediateLayerGetter(getattr(models, name)(weights=None), stages)
    layers = torch.nn.Sequential(*models.vgg.make_layers(models.vgg.cfgs["D"]))
    pools = [i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.MaxPool2d)]
    for i, stride in zip(pools, (2, 2, 2, 1, 1), strict=True):
        layers[i] = torch.nn.MaxPool2d(3, stride, 1, ceil_mode=True)
    for layer in layers[pools[3] :]:
        if isinstance(layer, torch.nn.Conv2d):
            layer.dilation = layer.padding = (2, 2)
    return torch.nn.ModuleDict({"features": layers})
