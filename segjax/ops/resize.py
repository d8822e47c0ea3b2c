"""Resampling of images, logits and label maps, with the rules spelled out."""

import jax
import jax.numpy as jnp
import numpy as np


def resize(
    x: jax.Array, size: tuple[int, int], *, align_corners: bool, antialias: bool
) -> jax.Array:
    """Resizes bilinearly; one small matrix product per axis.

    Agrees with `torch.nn.functional.interpolate(mode="bilinear")` under the same two options.
    Without `antialias` the two nearest source pixels are read even when shrinking.

    Args:
        x: Float array [..., H, W, C].
        size: Height and width of the result, pixels.
        align_corners: True: the centres of the corner pixels coincide, source = i * (in - 1) /
            (out - 1), the rule of Caffe's Interp and of DeepLab and PSPNet. False: the borders of
            the images coincide, source = (i + 0.5) * in / out - 0.5.
        antialias: When shrinking, widen the triangle by the factor, so that every source pixel
            counts. Together with `align_corners` it follows PyTorch, which then keeps the factor
            (in - 1) / (out - 1) and drops the alignment: source = (i + 0.5) * factor - 0.5.

    Returns:
        Array [..., size[0], size[1], C] of the dtype of `x`; bfloat16 and float16 are computed in
        float32.

    Raises:
        ValueError: If `x` is no float array of three or more axes, or a size is not positive.
    """
    _check("resize", x, 3, size)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"resize: got {x.dtype}; interpolation needs floats (labels: resize_labels)."
        )
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    y = x.astype(dtype)
    for axis, out in ((-3, size[0]), (-2, size[1])):
        if x.shape[axis] != out or antialias:
            weights = jnp.asarray(_weights(x.shape[axis], out, align_corners, antialias), dtype)
            rule = "oh,...hwc->...owc" if axis == -3 else "ow,...hwc->...hoc"
            y = jnp.einsum(rule, weights, y, precision=jax.lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def resize_labels(label: jax.Array, size: tuple[int, int], *, align_corners: bool) -> jax.Array:
    """Resizes a label map by taking the nearest source pixel.

    Args:
        label: Integer array [..., H, W].
        size: Height and width of the result, pixels.
        align_corners: True: source = round(i * (in - 1) / (out - 1)), so that from 8k+1 to k+1 it
            is `label[::8, ::8]`. False: the pixel that covers the centre, (i + 0.5) * in / out,
            PyTorch's "nearest-exact".

    Returns:
        Array [..., size[0], size[1]] of the dtype of `label`.

    Raises:
        ValueError: If `label` is no integer array of two or more axes, or a size is not positive.
    """
    _check("resize_labels", label, 2, size)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"resize_labels: got {label.dtype}; class ids are integers.")
    rows, columns = (
        _nearest(label.shape[axis], out, align_corners)
        for axis, out in ((-2, size[0]), (-1, size[1]))
    )
    return label[..., rows[:, None], columns]


def _check(name: str, x: jax.Array, axes: int, size: tuple[int, int]) -> None:
    if x.ndim < axes:
        raise ValueError(f"{name}: got shape {x.shape}; at least {axes} axes are needed.")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name}: size={size}; give height and width, both at least 1.")


def _weights(size: int, out: int, align_corners: bool, antialias: bool) -> np.ndarray:
    """Returns the matrix [out, size] that resamples one axis."""
    if align_corners:
        factor = (size - 1) / (out - 1) if out > 1 else 0.0
    else:
        factor = size / out
    if align_corners and not antialias:
        source = np.arange(out) * factor
    else:
        source = (np.arange(out) + 0.5) * factor - 0.5
    width = 1.0
    if antialias:
        width = max(factor, 1.0)
    else:
        source = source.clip(0, size - 1)
    distance = np.abs(np.arange(size) - source[:, None]) / width
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def _nearest(size: int, out: int, align_corners: bool) -> np.ndarray:
    """Returns the source position of each of `out` positions; exact, in integers."""
    index = np.arange(out)
    if not align_corners:
        return (2 * index + 1) * size // (2 * out)
    steps = max(out - 1, 1)
    return (2 * index * (size - 1) + steps) // (2 * steps)
