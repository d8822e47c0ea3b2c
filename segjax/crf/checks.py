"""What a caller may get wrong, said before anything is compiled."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from segjax.crf.kernels import Bilateral, Features, Kernel, Spatial, extent
from segjax.crf.operators import FILTERS, NORMALIZATIONS, SPATIAL_FILTERS
from segjax.crf.simplex import key_space


def options(
    *,
    num_iterations: int,
    normalization: str,
    filter: str,
    spatial_filter: str,
    capacity: int | None,
) -> None:
    """Checks the options of `mean_field`."""
    _choice("normalization", normalization, NORMALIZATIONS)
    _choice("filter", filter, FILTERS)
    _choice("spatial_filter", spatial_filter, SPATIAL_FILTERS)
    if num_iterations < 0:
        raise ValueError(f"num_iterations is {num_iterations}; it is 0 or more")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity is {capacity}; it is a number of vertices, see segjax.crf.plan")


def _choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
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
            f"Features.values has shape {values}; for these images it is {[*shape, 'd']}"
        )
    if not (np.shape(kernel.extent) == values[-1:] and all(e >= 0 for e in kernel.extent)):
        raise ValueError(
            f"Features.extent is {kernel.extent}; it holds largest minus smallest value of each of"
            f" the {values[-1]} features"
        )


def as_array(name: str, value: Any) -> Array | np.ndarray:
    """Returns arrays of numpy and JAX as they are, and lists and PIL images as numpy arrays."""
    if isinstance(value, (np.ndarray, jax.Array)):
        return value
    mode = getattr(value, "mode", "RGB")
    if mode != "RGB":
        raise ValueError(f"{name} is a PIL image of mode {mode!r}; write {name}.convert('RGB')")
    return np.asarray(value)


def image_form(image: Array) -> None:
    """Checks shape and dtype of an image, or of a batch."""
    shape = image.shape
    if len(shape) in (3, 4) and shape[-3] == 3 != shape[-1]:
        raise ValueError(f"image has shape {shape}: {_channels_first(shape)}")
    if len(shape) not in (3, 4) or shape[-1] != 3:
        raise ValueError(f"image has shape {shape}; it is RGB, [H, W, 3] or [B, H, W, 3]")
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"image is {image.dtype}; it is uint8, or floating point in 0..255")


def _channels_first(shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return "looks like CHW; transpose(1, 2, 0)"
    return "looks like NCHW; transpose(0, 2, 3, 1)"


def shapes(logits: Array, image: Array, mask: Array | None, kernels: tuple[Kernel, ...]) -> None:
    """Checks what is known without looking at values: shapes, dtypes, kernels."""
    if logits.ndim not in (3, 4):
        raise ValueError(f"logits have shape {logits.shape}; they are [H, W, C], or [B, H, W, C]")
    if 0 in logits.shape:
        raise ValueError(f"logits are empty: their shape is {logits.shape}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits are {logits.dtype}; they are floating point, class last")
    image_form(image)
    spatial = logits.shape[:-1]
    if image.shape[:-1] != spatial:
        batch, (height, width) = image.shape[:-3], image.shape[-3:-1]
        if logits.shape == (*batch, logits.shape[-3], height, width):
            raise ValueError(f"logits have shape {logits.shape}: {_channels_first(logits.shape)}")
        raise ValueError(
            f"image has shape {image.shape}, logits have {logits.shape}: the image must be"
            f" {[*spatial, 3]}, RGB at the size of the logits (segjax.ops.resize upsamples logits)"
        )
    mask_form(mask, spatial)
    kernel_forms(kernels, spatial, logits.shape[-1])


def mask_form(mask: Array | None, shape: tuple[int, ...]) -> None:
    """Checks a mask for images of a shape [H, W] or [B, H, W]."""
    if mask is not None and (mask.shape != shape or mask.dtype != bool):
        raise ValueError(
            f"mask is {mask.dtype} {list(mask.shape)}; for these images it is bool {list(shape)},"
            " true where there is a pixel"
        )


def kernel_forms(
    kernels: tuple[Kernel, ...], shape: tuple[int, ...], num_classes: int | None = None
) -> None:
    """Checks kernels for images [H, W] or [B, H, W]; their weights too if the classes are told."""
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
            _features(kernel, shape)
        if num_classes is not None:
            _weight(kernel, num_classes)


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


# What a pixel holds where its largest logit is not finite, and what to do about it.
_NAN = "NaN: look at the network that made them"
_CERTAIN = "+inf: give log(probability), or a large number; energies are minus the logits"
_EXCLUDED = "nothing but -inf: leave at least one class possible, or give 0 to all"


@jax.jit
def _survey(logits: Array, image: Array, mask: Array | None) -> tuple[Array, ...]:
    """The first pixel whose largest logit is not finite, if any, that logit; the image's range."""
    largest = logits.max(-1).reshape(-1)
    bad = ~jnp.isfinite(largest)
    if mask is not None:
        bad = bad & mask.reshape(-1)
    first = jnp.argmax(bad)
    return bad[first], first, largest[first], image.min(), image.max()


def values(logits: Array, image: Array, mask: Array | None) -> None:
    """Checks values, outside a compiled program only."""
    bad, first, largest, low, high = jax.device_get(_survey(logits, image, mask))
    if bad:
        *batch, row, column = np.unravel_index(first, logits.shape[:-1])
        pixel = f"row {row}, column {column}" + "".join(f" of image {i}" for i in batch)
        what = _NAN if np.isnan(largest) else _CERTAIN if largest > 0 else _EXCLUDED
        raise ValueError(f"logits at {pixel} are {what}")
    if image.dtype == jnp.uint8:
        return
    if not (low >= 0 and high <= 255):
        raise ValueError(
            f"image is in {low:g}..{high:g}; give the RGB image in 0..255, before normalisation"
        )
    if 0 < high <= 1:
        raise ValueError("image is in 0..1; give it in 0..255, as sigma_rgb is: image * 255")


def fits(count: int, capacity: int, kernels: tuple[Kernel, ...], height: int, width: int) -> None:
    """Checks that the lattice had the vertices that it needed, outside a compiled program only."""
    if count <= capacity:
        return
    largest = max(len(extent(k, height, width)) for k in kernels if not isinstance(k, Spatial))
    if count > (largest + 1) * height * width:
        raise ValueError("Features.values span more than Features.extent tells")
    raise ValueError(
        f"the image needs {count} lattice vertices and capacity is {capacity}: pass"
        " capacity=segjax.crf.plan(image, kernels), or leave it out"
    )
