"""Normalisation without parameters or statistics."""

import jax
import jax.numpy as jnp


def local_response_norm(
    x: jax.Array, *, size: int, alpha: float, beta: float, k: float
) -> jax.Array:
    """Divides each value by a power of the energy of its neighbouring channels.

    `y[c] = x[c] / (k + alpha / size * sum(x[c']**2)) ** beta`, the sum over the `size` channels
    around `c`, zeros outside. This is Caffe's rule and PyTorch's; TensorFlow's `lrn` does not
    divide alpha by the window.

    Args:
      x: Float array [..., C].
      size: Channels in the window; odd, as Caffe demands.
      alpha: Weight of the mean square of the window.
      beta: Exponent.
      k: Added to the mean square.

    Returns:
      An array of the shape and dtype of `x`; bfloat16 and float16 are computed in float32.

    Raises:
      ValueError: If `size` is not a positive odd number.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"local_response_norm: size={size}; use a positive odd window.")
    wide = x.astype(x.dtype if x.dtype.itemsize > 4 else jnp.float32)
    channels = x.shape[-1]
    border = [(0, 0)] * (x.ndim - 1) + [(size // 2, size // 2)]
    square = jnp.pad(jnp.square(wide), border)
    energy = sum(square[..., i : i + channels] for i in range(size))
    return (wide * (k + alpha / size * energy) ** -beta).astype(x.dtype)
