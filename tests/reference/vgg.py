"""DeepLab v1 and v2 on VGG16 in plain torch: LargeFOV and its variants, MSc, summed ASPP.

The names are those of the authors' prototxts.
"""

import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (64, 128, 256, 512, 512)
CONVS = (2, 2, 3, 3, 3)


class Body(nn.Module):
    """VGG16 with 3x3 pools; the last two do not shrink; conv5 is dilated by two.

    `width` divides every number of channels, for quick tests.
    """

    def __init__(self, divide: int = 1):
        super().__init__()
        inputs = 3
        for stage, (width, convs) in enumerate(zip(WIDTHS, CONVS, strict=True), 1):
            rate = 2 if stage == 5 else 1
            for i in range(1, convs + 1):
                layer = nn.Conv2d(inputs, width // divide, 3, padding=rate, dilation=rate)
                self.add_module(f"conv{stage}_{i}", layer)
                inputs = width // divide

    def body(self, x):
        """Returns the image and the five pooled maps."""
        maps = [x]
        for stage, convs in enumerate(CONVS, 1):
            for i in range(1, convs + 1):
                x = F.relu(getattr(self, f"conv{stage}_{i}")(x))
            x = F.max_pool2d(x, 3, 2 if stage < 4 else 1, 1, ceil_mode=True)
            maps.append(x)
        return maps


def dense(kernel: int, inputs: int, outputs: int, rate: int) -> nn.Conv2d:
    """A fully connected layer as a convolution; an even kernel keeps the size (asymmetric pad)."""
    return nn.Conv2d(inputs, outputs, kernel, dilation=rate)


def same(x, kernel: int, rate: int):
    """Pads so that the output has the input's size; the odd pixel goes right and below."""
    total = rate * (kernel - 1)
    return F.pad(x, (total // 2, total - total // 2, total // 2, total - total // 2))


class LargeFOV(Body):
    """Returns the scores at one eighth of the size."""

    def __init__(
        self, num_classes: int, kernel: int = 3, rate: int = 12, width: int = 1024, divide: int = 1
    ):
        super().__init__(divide)
        self.kernel, self.rate = kernel, rate
        self.fc6 = dense(kernel, 512 // divide, width, rate)
        self.fc7 = nn.Conv2d(width, width, 1)
        self.fc8 = nn.Conv2d(width, num_classes, 1)

    def forward(self, x):
        x = self.body(x)[-1]
        x = F.relu(self.fc6(same(x, self.kernel, self.rate)))
        return self.fc8(F.relu(self.fc7(x)))


class MScLargeFOV(Body):
    """LargeFOV whose classifier also sees 128 channels each of the image and of pool1 to pool4."""

    STRIDES = (8, 4, 2, 1, 1)

    def __init__(self, num_classes: int, width: int = 1024, branch: int = 128, divide: int = 1):
        super().__init__(divide)
        self.fc6 = dense(3, 512 // divide, width, 12)
        self.fc7 = nn.Conv2d(width, width, 1)
        inputs = (3, *[w // divide for w in WIDTHS[:4]])
        for i, (channels, stride) in enumerate(zip(inputs, self.STRIDES, strict=True)):
            self.add_module(f"msc{i}_conv1", nn.Conv2d(channels, branch, 3, stride))
            self.add_module(f"msc{i}_conv2", nn.Conv2d(branch, branch, 1))
        self.fc8 = nn.Conv2d(width + 5 * branch, num_classes, 1)

    def forward(self, x):
        maps = self.body(x)
        parts = [F.relu(self.fc7(F.relu(self.fc6(same(maps[-1], 3, 12)))))]
        rows, columns = parts[0].shape[2:]
        for i, (features, stride) in enumerate(zip(maps[:5], self.STRIDES, strict=True)):
            # One zero all around; where the size is not 8k + 1, as many as complete the grid.
            height, width = features.shape[2:]
            far = [(n - 1) * stride + 2 - size for n, size in ((columns, width), (rows, height))]
            features = F.pad(features, (1, far[0], 1, far[1]))
            y = F.relu(getattr(self, f"msc{i}_conv1")(features))
            parts.append(F.relu(getattr(self, f"msc{i}_conv2")(y)))
        return self.fc8(torch.cat(parts, 1))


class ASPP(Body):
    """Four branches of fc6, fc7, fc8 on pool5, their scores summed."""

    def __init__(
        self,
        num_classes: int,
        rates: tuple[int, ...] = (6, 12, 18, 24),
        width: int = 1024,
        divide: int = 1,
    ):
        super().__init__(divide)
        self.rates = rates
        for i, rate in enumerate(rates, 1):
            self.add_module(f"fc6_{i}", dense(3, 512 // divide, width, rate))
            self.add_module(f"fc7_{i}", nn.Conv2d(width, width, 1))
            self.add_module(f"fc8_{i}", nn.Conv2d(width, num_classes, 1))

    def forward(self, x):
        x = self.body(x)[-1]
        scores = []
        for i, rate in enumerate(self.rates, 1):
            y = F.relu(getattr(self, f"fc6_{i}")(same(x, 3, rate)))
            y = F.relu(getattr(self, f"fc7_{i}")(y))
            scores.append(getattr(self, f"fc8_{i}")(y))
        return sum(scores)
