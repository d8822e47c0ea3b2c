"""DeepLab v1 (Chen et al., ICLR 2015): VGG16 with atrous convolution, LargeFOV, MSc branches.

Parameter paths: `backbone/stage1/conv1` ... `backbone/stage5/conv3`, `fc6`, `fc7`, `fc8`, and for
the multi-scale branches `msc0/conv1`, `msc0/conv2` (on the image) to `msc4/...` (on pool4), each
with {kernel,bias}.

Deviations: the CRF is segjax.crf, after the network. From scratch, the body starts He-normal; the
paper starts from ImageNet weights, fc6 and fc7 decimated (segjax.pretrained).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.models.atrous import AtrousConv
from segjax.models.layers import BiasedConv, conv
from segjax.models.vgg import VGG16

MSC_STRIDES = {"image": 8, "pool1": 4, "pool2": 2, "pool3": 1, "pool4": 1}  # to pool5's grid


def fc6_fc7(
    x: jax.Array,
    width: int,
    kernel_size: int,
    rate: int,
    train: bool,
    dtype: str,
    suffix: str = "",
) -> jax.Array:
    """VGG16's two hidden layers as convolutions `fc6` and `fc7`, with ReLU and dropout."""
    fc6 = AtrousConv(
        width,
        (kernel_size, kernel_size),
        rate=rate,
        use_bias=True,
        dtype=dtype,
        name=f"fc6{suffix}",
    )
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(fc6(x)))
    fc7 = conv(width, 1, dtype, f"fc7{suffix}", use_bias=True)
    return nn.Dropout(0.5, deterministic=not train)(nn.relu(fc7(x)))


class MultiScaleBranch(nn.Module):
    """Two layers that bring an early map to the grid of pool5 (DeepLab v1, section 3.3).

    Maps [B, H, W, C] to [B, *grid, 128] by a 3x3 convolution with the stride and a 1x1
    convolution, each with ReLU and dropout. Parameter paths: `conv1`, `conv2`.
    """

    grid: tuple[int, int]  # rows and columns of the result, about H / stride
    stride: int
    features: int = 128
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv1 = BiasedConv(
            self.features,
            (3, 3),
            strides=self.stride,
            # At sizes of 8k + 1 one zero on each side; at others, as many as complete the grid.
            padding=[
                (1, (g - 1) * self.stride + 2 - n)
                for g, n in zip(self.grid, x.shape[1:3], strict=True)
            ],
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
            name="conv1",
        )
        conv2 = conv(self.features, 1, self.dtype, "conv2", use_bias=True)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(conv1(x)))
        return nn.Dropout(0.5, deterministic=not train)(nn.relu(conv2(x)))


class DeepLabV1(nn.Module):
    """DeepLab-LargeFOV, and by its fields the other rows of the paper's Table 2.

    | name in the paper | kernel_size | rate | width | parameters, 21 classes |
    |---|---|---|---|---|
    | DeepLab-CRF-LargeFOV | 3 | 12 | 1024 | 20,505,429 |
    | DeepLab-CRF-7x7 | 7 | 4 | 4096 | 134,346,581 |
    | DeepLab-CRF | 4 | 4 | 4096 | 65,140,565 |
    | DeepLab-CRF-4x4 | 4 | 8 | 4096 | 65,140,565 |

    With `msc` ("DeepLab-MSc") two-layer branches of 128 channels bring the image and the first four
    pools to the input of the classifier: 21,711,445 parameters with LargeFOV. The branches are
    concatenated, as the paper says; the released network sums a score per branch, the same linear
    map with five more biases per class. The paper trains only the new weights:
    `optim.freeze=("^backbone/", "^fc[67]/")` fixes the rest. The paper does not give the strides of
    the branches; these are those of a reimplementation.

    Maps float [B, H, W, 3] to {"logits": float32 [B, h, w, num_classes]} at output stride 8: 321
    becomes 41. The paper trains on labels shrunk to that grid.
    """

    num_classes: int
    kernel_size: int = 3  # of fc6
    rate: int = 12  # of fc6
    width: int = 1024  # channels of fc6 and fc7
    msc: tuple[str, ...] = ()  # maps with a multi-scale branch; all: tuple(MSC_STRIDES)
    body_width: int = 64  # channels of the first convolution
    dtype: str = "float32"
    remat: bool = False  # see vgg.VGG16

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        if set(self.msc) - set(MSC_STRIDES):
            raise ValueError(f"msc={self.msc}: the maps with a branch are {tuple(MSC_STRIDES)}")
        ends = VGG16(self.body_width, self.dtype, self.remat, name="backbone")(image)
        x = fc6_fc7(
            ends["pool5"], self.width, self.kernel_size, self.rate, train, self.dtype
        )  # [B, H/8, W/8, 1024]
        ends["image"] = image.astype(x.dtype)
        for i, (end, stride) in enumerate(MSC_STRIDES.items()):
            if end in self.msc:
                branch = MultiScaleBranch(x.shape[1:3], stride, dtype=self.dtype, name=f"msc{i}")
                x = jnp.concatenate([x, branch(ends[end], train)], axis=-1)
        fc8 = conv(
            self.num_classes,
            1,
            self.dtype,
            "fc8",
            use_bias=True,
            kernel_init=nn.initializers.normal(0.01),
        )
        return {"logits": fc8(x).astype(jnp.float32)}
