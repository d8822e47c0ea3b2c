"""DeepLab v2 in plain torch: ResNet with summed ASPP, and the maximum over three scales.

The names are those of kazuto1011/deeplab-pytorch.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Conv(nn.Module):
    """Convolution without bias, then BatchNorm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, rate: int = 1):
        super().__init__()
        padding = rate * (kernel - 1) // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, rate, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-5)

    def forward(self, x):
        return self.bn(self.conv(x))


class Unit(nn.Module):
    """Caffe's bottleneck: the stride sits in the first 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int, rate: int, project: bool):
        super().__init__()
        width = outputs // 4
        self.reduce = Conv(inputs, width, 1, stride)
        self.conv3x3 = Conv(width, width, 3, 1, rate)
        self.increase = Conv(width, outputs, 1)
        self.shortcut = Conv(inputs, outputs, 1, stride) if project else nn.Identity()

    def forward(self, x):
        y = F.relu(self.reduce(x))
        y = F.relu(self.conv3x3(y))
        return F.relu(self.increase(y) + self.shortcut(x))


def stage(inputs: int, outputs: int, units: int, stride: int, rate: int) -> nn.Sequential:
    layers = nn.Sequential()
    for i in range(units):
        unit = Unit(outputs if i else inputs, outputs, 1 if i else stride, rate, project=i == 0)
        layers.add_module(f"block{i + 1}", unit)
    return layers


class Stem(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = Conv(3, width, 7, 2)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        return F.max_pool2d(x, 3, 2, 1, ceil_mode=True)


class SumASPP(nn.Module):
    """Class scores of 3x3 convolutions at several rates, straight from res5, summed."""

    def __init__(self, inputs: int, num_classes: int, rates: tuple[int, ...]):
        super().__init__()
        self.count = len(rates)
        for i, rate in enumerate(rates):
            branch = nn.Conv2d(inputs, num_classes, 3, padding=rate, dilation=rate)
            self.add_module(f"c{i}", branch)

    def forward(self, x):
        return sum(getattr(self, f"c{i}")(x) for i in range(self.count))


class DeepLabV2(nn.Module):
    """Returns the scores at one eighth of the size."""

    def __init__(
        self,
        num_classes: int,
        units: tuple[int, ...] = (3, 4, 23, 3),
        rates: tuple[int, ...] = (6, 12, 18, 24),
        width: int = 64,
    ):
        super().__init__()
        w = width
        self.layer1 = Stem(w)
        self.layer2 = stage(w, 4 * w, units[0], 1, 1)
        self.layer3 = stage(4 * w, 8 * w, units[1], 2, 1)
        self.layer4 = stage(8 * w, 16 * w, units[2], 1, 2)
        self.layer5 = stage(16 * w, 32 * w, units[3], 1, 4)
        self.aspp = SumASPP(32 * w, num_classes, rates)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.aspp(self.layer5(self.layer4(x)))


class MultiScale(nn.Module):
    """The network on the image at three scales, Caffe's way: every resize aligns the corners.

    Returns the maximum and each scale's scores as the paper supervises them: the half scale on
    its own grid, the others on that of the full image.
    """

    def __init__(self, **fields):
        super().__init__()
        self.base = DeepLabV2(**fields)

    def forward(self, x):
        height, width = x.shape[2:]
        scores = [self.base(x)]
        size = scores[0].shape[2:]
        for scale in (0.75, 0.5):
            # An image of (H - 1) divisible by 8 keeps its corners: 321, 241, 161.
            small = (int((height - 1) * scale) + 1, int((width - 1) * scale) + 1)
            small = F.interpolate(x, small, mode="bilinear", align_corners=True)
            scores.append(self.base(small))
        enlarged = [F.interpolate(s, size, mode="bilinear", align_corners=True) for s in scores]
        return torch.stack(enlarged).amax(0), enlarged[0], enlarged[1], scores[2]
