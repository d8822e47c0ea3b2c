"""Writes outputs of pydensecrf on photographs, for a comparison that needs neither.

    python -m tests.crf.golden.make

Needs pydensecrf (written with version 1.0, commit 2723c7f of lucasb-eyer/pydensecrf), scikit-image
and scikit-learn. The photographs, reduced to 320x240:

- astronaut: NASA Great Images, public domain (scikit-image).
- chelsea: Stefan van der Walt, CC0 (scikit-image).
- china: danielbuechele, www.flickr.com/photos/danielbuechele/6061409035, CC BY 2.0 (scikit-learn);
  cropped and reduced.

The logits are such as a network of stride 8 gives: for each cell three for a class chosen by its
brightness, plus Gaussian noise, kept in float16 and upsampled by `upsample`. The noise is of the
first seed for which no pixel's two best classes are closer than TIE: rounding decides on those.
"""

import itertools
import pathlib

import cv2
import numpy as np

HERE = pathlib.Path(__file__).parent
IMAGES = ("astronaut", "chelsea", "china")
SIZE = (240, 320)  # height, width
CLASSES = 21
ITERATIONS = 10
TIE = 5e-5
STRIDE = 12  # of the pixels whose marginals are kept
# name: sigma_xy, sigma_rgb and weight of the bilateral, sigma and weight of the spatial kernel
PARAMETERS = {"A": (80, 13, 10, 3, 3), "B": (49, 5, 4, 3, 3), "C": (67, 3, 4, 3, 3)}


def upsample(logits: np.ndarray, factor: int) -> np.ndarray:
    """Bilinear, half-pixel centres, edges repeated: float32 [h * factor, w * factor, C]."""
    for axis in (0, 1):
        n = logits.shape[axis]
        at = np.clip((np.arange(n * factor) + 0.5) / factor - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), max(n - 2, 0))
        share = (at - low).astype(np.float32)
        share = share.reshape([-1 if a == axis else 1 for a in range(3)])
        logits = logits.astype(np.float32)
        below = np.take(logits, low, axis)
        above = np.take(logits, np.minimum(low + 1, n - 1), axis)
        logits = below * (1 - share) + above * share
    return logits


def cell_logits(image: np.ndarray, seed: int) -> np.ndarray:
    """float16 [H/8, W/8, CLASSES]."""
    height, width, _ = image.shape
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    cells = cv2.resize(grey, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(seed).normal(size=(*cells.shape, CLASSES))
    return (3 * np.eye(CLASSES)[cells // 43] + 1.3 * noise).astype(np.float16)


def photograph(name: str) -> np.ndarray:
    if name == "china":
        from sklearn.datasets import load_sample_image

        image = load_sample_image("china.jpg")
    else:
        import skimage.data

        image = getattr(skimage.data, name)()
    height, width = image.shape[:2]
    crop_height = min(height, width * SIZE[0] // SIZE[1])
    crop_width = min(width, height * SIZE[1] // SIZE[0])
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    crop = np.ascontiguousarray(image[top : top + crop_height, left : left + crop_width])
    return cv2.resize(crop, SIZE[::-1], interpolation=cv2.INTER_AREA)


def pydensecrf(
    logits: np.ndarray, image: np.ndarray, parameters: tuple[float, ...], iterations: int
) -> np.ndarray:
    """Marginals float32 [H, W, C]."""
    from pydensecrf.densecrf import DenseCRF2D

    sigma_xy, sigma_rgb, weight, sigma, spatial_weight = parameters
    height, width, classes = logits.shape
    crf = DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-logits.reshape(-1, classes).T))
    crf.addPairwiseGaussian(sxy=sigma, compat=spatial_weight)
    crf.addPairwiseBilateral(sxy=sigma_xy, srgb=sigma_rgb, rgbim=image, compat=weight)
    return np.array(crf.inference(iterations)).T.reshape(height, width, classes)


def outputs(image: np.ndarray, seed: int) -> dict[str, np.ndarray] | None:
    logits = cell_logits(image, seed)
    arrays = {"cell_logits": logits, "image_png": png(image[..., ::-1])}
    for key, parameters in PARAMETERS.items():
        q = pydensecrf(upsample(logits, 8), image, parameters, ITERATIONS)
        best = np.sort(q, -1)
        if (best[..., -1] - best[..., -2]).min() < TIE:
            return None
        arrays[f"{key}_labels_png"] = png(q.argmax(-1).astype(np.uint8))
        arrays[f"{key}_q"] = np.round(q[::STRIDE, ::STRIDE] * 65535).astype(np.uint16)
    return arrays


def main() -> None:
    for name in IMAGES:
        image = photograph(name)
        seed, arrays = next(
            (seed, arrays) for seed in itertools.count() if (arrays := outputs(image, seed))
        )
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        print(f"{name}: seed {seed}")


def png(image: np.ndarray) -> np.ndarray:
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]


if __name__ == "__main__":
    main()
