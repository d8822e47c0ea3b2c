"""The lattice against pydensecrf on photographs, from stored outputs (see golden/make.py)."""

import functools

import cv2
import jax
import numpy as np
import pytest

from segjax import crf
from tests.crf.golden import make

# Enough for each photograph, so that three programs do.
CAPACITY = {"A": 20_000, "B": 100_000, "C": 150_000}


def kernels(name: str) -> tuple[crf.Kernel, ...]:
    sigma_xy, sigma_rgb, weight, sigma, spatial_weight = make.PARAMETERS[name]
    return (crf.Bilateral(sigma_xy, sigma_rgb, weight), crf.Spatial(sigma, spatial_weight))


@functools.cache
def infer(name: str):
    return jax.jit(functools.partial(crf.mean_field, capacity=CAPACITY[name]))


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(make.HERE / f"{name}.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("image", make.IMAGES)
@pytest.mark.parametrize("name", make.PARAMETERS)
def test_lattice_equals_pydensecrf(image, name):
    stored = golden(image)
    photograph = cv2.imdecode(stored["image_png"], cv2.IMREAD_COLOR)[..., ::-1]
    logits = make.upsample(stored["cell_logits"], 8)
    q = np.asarray(infer(name)(logits, np.ascontiguousarray(photograph), kernels(name)))
    labels = cv2.imdecode(stored[f"{name}_labels_png"], cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(q.argmax(-1), labels)
    kept = stored[f"{name}_q"] / 65535
    np.testing.assert_allclose(q[:: make.STRIDE, :: make.STRIDE], kept, atol=2e-3)
