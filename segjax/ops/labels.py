"""Label maps: the ignored label, and resizing without mixing class ids."""

import jax
import jax.numpy as jnp
import numpy as np

IGNORE_LABEL = 255  # the id of void pixels and of padding, in every label map of the package


def resize_labels(label: jax.Array, size: tuple[int, int], *, align_corners: bool) -> jax.Array:
    """Resizes a label map by taking the nearest source pixel.

    Args:
      label: Integer array [..., H, W].
      size: Height and width of the result, pixels.
      align_corners: True: source = round(i * (in - 1) / (out - 1)), halves upwards, so that
        going from 8k+1 to k+1 pixels is `label[::8, ::8]`. False: the pixel that holds the
        centre, floor((i + 0.5) * in / out), PyTorch's "nearest-exact".

    Returns:
      Array [..., size[0], size[1]] of the dtype of `label`.

    Raises:
      ValueError: If `label` is no integer array of two or more axes, or a size is not positive.
    """
    if not jnp.issubdtype(label.dtype, jnp.integer) or label.ndim < 2:
        raise ValueError(
            f"resize_labels: got {label.dtype}{list(label.shape)}, needs integer "
            "[..., height, width]; resize interpolates floats, resize_labels picks class ids."
        )
    check_size("resize_labels", size)
    rows, columns = (_nearest(n, out, align_corners) for n, out in zip(label.shape[-2:], size))
    return label[..., rows[:, None], columns]


def check_size(name: str, size: tuple[int, int]) -> None:
    """Raises ValueError, with the name of the function, if `size` is not two positive numbers."""
    if len(size) != 2 or any(n < 1 for n in size):
        raise ValueError(f"{name}: size={size}; give height and width in pixels, at least 1.")


def _nearest(size: int, out: int, align_corners: bool) -> np.ndarray:
    """Returns the source position of each of `out` positions; exact, in integers."""
    index = np.arange(out)
    if not align_corners:
        return (2 * index + 1) * size // (2 * out)
    steps = max(out - 1, 1)
    return (2 * index * (size - 1) + steps) // (2 * steps)
