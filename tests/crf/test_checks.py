"""Mistakes of a caller, each with its message."""

import numpy as np
import PIL.Image
import pytest

from segjax import crf

KERNELS = (crf.Bilateral(6.0, 20.0, 3.0), crf.Spatial(2.0, 1.5))
GOOD = {"logits": np.zeros((6, 8, 3), np.float32), "image": np.full((6, 8, 3), 9, np.uint8)}
BAD = {
    "rank of logits": ({"logits": np.zeros((8, 3), np.float32)}, r"\[H, W, C\]"),
    "dtype of logits": ({"logits": np.zeros((6, 8, 3), np.int32)}, "int32"),
    "empty": ({"logits": np.zeros((0, 8, 3), np.float32)}, "empty"),
    "CHW logits": (
        {"logits": np.zeros((3, 6, 8), np.float32)},
        r"logits have shape \(3, 6, 8\): looks like CHW; transpose\(1, 2, 0\)",
    ),
    "CHW image": (
        {"image": np.zeros((3, 6, 8), np.uint8)},
        r"image has shape \(3, 6, 8\): looks like CHW; transpose\(1, 2, 0\)",
    ),
    "NCHW": (
        {"logits": np.zeros((2, 5, 6, 8), np.float32), "image": np.zeros((2, 6, 8, 3), np.uint8)},
        r"logits have shape \(2, 5, 6, 8\): looks like NCHW; transpose\(0, 2, 3, 1\)",
    ),
    "grey image": ({"image": np.zeros((6, 8), np.uint8)}, r"image has shape \(6, 8\); it is RGB"),
    "size of image": ({"image": np.zeros((6, 9, 3), np.uint8)}, r"\(6, 9, 3\).*\(6, 8, 3\)"),
    "dtype of image": ({"image": np.zeros((6, 8, 3), np.int16)}, "int16.*uint8"),
    "image in 0..1": ({"image": np.full((6, 8, 3), 0.5, np.float32)}, r"0\.\.1.*255"),
    "normalised image": ({"image": np.full((6, 8, 3), -1.5, np.float32)}, "before normalisation"),
    "no kernels": ({"kernels": ()}, "PRESETS"),
    "a name": ({"kernels": "deeplab_v1"}, "PRESETS"),
    "not a kernel": ({"kernels": (3.0,)}, "3.0 is not a kernel"),
    "sigma 0": ({"kernels": (crf.Spatial(0.0),)}, r"Spatial\.sigma is 0\.0"),
    "sigma below 0": ({"kernels": (crf.Bilateral(5.0, -1.0),)}, r"Bilateral\.sigma_rgb is -1\.0"),
    "sigma NaN": ({"kernels": (crf.Bilateral(np.nan, 1.0),)}, r"Bilateral\.sigma_xy is nan"),
    "tiny sigma": ({"kernels": (crf.Bilateral(1.0, 0.01),)}, "larger standard deviations"),
    "weight": ({"kernels": (crf.Spatial(1.0, np.zeros(4)),)}, r"weight has shape \(4,\)"),
    "features": ({"kernels": (crf.Features(np.zeros((6, 7, 2)), (1.0, 1.0)),)}, r"\(6, 7, 2\)"),
    "features beyond": (
        {"kernels": (crf.Features(np.eye(6, 8)[..., None], (0.5,)),)},
        r"more than Features\.extent",
    ),
    "extent": ({"kernels": (crf.Features(np.zeros((6, 8, 2)), (1.0,)),)}, "each of the 2 features"),
    "filter": ({"filter": "permutohedral"}, "lattice, exact, nystrom"),
    "spatial": ({"spatial_filter": "exact"}, "lattice, separable"),
    "normalization": ({"normalization": "sym"}, "symmetric, after, before, none"),
    "iterations": ({"num_iterations": -1}, "num_iterations is -1"),
    "capacity": ({"capacity": 0}, r"segjax\.crf\.plan"),
    "mask": ({"mask": np.ones((6, 8), np.uint8)}, r"mask is uint8 \[6, 8\].*bool \[6, 8\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_told_before_anything_is_compiled(name):
    change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        crf.mean_field(**{**GOOD, "kernels": KERNELS, **change})


def test_a_pil_image_is_taken_where_it_is_rgb():
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    picture, logits = PIL.Image.fromarray(image), np.zeros((6, 8, 3), np.float32)
    assert crf.plan(picture, KERNELS) == crf.plan(image, KERNELS)
    np.testing.assert_array_equal(
        crf.mean_field(logits, picture, KERNELS[1:]), crf.mean_field(logits, image, KERNELS[1:])
    )
    with pytest.raises(ValueError, match=r"mode 'L'; write image\.convert\('RGB'\)"):
        crf.mean_field(logits, picture.convert("L"), KERNELS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, np.nan, np.inf], "NaN: look at the network"),
        ([0, np.inf, -np.inf], r"\+inf: give log\(probability\)"),
        ([-np.inf] * 3, "nothing but -inf"),
    ],
)
def test_the_first_pixel_that_is_not_finite_is_named(values, message):
    logits, image = np.zeros((2, 6, 8, 3), np.float32), np.zeros((2, 6, 8, 3), np.uint8)
    logits[1, 3, 5] = logits[1, 4] = values
    with pytest.raises(ValueError, match=f"row 3, column 5 of image 1 are {message}"):
        crf.mean_field(logits, image, KERNELS)
    with pytest.raises(ValueError, match=f"row 3, column 5 are {message}"):
        crf.refine_logits(logits[1], image[1], KERNELS)
    mask = np.ones((2, 6, 8), bool)
    mask[1, 3, 5] = mask[1, 4] = False
    q = crf.mean_field(logits, image, KERNELS, mask=mask, num_iterations=1)
    assert np.isfinite(np.asarray(q)[mask]).all()


def test_plan_checks_its_arguments():
    image = np.zeros((6, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="looks like CHW"):
        crf.plan(image.transpose(2, 0, 1), KERNELS)
    with pytest.raises(ValueError, match=r"mask is bool \[8, 6\]"):
        crf.plan(image, KERNELS, mask=np.ones((8, 6), bool))
    with pytest.raises(ValueError, match="PRESETS"):
        crf.plan(image, "deeplab_v1")
