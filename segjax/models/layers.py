"""Layers that several networks share: convolution, BatchNorm, a head, unpooling."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import ops
from segjax.models.atrous import AtrousConv, add_bias

HE_NORMAL = nn.initializers.he_normal()
CHANNELS = (1, 3, 4)  # of pictures


def check_image(image: jax.Array) -> None:
    """Raises ValueError, with what to write instead, if an image batch is not [B, H, W, C]."""
    if image.ndim == 4 and (image.shape[-1] in CHANNELS or image.shape[1] not in CHANNELS):
        return
    mends = {3: "add the batch axis, image[None]", 4: "looks like NCHW; transpose(0, 2, 3, 1)"}
    mend = mends.get(image.ndim, "four axes are needed")
    raise ValueError(f"expected NHWC, got {image.shape}: {mend}")


@dataclasses.dataclass(unsafe_hash=True)
class Norm:
    """How a network's BatchNorm layers behave."""

    decay: float = 0.9  # of the running statistics: Flax's momentum, one minus torch's
    epsilon: float = 1e-5
    frozen: bool = False  # running statistics are used, and they and the affine stay as they are
    axis_name: str | None = None  # mapped axis over which batch statistics are shared


def batch_norm(
    norm: Norm, train: bool, dtype: str, name: str, shift: float = 0.0
) -> Callable[[jax.Array], jax.Array]:
    """Returns the BatchNorm layer that `norm` describes, with float32 statistics and affine.

    The name starts with "bn": the optimiser finds the parameters to freeze by that. `shift` is the
    initial bias.
    """
    layer = nn.BatchNorm(
        use_running_average=norm.frozen or not train,
        momentum=norm.decay,
        epsilon=norm.epsilon,
        dtype=jnp.float32,
        bias_init=nn.initializers.constant(shift),
        axis_name=None if norm.frozen else norm.axis_name,
        name=name,
    )
    # Flax mixes types on its way to `dtype`, which strict promotion forbids: it sees float32 alone.
    return lambda x: layer(x.astype(jnp.float32)).astype(dtype)


def conv(
    features: int,
    size: int,
    dtype: str,
    name: str,
    *,
    stride: int = 1,
    rate: int = 1,
    use_bias: bool = False,
    kernel_init: Callable[..., Any] = HE_NORMAL,
) -> nn.Module:
    """Returns a square convolution, padded by `rate * (size - 1) / 2` zeros on each side.

    The output is as large as the input divided by the stride, rounded up.
    """
    shared = {"dtype": dtype, "kernel_init": kernel_init, "name": name}
    if stride == 1:
        return AtrousConv(features, (size, size), rate, use_bias, **shared)
    pad = rate * (size - 1) // 2
    kind = BiasedConv if use_bias else nn.Conv
    return kind(features, (size, size), stride, pad, kernel_dilation=rate, use_bias=False, **shared)


class BiasedConv(nn.Conv):
    """`nn.Conv(use_bias=False)` and a bias that is added in float32: see `atrous.add_bias`.

    The parameters are those of `nn.Conv` with its own bias. Maps float [B, H, W, C] to
    [B, h, w, features] in `dtype`.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        return add_bias(y, self.param("bias", nn.initializers.zeros, (self.features,)))


class FCNHead(nn.Module):
    """3x3 convolution, BatchNorm, ReLU, dropout, 1x1 convolution to class scores.

    Maps float [B, H, W, C] to float32 [B, H, W, num_classes]. Parameter paths: `conv/kernel`,
    `bn/{scale,bias}`, `logits/{kernel,bias}`.
    """

    num_classes: int
    features: int
    dropout: float = 0.0
    dropout_dims: tuple[int, ...] = ()  # axes dropped together; (1, 2): whole channels
    norm: Norm = dataclasses.field(default_factory=Norm)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = conv(self.features, 3, self.dtype, "conv")(x)
        x = nn.relu(batch_norm(self.norm, train, self.dtype, "bn")(x))
        x = nn.Dropout(self.dropout, self.dropout_dims, deterministic=not train)(x)
        logits = conv(self.num_classes, 1, self.dtype, "logits", use_bias=True)
        return logits(x).astype(jnp.float32)


class MaxUnpool(nn.Module):
    """`segjax.ops.max_unpool` as a layer, without parameters.

    Maps float [B, h, w, C] and the int32 positions of their maxima to [B, H, W, C]. The fields are
    the geometry of the pooling. Windows that do not overlap take the fast form.

    >>> x = jnp.array([[1.0, 2.0, 5.0], [4.0, 3.0, 0.0]])[None, :, :, None]
    >>> values, indices = ops.max_pool_with_argmax(x, window=2, ceil_mode=True)
    >>> MaxUnpool(window=2).apply({}, values, indices, output_size=x.shape[1:3])[0, :, :, 0]
    Array([[0., 0., 5.],
           [4., 0., 0.]], dtype=float32)
    """

    window: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None  # that of the window if not given
    padding: int | tuple[int, int] = 0

    def __call__(self, x: jax.Array, indices: jax.Array, output_size: tuple[int, int]) -> jax.Array:
        return ops.max_unpool(
            x,
            indices,
            output_size,
            window=self.window,
            stride=self.stride,
            padding=self.padding,
        )
