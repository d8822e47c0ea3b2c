"""Median frequency balancing (SegNet, Badrinarayanan et al. 2017, section 4)."""

from collections.abc import Sequence

import numpy as np


def median_frequency(pixels: Sequence[int], image_pixels: Sequence[int]) -> np.ndarray:
    """Returns `median(freq) / freq` per class, where `freq = pixels / image_pixels`.

    Args:
        pixels: of each class, [C].
        image_pixels: all pixels, void ones too, of the images that hold the class, [C].

    Returns:
        float32 [C]. A class that never occurs has the weight 0 and no part in the median.
    """
    pixels, image_pixels = np.asarray(pixels, np.float64), np.asarray(image_pixels, np.float64)
    present = pixels > 0
    freq = pixels / np.where(present, image_pixels, 1)
    weights = np.zeros(len(pixels), np.float32)
    weights[present] = np.median(freq[present]) / freq[present]
    return weights
