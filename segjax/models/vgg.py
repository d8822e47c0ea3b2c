"""The convolutions of VGG16 (Simonyan and Zisserman, ICLR 2015), and the body DeepLab makes of it.

Parameter paths: `stage3/conv2/{kernel,bias}`, counted from 1 as the paper's conv3_2.
"""

import flax.linen as nn
import jax

from segjax.models.layers import check_image, conv
from segjax.ops import max_pool

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class ConvStack(nn.Module):
    """3x3 convolutions with bias and ReLU, size kept: [B, H, W, C] to [B, H, W, features[-1]].

    Parameter paths: `conv1/{kernel,bias}`, `conv2/...`.
    """

    features: tuple[int, ...]  # channels of each convolution
    rate: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, features in enumerate(self.features, start=1):
            layer = conv(features, 3, self.dtype, f"conv{i}", rate=self.rate, use_bias=True)
            x = nn.relu(layer(x))
        return x


class VGG16(nn.Module):
    """The body of DeepLab v1 and v2 on VGG16: output stride 8 (DeepLab v1, section 3.1).

    All pools are 3x3 with one pixel of padding and Caffe's ceil rule; the last two keep their
    size, and the fifth stage has rate 2 instead.

    Maps float [B, H, W, 3] to "pool1" ... "pool5": [B, h, w, C] with C 64, 128, 256, 512, 512
    (times width / 64) and, from 321x321, 161, 81, 41, 41, 41 rows.
    Parameter paths: `stage1/conv1/{kernel,bias}` ... `stage5/conv3/{kernel,bias}`.
    """

    width: int = 64  # channels of the first stage
    dtype: str = "float32"
    remat: bool = False  # the backward pass computes the stages again instead of keeping their maps

    @nn.compact
    def __call__(self, image: jax.Array) -> dict[str, jax.Array]:
        check_image(image)
        x = image
        ends = {}
        make = nn.remat(ConvStack) if self.remat else ConvStack
        for i, stage in enumerate(STAGES, start=1):
            features = tuple(f * self.width // 64 for f in stage)
            x = make(features, rate=2 if i == 5 else 1, dtype=self.dtype, name=f"stage{i}")(x)
            x = max_pool(x, 3, stride=2 if i <= 3 else 1, padding=1, ceil_mode=True)
            ends[f"pool{i}"] = x
        return ends
