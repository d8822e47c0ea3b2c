"""ResNet (He et al., CVPR 2016) at any output stride: the body of DeepLab v2, v3 and PSPNet.

Parameter paths, counted from 1: `stem/conv1/kernel`, `stem/bn1/{scale,bias}` (the deep stem has
conv1 to conv3); `stage3/block2/conv1/kernel`, `stage3/block2/bn1/{scale,bias}` (conv1 to conv3,
bn1 to bn3); in the first block of stages 1 to 4 `stage3/block1/proj/kernel` and
`stage3/block1/bn_proj/{scale,bias}`. The statistics have the same paths with {mean,var}. Stage n is
torchvision's layer n, the papers' res(n+1) or block n. No variable depends on the output stride.
"""

import dataclasses
import functools

import flax.linen as nn
import jax

from segjax.models.layers import Norm, batch_norm, check_image, conv
from segjax.ops import max_pool

STAGE_SIZES = {  # depth: blocks per stage; 14 and 26 are for tests and small machines
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def plan(
    stage_sizes: tuple[int, ...],
    output_stride: int,
    *,
    multi_grid: tuple[int, ...] = (1, 1, 1),
    first_rate: str = "full",
) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Returns (stride, rate) of every block of every stage.

    From stage 2 on each stage halves the map until `output_stride` is reached; the stages after
    that double the rate instead.

    Args:
      stage_sizes: blocks per stage; stages after the fourth are the cascade of DeepLab v3.
      output_stride: input pixels per output pixel: a power of two, from 4.
      multi_grid: rates of the blocks of stage 4 and later, relative to the rate of their stage
        (DeepLab v3, section 3.2.1).
      first_rate: of the first block of a stage that doubles the rate. "full": the new rate, as in
        the papers; "previous": the rate before, as in torchvision. The stages of the cascade, for
        which torchvision has no weights, have the paper's always.

    Raises:
      ValueError: the output stride is not 4, 8, ... up to that of the last stage; stage 4 or a
        later one has more blocks than `multi_grid` has rates; or `first_rate` is another word.
    """
    strides = [4 * 2**i for i in range(len(stage_sizes))]
    if output_stride not in strides:
        raise ValueError(f"output_stride={output_stride}: use one of {strides}")
    if max(stage_sizes[3:], default=0) > len(multi_grid):
        raise ValueError(f"multi_grid={multi_grid}: stage 4 needs {max(stage_sizes[3:])} rates")
    if first_rate not in ("full", "previous"):
        raise ValueError(f"first_rate={first_rate!r}: use 'full' or 'previous' (torchvision)")
    stages, rate = [], 1
    for i, size in enumerate(stage_sizes):
        halves, before = 4 < strides[i] <= output_stride, rate
        rate *= 2 if strides[i] > output_stride else 1
        grid = multi_grid[:size] if i >= 3 else (1,) * size
        rates = [rate * g for g in grid]
        if first_rate == "previous" and i < 4:
            rates[0] = before * grid[0]
        stages.append(tuple((2 if halves and j == 0 else 1, r) for j, r in enumerate(rates)))
    return tuple(stages)


class Stem(nn.Module):
    """Reduces the image by four: [B, H, W, 3] to [B, H/4, W/4, C] (C: 64, deep stem 128).

    The maps of odd sizes are (H + 1) / 2, as 321 -> 161 -> 81. At an even size Caffe's pooling
    (`ceil_mode`) gives one row more than torch's.
    """

    kind: str = "plain"  # "plain": one 7x7 convolution; "deep": three 3x3, PSPNet's
    ceil_mode: bool = False  # of the max-pool: Caffe's True, torch's False
    width: int = 64
    norm: Norm = dataclasses.field(default_factory=Norm)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
        layers = {  # (kernel, stride, channels) of each convolution
            "plain": [(7, 2, self.width)],
            "deep": [(3, 2, self.width), (3, 1, self.width), (3, 1, 2 * self.width)],
        }
        if self.kind not in layers:
            raise ValueError(f"stem={self.kind!r}: use one of {sorted(layers)}")
        x = image
        for i, (kernel, stride, features) in enumerate(layers[self.kind], start=1):
            x = conv(features, kernel, self.dtype, f"conv{i}", stride=stride)(x)
            x = nn.relu(batch_norm(self.norm, train, self.dtype, f"bn{i}")(x))  # [B, H/2, W/2, C]
        return max_pool(x, 3, stride=2, padding=1, ceil_mode=self.ceil_mode)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut: [B, H, W, C] to [B, H/stride, W/stride, 4F]."""

    features: int  # F, of the 3x3 convolution
    stride: int = 1
    rate: int = 1
    stride_in: str = "3x3"  # the convolution that has the stride: "3x3" (torch) or "1x1" (Caffe)
    norm: Norm = dataclasses.field(default_factory=Norm)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.stride_in not in ("1x1", "3x3"):
            raise ValueError(f"stride_in={self.stride_in!r}: use '3x3' (torch) or '1x1' (Caffe)")
        bn = functools.partial(batch_norm, self.norm, train, self.dtype)
        first, second = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
        y = conv(self.features, 1, self.dtype, "conv1")(x[:, ::first, ::first])
        y = nn.relu(bn("bn1")(y))
        y = conv(self.features, 3, self.dtype, "conv2", stride=second, rate=self.rate)(y)
        y = nn.relu(bn("bn2")(y))
        y = bn("bn3")(conv(4 * self.features, 1, self.dtype, "conv3")(y))

        shortcut = x[:, :: self.stride, :: self.stride]
        if x.shape[-1] != y.shape[-1]:
            shortcut = bn("bn_proj")(conv(y.shape[-1], 1, self.dtype, "proj")(shortcut))
        return nn.relu(y + shortcut)


class Stage(nn.Module):
    """Bottlenecks `block1`, `block2`, ... with the strides and rates of a plan."""

    features: int
    blocks: tuple[tuple[int, int], ...]  # (stride, rate) of each
    stride_in: str = "3x3"
    norm: Norm = dataclasses.field(default_factory=Norm)
    dtype: str = "float32"
    remat: bool = False  # see ResNet

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        # Argument 2 of Bottleneck.__call__ is `train`.
        block = nn.remat(Bottleneck, static_argnums=2) if self.remat else Bottleneck
        for i, (stride, rate) in enumerate(self.blocks, start=1):
            fields = (self.features, stride, rate, self.stride_in, self.norm, self.dtype)
            x = block(*fields, name=f"block{i}")(x, train)
        return x


class ResNet(nn.Module):
    """Maps float [B, H, W, 3] to "stem", "stage1" ... "stage4" and the cascade's "stage5" ...

    Stage n has min(64 * 2**(n - 1), 512) * 4 channels (times width / 64) and lies at stride 4, 8,
    16, 32, but never above `output_stride`.
    """

    depth: int = 101  # a key of STAGE_SIZES
    output_stride: int = 32  # input pixels per pixel of the last stage
    multi_grid: tuple[int, ...] = (1, 1, 1)  # times the stage's rate, from stage 4 on
    cascade: int = 0  # copies of stage 4 that follow it; 3: DeepLab v3's "block7"
    stem: str = "plain"  # "plain": one 7x7 convolution; "deep": three 3x3
    stride_in: str = "3x3"  # the convolution that has the stride: "3x3" (torch) or "1x1" (Caffe)
    first_rate: str = "full"  # or "previous", see `plan`
    ceil_mode: bool = False  # of the stem's max-pool: Caffe's True, torch's False
    width: int = 64
    norm: Norm = dataclasses.field(default_factory=Norm)
    dtype: str = "float32"
    remat: bool = False  # the backward pass computes the blocks again instead of keeping their maps

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        check_image(image)
        if self.depth not in STAGE_SIZES:
            raise ValueError(f"depth={self.depth}: use one of {sorted(STAGE_SIZES)}")
        sizes = STAGE_SIZES[self.depth]
        sizes += sizes[-1:] * self.cascade
        stages = plan(
            sizes, self.output_stride, multi_grid=self.multi_grid, first_rate=self.first_rate
        )
        stem = Stem(self.stem, self.ceil_mode, self.width, self.norm, self.dtype, name="stem")
        x = stem(image, train)
        ends = {"stem": x}
        for i, blocks in enumerate(stages, start=1):
            features = self.width * min(2 ** (i - 1), 8)
            fields = (features, blocks, self.stride_in, self.norm, self.dtype, self.remat)
            x = ends[f"stage{i}"] = Stage(*fields, name=f"stage{i}")(x, train)
        return ends
