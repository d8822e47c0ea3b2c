"""SegNet and SegNet-Basic (Badrinarayanan, Kendall, Cipolla, PAMI 2017), and the Bayesian variant.

An encoder of convolutions and 2x2 max pools that remember where each maximum was; a decoder that
mirrors it, putting values back where the maxima came from and filling in by convolution. Nothing
but the positions passes between the two. The layers are those of the authors' prototxts
(SegNet-Tutorial, Models/segnet_train.prototxt and segnet_basic_train.prototxt): convolutions with
bias, He-normal; BatchNorm with scale 1 and shift 0.001.

Deviations: `norm.epsilon` is 1e-5; the Caffe layer has 1e-9. The variance of a dead channel is
nothing but float32 rounding, which 1e-9 would magnify by up to 30,000; the variance of a living
channel is about one, after the first convolution thousands. BatchNorm keeps running averages; the
Caffe layer has none and needs statistics measured after training, which
`train.recompute_batch_stats` measures. The paper says that SegNet-Basic has no biases; the prototxt
has them, and before BatchNorm they change nothing. The local contrast normalisation of the paper is
the prototxt's local response normalisation.

The prototxts train the biases of all convolutions, including the classifier's, twice as fast and
without weight decay: `optim.lr_multipliers={r"(conv[^/]*|classifier)/bias$": 2.0}`, and the same
expression in `optim.no_decay`. In SegNet, not in SegNet-Basic, the shifts of BatchNorm have no
decay either: `optim.no_decay=("bias$",)`. The input is BGR, 0..255, without mean subtraction.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.models.layers import Norm, batch_norm, check_image, conv
from segjax.ops import local_response_norm, max_pool_with_argmax, max_unpool

DEPTHS = (2, 2, 3, 3, 3)  # convolutions of each stage, as in VGG16
SHIFT = 0.001  # of every BatchNorm at the start

Pool = tuple[jax.Array, tuple[int, int]]  # the positions of the maxima, and the size before


class Stage(nn.Module):
    """3x3 convolutions, each with BatchNorm and ReLU, size kept.

    Parameter paths: `conv1/{kernel,bias}`, `bn1/{scale,bias}`, with the numbers given.
    """

    features: tuple[int, ...]  # channels of each convolution
    numbers: tuple[int, ...]  # in their names
    norm: Norm
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for features, number in zip(self.features, self.numbers):
            x = _conv(features, 3, self.dtype, f"conv{number}")(x)
            x = nn.relu(batch_norm(self.norm, train, self.dtype, f"bn{number}", SHIFT)(x))
        return x


def _stage(remat: bool) -> type[Stage]:
    return nn.remat(Stage, static_argnums=2) if remat else Stage


class Encoder(nn.Module):
    """The thirteen convolutions of VGG16 with BatchNorm, and five pools.

    Maps [B, H, W, 3] to [B, H/32, W/32, 512], every halving rounded up, and the five pools.
    Parameter paths: `stage1/conv1`, `stage1/bn1` ... `stage5/bn3`.
    """

    widths: tuple[int, ...]
    norm: Norm
    dtype: str
    remat: bool = False  # see SegNet

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, dropout: Callable[[jax.Array], jax.Array]
    ) -> tuple[jax.Array, list[Pool]]:
        pools = []
        make = _stage(self.remat)
        for i, (width, depth) in enumerate(zip(self.widths, DEPTHS), start=1):
            stage = make(
                (width,) * depth,
                tuple(range(1, depth + 1)),
                self.norm,
                self.dtype,
                name=f"stage{i}",
            )
            x, pool = _pool(stage(x, train))
            pools.append(pool)
            x = dropout(x) if i >= 3 else x
        return x, pools


class Decoder(nn.Module):
    """The encoder's mirror: each stage unpools, and its last convolution has the next width.

    Maps [B, H/32, W/32, 512] and the pools to [B, H, W, 64]. The last convolution of stage 1 is the
    classifier, a layer of SegNet itself. Parameter paths: `stage5/conv3`, `stage5/bn3` ...
    `stage2/bn1`, `stage1/conv2`, `stage1/bn2`.
    """

    widths: tuple[int, ...]
    norm: Norm
    dtype: str
    remat: bool = False  # see SegNet

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        pools: list[Pool],
        train: bool,
        dropout: Callable[[jax.Array], jax.Array],
    ) -> jax.Array:
        make = _stage(self.remat)
        for i in (5, 4, 3, 2, 1):
            width, depth = self.widths[i - 1], DEPTHS[i - 1]
            features = (width,) * (depth - 1) + self.widths[i - 2 : i - 1]
            numbers = tuple(range(depth, depth - len(features), -1))
            stage = make(features, numbers, self.norm, self.dtype, name=f"stage{i}")
            x = stage(_unpool(x, pools[i - 1]), train)
            x = dropout(x) if i >= 3 else x
        return x


class SegNet(nn.Module):
    """SegNet on the layers of VGG16: 29,449,355 parameters for 11 classes.

    Bayesian SegNet (Kendall, Badrinarayanan, Cipolla, BMVC 2017) is `dropout=0.5`: after the pools
    of encoder stages 3, 4, 5 and after decoder stages 5, 4, 3, as in the authors'
    bayesian_segnet_train.prototxt. Dropout is active in training, and in evaluation if a key named
    "dropout" is given, as `monte_carlo` does.

    Maps float [B, H, W, 3] of any size to {"logits": float32 [B, H, W, num_classes]}.
    Parameter paths: `encoder/stage1/conv1/{kernel,bias}`, `encoder/stage1/bn1/{scale,bias}` ...
    `decoder/stage5/conv3` ... `decoder/stage1/bn2`, `classifier`.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # channels of the stages
    dropout: float = 0.0  # probability that an activation is dropped
    norm: Norm = dataclasses.field(default_factory=Norm)
    dtype: str = "float32"
    remat: bool = False  # the backward pass computes the stages again instead of keeping their maps

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        check_image(image)
        dropout = _dropout(self, train)
        encoder = Encoder(self.widths, self.norm, self.dtype, self.remat, name="encoder")
        x, pools = encoder(image, train, dropout)
        decoder = Decoder(self.widths, self.norm, self.dtype, self.remat, name="decoder")
        x = decoder(x, pools, train, dropout)
        logits = _conv(self.num_classes, 3, self.dtype, "classifier")(x)
        return {"logits": logits.astype(jnp.float32)}


class SegNetBasic(nn.Module):
    """SegNet-Basic, four stages of one 7x7 convolution: 1,416,587 parameters for 11 classes.

    The decoder has no ReLU. Bayesian SegNet-Basic is `dropout=0.5`: after pools 3 and 4 and after
    decoders 4 and 3, as in the authors' bayesian_segnet_basic_train.prototxt.

    Maps float [B, H, W, 3] of any size to {"logits": float32 [B, H, W, num_classes]}.
    Parameter paths: `conv1/{kernel,bias}`, `bn1/{scale,bias}` ... `bn4`, `conv_decode4`,
    `bn_decode4` ... `bn_decode1`, `classifier`.
    """

    num_classes: int
    width: int = 64  # channels of every hidden layer
    dropout: float = 0.0  # probability that an activation is dropped
    norm: Norm = dataclasses.field(default_factory=Norm)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        check_image(image)
        dropout = _dropout(self, train)
        x = local_response_norm(image, size=5, alpha=1e-4, beta=0.75, k=1.0)
        pools = []
        for i in (1, 2, 3, 4):
            x = _conv(self.width, 7, self.dtype, f"conv{i}")(x)
            x = nn.relu(batch_norm(self.norm, train, self.dtype, f"bn{i}", SHIFT)(x))
            x, pool = _pool(x)  # [B, H / 2^i, W / 2^i, 64]
            pools.append(pool)
            x = dropout(x) if i >= 3 else x
        for i in (4, 3, 2, 1):
            x = _conv(self.width, 7, self.dtype, f"conv_decode{i}")(_unpool(x, pools[i - 1]))
            x = batch_norm(self.norm, train, self.dtype, f"bn_decode{i}", SHIFT)(x)
            x = dropout(x) if i >= 3 else x
        logits = _conv(self.num_classes, 1, self.dtype, "classifier")(x)
        return {"logits": logits.astype(jnp.float32)}


def monte_carlo(
    model: SegNet | SegNetBasic, variables: dict, image: jax.Array, key: jax.Array, *, samples: int
) -> tuple[jax.Array, jax.Array]:
    """Predicts with Bayesian SegNet: averages the network over random dropout masks.

    Mean and uncertainty are those of the authors' test_bayesian_segnet.py. Memory does not grow
    with the number of samples.

    Args:
      model: A network with dropout.
      variables: Its "params" and "batch_stats".
      image: Float [B, H, W, 3], normalised.
      key: Of the dropout masks.
      samples: Number of masks, and of passes through the network.

    Returns:
      The mean class probabilities, float32 [B, H, W, num_classes], and the uncertainty of each
      pixel, float32 [B, H, W]: the variance of the probabilities over the samples, averaged over
      the classes.

    Raises:
      ValueError: If the network has no dropout, or `samples` is not positive.
    """
    if not model.dropout > 0:
        raise ValueError(
            "monte_carlo: the model has dropout=0, so all samples would be equal; train and "
            f"predict with {type(model).__name__}(dropout=0.5)."
        )
    if samples < 1:
        raise ValueError(f"monte_carlo: samples={samples}; at least 1 is needed.")
    return _monte_carlo(model, variables, image, key, samples)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _monte_carlo(
    model: SegNet | SegNetBasic, variables: dict, image: jax.Array, key: jax.Array, samples: int
) -> tuple[jax.Array, jax.Array]:
    def add(sums: tuple, sample: tuple) -> tuple[tuple, None]:
        # Welford's recurrence: accurate also where the variance is much smaller than the mean.
        mean, squares = sums
        count, key = sample
        probs = jax.nn.softmax(model.apply(variables, image, rngs={"dropout": key})["logits"])
        change = probs - mean
        mean = mean + change / count
        squares = squares + change * (probs - mean)
        return (mean, squares), None

    zero = jnp.zeros((*image.shape[:3], model.num_classes), jnp.float32)
    counts = jnp.arange(1, samples + 1, dtype=jnp.float32)
    sums, _ = jax.lax.scan(add, (zero, zero), (counts, jax.random.split(key, samples)))
    mean, squares = sums
    return mean, squares.mean(axis=-1) / samples


def _conv(features: int, size: int, dtype: str, name: str) -> nn.Module:
    msra = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # Caffe's name and rule
    return conv(features, size, dtype, name, use_bias=True, kernel_init=msra)


def _dropout(model: SegNet | SegNetBasic, train: bool) -> nn.Dropout:
    return nn.Dropout(model.dropout, deterministic=not (train or model.has_rng("dropout")))


def _pool(x: jax.Array) -> tuple[jax.Array, Pool]:
    size = x.shape[1:3]
    x, indices = max_pool_with_argmax(x, 2, ceil_mode=True)
    return x, (indices, size)


def _unpool(x: jax.Array, pool: Pool) -> jax.Array:
    indices, size = pool
    return max_unpool(x, indices, size, window=2)
