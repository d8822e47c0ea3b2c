"""SegNet and SegNet-Basic in plain torch, with the layer names of the released prototxts."""

import torch
import torch.nn.functional as F
from torch import nn

CONVS = (2, 2, 3, 3, 3)
WIDTHS = (64, 128, 256, 512, 512)


class BN(nn.Module):
    """The layer of the Caffe fork: batch statistics while learning, scale and shift afterwards."""

    def __init__(self, channels: int, learn: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.full((1, channels, 1, 1), 0.001))
        self.learn = learn

    def forward(self, x):
        if self.learn:
            mean = x.mean((0, 2, 3), keepdim=True)
            variance = x.var((0, 2, 3), correction=0, keepdim=True)
            x = (x - mean) / (variance + 1e-9).sqrt()
        return x * self.weight + self.bias


class SegNet(nn.Module):
    """Returns the scores at the input's size; `divide` divides every number of channels."""

    def __init__(self, num_classes: int, learn: bool = False, divide: int = 1):
        super().__init__()
        widths = [w // divide for w in WIDTHS]
        inputs = 3
        for stage, (width, convs) in enumerate(zip(widths, CONVS, strict=True), 1):
            for i in range(1, convs + 1):
                self.add(f"conv{stage}_{i}", inputs, width, learn)
                inputs = width
        for stage in (5, 4, 3, 2, 1):
            for i in range(CONVS[stage - 1], 0, -1):
                # The last convolution of a decoder stage reduces to the width of the next one.
                outputs = widths[max(stage - 2, 0)] if i == 1 else widths[stage - 1]
                if (stage, i) == (1, 1):
                    self.conv1_1_D = nn.Conv2d(inputs, num_classes, 3, padding=1)
                else:
                    self.add(f"conv{stage}_{i}_D", inputs, outputs, learn)
                inputs = outputs

    def add(self, name: str, inputs: int, outputs: int, learn: bool):
        self.add_module(name, nn.Conv2d(inputs, outputs, 3, padding=1))
        self.add_module(f"{name}_bn", BN(outputs, learn))

    def block(self, name: str, x):
        return F.relu(getattr(self, f"{name}_bn")(getattr(self, name)(x)))

    def forward(self, x):
        pools = []
        for stage, convs in enumerate(CONVS, 1):
            for i in range(1, convs + 1):
                x = self.block(f"conv{stage}_{i}", x)
            size = x.shape[2:]
            x, indices = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
            pools.append((indices, size))
        for stage in (5, 4, 3, 2, 1):
            indices, size = pools.pop()
            x = unpool(x, indices, size)
            for i in range(CONVS[stage - 1], 0, -1):
                if (stage, i) == (1, 1):
                    return self.conv1_1_D(x)
                x = self.block(f"conv{stage}_{i}_D", x)
        raise AssertionError("the classifier is the last layer")


class SegNetBasic(nn.Module):
    """Four 7x7 stages of `width` channels; no ReLU in the decoder."""

    def __init__(self, num_classes: int, learn: bool = False, width: int = 64):
        super().__init__()
        for i in (1, 2, 3, 4):
            self.add_module(f"conv{i}", nn.Conv2d(3 if i == 1 else width, width, 7, padding=3))
            self.add_module(f"conv{i}_bn", BN(width, learn))
        for i in (4, 3, 2, 1):
            self.add_module(f"conv_decode{i}", nn.Conv2d(width, width, 7, padding=3))
            self.add_module(f"conv_decode{i}_bn", BN(width, learn))
        self.conv_classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, x):
        x = F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)
        pools = []
        for i in (1, 2, 3, 4):
            x = F.relu(getattr(self, f"conv{i}_bn")(getattr(self, f"conv{i}")(x)))
            size = x.shape[2:]
            x, indices = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
            pools.append((indices, size))
        for i in (4, 3, 2, 1):
            x = unpool(x, *pools.pop())
            x = getattr(self, f"conv_decode{i}_bn")(getattr(self, f"conv_decode{i}")(x))
        return self.conv_classifier(x)


def unpool(x, indices, size: tuple[int, int]):
    """Puts every value at its index in a zero plane of `size`."""
    batch, channels = x.shape[:2]
    plane = x.new_zeros(batch, channels, size[0] * size[1])
    plane = plane.scatter(2, indices.flatten(2), x.flatten(2))
    return plane.reshape(batch, channels, *size)
