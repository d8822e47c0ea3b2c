"""The Gaussian kernels of a fully connected CRF, and the parameters published for segmentation.

The energy is sum_i u_i(x_i) + sum_{i<j} mu(x_i, x_j) k(i, j), k a sum of Gaussians of positions and
colours. A kernel's `weight` is its compatibility: a number w means Potts, mu = w [x_i != x_j].
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spatial:
    """exp(-|p_i - p_j|^2 / 2 sigma^2): smoothness, DeepLab's second kernel.

    Attributes:
      sigma: standard deviation in pixels.
      weight: float32 [] for Potts, [C] for one weight for each class, or [C, C] for a penalty of
        every pair of classes (the compatibility matrix mu).
    """

    sigma: float = dataclasses.field(metadata=STATIC)
    weight: Any = 3.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bilateral:
    """exp(-|p_i - p_j|^2 / 2 sigma_xy^2 - |I_i - I_j|^2 / 2 sigma_rgb^2): appearance.

    Attributes:
      sigma_xy: standard deviation of positions, in pixels (the papers' sigma_alpha).
      sigma_rgb: standard deviation of colours in 0..255 (the papers' sigma_beta).
      weight: as in `Spatial`.
    """

    sigma_xy: float = dataclasses.field(metadata=STATIC)
    sigma_rgb: float = dataclasses.field(metadata=STATIC)
    weight: Any = 10.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
    """exp(-|f_i - f_j|^2 / 2) for features of your own.

    Attributes:
      values: float32 [H, W, d], or [B, H, W, d] with a batch, in units of standard deviations.
      extent: largest minus smallest value of each feature, at least; d numbers.
      weight: as in `Spatial`.
    """

    values: Any
    extent: tuple[float, ...] = dataclasses.field(metadata=STATIC)
    weight: Any = 10.0


Kernel = Spatial | Bilateral | Features


def positions(height: int, width: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of all pixels over sigma: float32 [H W] each."""
    x = np.arange(width, dtype=np.float32) / np.float32(sigma)
    y = np.arange(height, dtype=np.float32) / np.float32(sigma)
    return np.tile(x, height), np.repeat(y, width)


def features(
    kernel: Bilateral | Features, image: Array, inside: Array | None = None
) -> tuple[Array, ...]:
    """The point of each pixel: d float32 arrays [H W], in units of standard deviations.

    Args:
      kernel: the kernel.
      image: [H, W, 3], 0..255.
      inside: float32 [H W], 1 for the pixels that exist; the others share the point of the first
        one that does, so that they need no vertices of a lattice.
    """
    exists = None if inside is None else inside > 0
    if isinstance(kernel, Features):
        values = kernel.values.reshape(-1, kernel.values.shape[-1]).astype(jnp.float32)
        found = tuple(v - jnp.min(v, where=exists, initial=jnp.inf) for v in values.T)
    else:
        height, width, _ = image.shape
        channels = image.reshape(-1, 3).astype(jnp.float32).T / np.float32(kernel.sigma_rgb)
        found = (*map(jnp.asarray, positions(height, width, kernel.sigma_xy)), *channels)
    if exists is None:
        return found
    first = jnp.argmax(exists)
    return tuple(jnp.where(exists, v, v[first]) for v in found)


def extent(kernel: Bilateral | Features, height: int, width: int) -> tuple[float, ...]:
    """The largest value that each of `features` can have; the smallest is 0."""
    if isinstance(kernel, Features):
        return kernel.extent
    side = ((width - 1) / kernel.sigma_xy, (height - 1) / kernel.sigma_xy)
    return side + (255 / kernel.sigma_rgb,) * 3


def potts(kernel: Kernel, num_classes: int) -> Kernel:
    """Returns the kernel with its weight as a full compatibility matrix, ready to be learnt.

    Args:
      kernel: whose weight has the shape [], [C] or [C, C].
      num_classes: the number C of classes.

    Returns:
      The same kernel with a weight float32 [C, C] whose diagonal is zero. Its penalties are those
      of the given weight, as far as the marginals see them.
    """
    weight = np.asarray(kernel.weight, np.float32)
    if weight.ndim == 2:  # what a column has on the diagonal adds the same to all classes
        matrix = weight - np.diagonal(weight)
    else:
        matrix = np.broadcast_to(weight, (num_classes, num_classes)) * (1 - np.eye(num_classes))
    return dataclasses.replace(kernel, weight=jnp.asarray(matrix, jnp.float32))


def deeplab_kernels(
    w1: float, alpha: float, beta: float, w2: float, gamma: float
) -> tuple[Kernel, ...]:
    """Returns the two kernels of DeepLab, in the papers' letters.

    Args:
      w1: weight of the bilateral kernel.
      alpha: its standard deviation of positions, in pixels (sigma_alpha).
      beta: its standard deviation of colours in 0..255 (sigma_beta).
      w2: weight of the spatial kernel.
      gamma: its standard deviation, in pixels (sigma_gamma).
    """
    return (Bilateral(alpha, beta, w1), Spatial(gamma, w2))


# Published for PASCAL VOC 2012, 10 iterations. The papers cross-validated w1, sigma_alpha and
# sigma_beta with w2 = sigma_gamma = 3; the numbers are in the authors' scripts (v1, v1_msc,
# v1_coco), in ports whose results match (v2_resnet101), or only in comments of ports (the others).
PRESETS: dict[str, tuple[Kernel, ...]] = {
    "deeplab_v1": deeplab_kernels(5, 50, 10, 3, 3),  # DeepLab-CRF (vgg128_noup); authors' script
    "deeplab_v1_msc": deeplab_kernels(3, 95, 3, 3, 3),  # MSc-CRF; authors' script
    "deeplab_v1_coco": deeplab_kernels(5, 67, 3, 3, 3),  # DeepLab-CRF, COCO; authors' script
    "deeplab_v1_largefov": deeplab_kernels(4, 121, 5, 3, 3),  # second hand, two ports agree
    "deeplab_v1_msc_largefov": deeplab_kernels(4, 83, 5, 3, 3),  # second hand
    "deeplab_v1_largefov_coco": deeplab_kernels(5, 69, 5, 3, 3),  # second hand
    "deeplab_v1_msc_largefov_coco": deeplab_kernels(4, 59, 5, 3, 3),  # second hand
    "deeplab_v2_vgg16": deeplab_kernels(4, 65, 3, 2, 2),  # second hand
    "deeplab_v2_resnet101": deeplab_kernels(4, 67, 3, 3, 1),  # three ports agree
}
