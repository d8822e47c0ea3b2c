"""PSPNet in plain torch, from the paper, with the names of the released semseg checkpoints."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, rate: int = 1) -> nn.Conv2d:
    padding = rate * (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, rate, bias=False)


class Unit(nn.Module):
    """A bottleneck: 1x1, 3x3 (which carries stride and rate), 1x1 to four times the width."""

    def __init__(self, inputs: int, width: int, stride: int, rate: int, project: bool):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride, rate), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(
                conv(inputs, 4 * width, 1, stride), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def stage(inputs: int, width: int, units: int, stride: int, rate: int) -> nn.Sequential:
    """Every unit has the stage's rate, the first one too."""
    first = Unit(inputs, width, stride, rate, project=True)
    return nn.Sequential(
        first, *[Unit(4 * width, width, 1, rate, project=False) for _ in range(units - 1)]
    )


class Pyramid(nn.Module):
    def __init__(self, inputs: int, bins: tuple[int, ...]):
        super().__init__()
        width = inputs // len(bins)
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(b), conv(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU()
            )
            for b in bins
        )

    def forward(self, x):
        size = x.shape[2:]
        parts = [
            F.interpolate(f(x), size, mode="bilinear", align_corners=True) for f in self.features
        ]
        return torch.cat([x, *parts], 1)


def head(inputs: int, width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        conv(inputs, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(width, num_classes, 1),
    )


class PSPNet(nn.Module):
    """Returns the scores and the auxiliary scores at one eighth of the size, before upsampling."""

    def __init__(
        self,
        num_classes: int,
        units: tuple[int, ...] = (3, 4, 6, 3),
        bins: tuple[int, ...] = (1, 2, 3, 6),
        width: int = 64,
    ):
        super().__init__()
        w = width
        stem = []
        for inputs, outputs, stride in ((3, w, 2), (w, w, 1), (w, 2 * w, 1)):
            stem += [conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layer0 = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1))
        self.layer1 = stage(2 * w, w, units[0], 1, 1)
        self.layer2 = stage(4 * w, 2 * w, units[1], 2, 1)
        self.layer3 = stage(8 * w, 4 * w, units[2], 1, 2)
        self.layer4 = stage(16 * w, 8 * w, units[3], 1, 4)
        self.ppm = Pyramid(32 * w, bins)
        self.cls = head(64 * w, 8 * w, num_classes)
        self.aux = head(16 * w, 4 * w, num_classes)

    def forward(self, x):
        x = self.layer2(self.layer1(self.layer0(x)))
        middle = self.layer3(x)
        x = self.layer4(middle)
        return self.cls(self.ppm(x)), self.aux(middle)


def upsample(logits, size: tuple[int, int]):
    """The bilinear enlargement to the input's size, corners aligned."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)
