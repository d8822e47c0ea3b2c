"""What a caller may get wrong, said before anything is compiled."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from segjax.crf.kernels import Bilateral, Features, Kernel, Spatial, extent
from segjax.crf.lattice import key_space


def choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Checks an option that is one of a few words."""
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}; accepted are {', '.join(accepted)}")


def _positive(kernel: Kernel, name: str) -> None:
    sigma = getattr(kernel, name)
    if isinstance(sigma, jax.core.Tracer):
        raise ValueError(
            f"{type(kernel).__name__}.{name} is traced, but the tables depend on it: close over the"
            " kernel, or give features of your own (segjax.crf.Features), which may be traced"
        )
    if not (np.ndim(sigma) == 0 and math.isfinite(sigma) and sigma > 0):
        raise ValueError(
            f"{type(kernel).__name__}.{name} is {sigma}; it is a standard deviation, above 0"
        )


def _weight(kernel: Kernel, num_classes: int) -> None:
    shape = np.shape(kernel.weight)
    if shape not in ((), (num_classes,), (num_classes, num_classes)):
        raise ValueError(
            f"{type(kernel).__name__}.weight has shape {shape}; with {num_classes} classes it is a"
            f" number, [{num_classes}] or [{num_classes}, {num_classes}]"
        )


def _features(kernel: Features, shape: tuple[int, ...]) -> None:
    values = np.shape(kernel.values)
    if values[:-1] != shape:
        raise ValueError(
            f"Features.values has shape {values}; for these logits it is {[*shape, 'd']}"
        )
    if not (np.shape(kernel.extent) == values[-1:] and all(e >= 0 for e in kernel.extent)):
        raise ValueError(
            f"Features.extent is {kernel.extent}; it holds largest minus smallest value of each of"
            f" the {values[-1]} features"
        )


def shapes(logits: Array, image: Array, kernels: tuple[Kernel, ...]) -> None:
    """Checks what is known without looking at values: shapes, dtypes, kernels."""
    if np.ndim(logits) not in (3, 4):
        raise ValueError(
            f"logits have shape {np.shape(logits)}; they are [H, W, C], or [B, H, W, C]"
        )
    spatial = logits.shape[:-1]
    if 0 in logits.shape:
        raise ValueError(f"logits are empty: their shape is {logits.shape}")
    if np.shape(image) != (*spatial, 3):
        raise ValueError(
            f"image has shape {np.shape(image)}, logits have {logits.shape}: the image must be"
            f" {[*spatial, 3]}, RGB at the size of the logits (segjax.ops.resize upsamples logits)"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits are {logits.dtype}; they are floating point, class last")
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"image is {image.dtype}; it is uint8, or floating point in 0..255")
    if not isinstance(kernels, (tuple, list)) or not kernels:
        raise ValueError(
            f"kernels are {kernels!r}; give a tuple, as segjax.crf.PRESETS['deeplab_v2_resnet101']"
        )
    for kernel in kernels:
        if not isinstance(kernel, (Spatial, Bilateral, Features)):
            raise ValueError(f"{kernel!r} is not a kernel: use Spatial, Bilateral or Features")
        if isinstance(kernel, Spatial):
            _positive(kernel, "sigma")
        elif isinstance(kernel, Bilateral):
            _positive(kernel, "sigma_xy")
            _positive(kernel, "sigma_rgb")
        else:
            _features(kernel, spatial)
        _weight(kernel, logits.shape[-1])


def mask(mask: Array, logits: Array) -> None:
    """Checks the form of a mask."""
    if np.shape(mask) != logits.shape[:-1] or mask.dtype != bool:
        raise ValueError(
            f"mask is {mask.dtype} {list(np.shape(mask))}; for these logits it is bool"
            f" {list(logits.shape[:-1])}, true where there is a pixel"
        )


def keys_fit(kernels: tuple[Kernel, ...], height: int, width: int) -> None:
    """Checks that the vertices of each lattice can be told apart by 31 bits."""
    for kernel in kernels:
        if isinstance(kernel, Spatial):
            continue
        box = extent(kernel, height, width)
        if len(box) > 11:
            raise ValueError(f"the lattice takes up to 11 features, not {len(box)}")
        if key_space(box) >= 2**31:
            name = type(kernel).__name__
            raise ValueError(
                f"{name}: the features span {[round(e) for e in box]} standard deviations, more"
                " than the lattice can number; use larger standard deviations or filter='exact'"
            )


def values(logits: Array, image: Array) -> None:
    """Checks values, outside a compiled program only."""
    if bool(jnp.isnan(logits).any()):
        raise ValueError("logits hold NaN: look at the network that made them")
    if image.dtype == jnp.uint8:
        return
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 255):
        raise ValueError(
            f"image is in {low:g}..{high:g}; give the RGB image in 0..255, before normalisation"
        )
    if 0 < high <= 1:
        raise ValueError("image is in 0..1; give it in 0..255, as sigma_rgb is: image * 255")
