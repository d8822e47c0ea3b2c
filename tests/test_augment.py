"""Augmentation against OpenCV and numpy: the deterministic core, then the random shell."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import augment
from segjax.config import Augment

FILL = (10.0, 20.0, 30.0)


def scene(height=40, width=60, seed=0):
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 1.5)
    label = rng.integers(0, 5, (height // 4 + 1, width // 4 + 1)).astype(np.int32)
    label = label.repeat(4, 0).repeat(4, 1)[:height, :width].copy()
    label[3:5, 7:9] = 255
    return image, label


def reference(image, label, *, scale, top, left, flip, size, fill=FILL):
    """Caffe's and PSPNet's order with OpenCV: resize, mirror, pad on the right and below, crop."""
    if scale is not None:
        to = (int(image.shape[1] * scale), int(image.shape[0] * scale))
        image = cv2.resize(image.astype(np.float32), to, interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label.astype(np.uint8), to, interpolation=cv2.INTER_NEAREST_EXACT)
    if flip:
        image, label = image[:, ::-1], label[:, ::-1]
    below, right = max(top + size[0] - image.shape[0], 0), max(left + size[1] - image.shape[1], 0)
    pad = [(0, below), (0, right)]
    image = np.stack(
        [np.pad(image[..., c], pad, constant_values=fill[c]) for c in range(3)], axis=-1
    )
    label = np.pad(label, pad, constant_values=255)
    return (a[top : top + size[0], left : left + size[1]] for a in (image, label.astype(np.int32)))


CROPS = [
    {"scale": None, "top": 0, "left": 0, "flip": None, "size": (40, 60)},
    {"scale": None, "top": 7, "left": 11, "flip": True, "size": (20, 33)},
    {"scale": None, "top": 0, "left": 0, "flip": True, "size": (50, 64)},
    {"scale": 0.5, "top": 3, "left": 2, "flip": False, "size": (16, 24)},
    {"scale": 0.73, "top": 1, "left": 0, "flip": True, "size": (28, 50)},
    {"scale": 1.0, "top": 4, "left": 9, "flip": False, "size": (33, 41)},
    {"scale": 1.37, "top": 12, "left": 20, "flip": True, "size": (33, 47)},
    {"scale": 2.0, "top": 0, "left": 55, "flip": False, "size": (81, 65)},
]


@pytest.mark.parametrize("where", CROPS, ids=str)
def test_crop_and_scale_equals_opencv(where):
    image, label = scene()
    expected_image, expected_label = reference(image, label, **where)
    static = {"size": where["size"], "fill": FILL, "scale": where["scale"], "flip": where["flip"]}
    cut = jax.jit(
        lambda i, x, top, left: augment.crop_and_scale(i, x, top=top, left=left, **static)
    )
    got_image, got_label = cut(
        image.astype(np.float32), label, jnp.int32(where["top"]), jnp.int32(where["left"])
    )
    # A grey level over 1000: positions are float32 here and float64 or fixed point there.
    np.testing.assert_allclose(got_image, expected_image, atol=2e-2)
    np.testing.assert_array_equal(got_label, expected_label)
    assert got_image.dtype == jnp.float32 and got_label.dtype == jnp.int32


@pytest.mark.parametrize("where", CROPS[1::2], ids=str)
def test_what_lies_outside_the_image_on_its_canvas_is_never_seen(where):
    image, label = scene()
    expected = reference(image, label, **where)
    canvas = np.full((70, 90, 3), 255.0, np.float32)  # not the fill: it must not shine through
    canvas[:40, :60] = image
    labels = np.full((70, 90), 3, np.int32)
    labels[:40, :60] = label
    cut = jax.jit(lambda i, x, h, w: augment.crop_and_scale(i, x, **where, fill=FILL, valid=(h, w)))
    got = cut(canvas, labels, 40, 60)
    for a, b, tolerance in zip(got, expected, (2e-2, 0)):
        np.testing.assert_allclose(a, b, atol=tolerance)


@pytest.mark.parametrize("where", CROPS[2::2], ids=str)
def test_warp_without_rotation_equals_crop_and_scale(where):
    image, label = scene()
    image = jnp.asarray(image, jnp.float32)
    straight = jax.jit(lambda i, x: augment.crop_and_scale(i, x, **where, fill=FILL))(image, label)
    turn = jax.jit(lambda i, x, angle: augment.warp(i, x, **where, angle=angle, fill=FILL))
    turned = turn(image, label, 0.0)
    np.testing.assert_allclose(turned[0], straight[0], atol=1e-2)
    np.testing.assert_array_equal(turned[1], straight[1])


@pytest.mark.parametrize("degrees", [-10.0, 33.0])
def test_warp_equals_opencv_inside(degrees):
    image, label = scene(41, 61)
    matrix = cv2.getRotationMatrix2D((30, 20), degrees, 1.0)  # the middle of 61 x 41 pixels
    expected = cv2.warpAffine(image.astype(np.float32), matrix, (61, 41), borderValue=FILL)
    labels = cv2.warpAffine(
        label.astype(np.uint8), matrix, (61, 41), flags=cv2.INTER_NEAREST, borderValue=255
    )
    seen = cv2.warpAffine(np.ones_like(expected[..., 0]), matrix, (61, 41), borderValue=0)
    where = {"scale": None, "top": 0, "left": 0, "flip": None, "size": (41, 61), "fill": FILL}
    turn = jax.jit(lambda i, x, angle: augment.warp(i, x, **where, angle=angle))
    image, label = turn(image.astype(np.float32), label, np.deg2rad(degrees).astype(np.float32))
    # OpenCV rounds positions to 1/32 pixel and fades the outermost pixel into the border.
    inside, outside = seen > 0.999, seen == 0
    assert np.abs(image - expected)[inside].max() < 4
    assert np.mean(np.asarray(label)[inside] == labels[inside]) > 0.97
    np.testing.assert_array_equal(image[outside], np.broadcast_to(FILL, image[outside].shape))
    assert set(np.asarray(label)[outside]) == ({255} if outside.any() else set())


def test_quarter_turn_is_exact():
    image, label = scene(31, 31)
    where = {"scale": None, "top": 0, "left": 0, "flip": None, "size": (31, 31)}
    image, label = jnp.asarray(image, jnp.float32), jnp.asarray(label)
    turn = jax.jit(lambda i, x: augment.warp(i, x, **where, angle=np.pi / 2, fill=FILL))
    turned, labels = turn(image, label)
    np.testing.assert_allclose(turned[1:-1, 1:-1], np.rot90(image)[1:-1, 1:-1], atol=1e-2)
    np.testing.assert_array_equal(labels[1:-1, 1:-1], np.rot90(label)[1:-1, 1:-1])


@pytest.mark.parametrize("size", [(40, 60), (40, 90), (70, 60), (70, 90)])
def test_valid_size_finds_the_image_on_its_canvas(size):
    image, label = scene()
    label[:] = 255  # void to the edge: the colours tell
    canvas = np.full((*size, 3), np.round(FILL), np.uint8)
    canvas[:40, :60] = image
    labels = np.full(size, 255, np.int32)
    labels[:40, :60] = label
    assert tuple(map(int, augment.valid_size(canvas, labels, FILL))) == (40, 60)


def test_valid_size_of_an_empty_canvas_is_the_canvas():
    canvas = np.full((8, 9, 3), np.round(FILL), np.uint8)
    assert tuple(augment.valid_size(canvas, np.full((8, 9), 255), FILL)) == (8, 9)


def test_colour_functions_equal_numpy_and_opencv():
    image = scene()[0].astype(np.float32)
    gray = image @ np.array([0.299, 0.587, 0.114], np.float32)
    got = augment.adjust_brightness(image, 1.7)
    np.testing.assert_allclose(got, np.clip(image * 1.7, 0, 255), rtol=1e-6)
    inside = np.zeros(gray.shape, bool)
    inside[:30, :20] = True
    mean = gray[:30, :20].mean()
    got = augment.adjust_contrast(image, 0.3, inside)
    np.testing.assert_allclose(got, np.clip(mean + 0.3 * (image - mean), 0, 255), atol=1e-3)
    got = augment.adjust_saturation(image, 1.9)
    expected = np.clip(gray[..., None] + 1.9 * (image - gray[..., None]), 0, 255)
    np.testing.assert_allclose(got, expected, atol=1e-3)
    hsv = cv2.cvtColor(image / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] - 71) % 360
    expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    np.testing.assert_allclose(augment.adjust_hue(image, -71.0), expected, atol=1e-2)


def test_hue_keeps_gray_and_a_full_turn_changes_nothing():
    image = scene()[0].astype(np.float32)
    gray = np.full((2, 3, 3), 77.0, np.float32)
    np.testing.assert_allclose(augment.adjust_hue(gray, 120.0), gray)
    np.testing.assert_allclose(augment.adjust_hue(image, 360.0), image, atol=1e-3)
    red = np.array([[[200.0, 0, 0]]], np.float32)
    np.testing.assert_allclose(augment.adjust_hue(red, 120.0), [[[0, 200, 0]]], atol=1e-4)


@pytest.mark.parametrize("sigma", [0.4, 1.1])
def test_blur_equals_opencv(sigma):
    image = scene()[0].astype(np.float32)
    expected = cv2.GaussianBlur(image, (5, 5), sigma, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(augment.blur(image, sigma, radius=2), expected, atol=1e-3)
    np.testing.assert_array_equal(augment.blur(image, 0.0, radius=2), image)


EVERYTHING = Augment(
    **{"crop": (24, 32), "scale_range": (0.5, 2.0), "rotate": 10.0, "blur_prob": 0.5},
    **{"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 20.0},
)


@pytest.mark.parametrize(
    "config",
    [
        Augment(flip=0.0),
        Augment(),
        Augment(crop=(24, 32)),
        Augment(crop=(48, 80), scales=(0.5, 0.75, 1.0, 1.25, 1.5)),
        EVERYTHING,
    ],
    ids=["nothing", "flip", "crop", "scales", "everything"],
)
def test_augment_is_a_pure_function_of_the_key(key, config):
    image, label = scene()
    batch = np.stack([image] * 3), np.stack([label] * 3)
    keys = jax.random.split(key, 3)
    change = jax.jit(jax.vmap(lambda k, i, x: augment.augment(k, i, x, config, FILL)))
    first, again = change(keys, *batch), change(keys, *batch)
    size = (config.crop[0] or 40, config.crop[1] or 60)
    assert first[0].shape == (3, *size, 3) and first[1].shape == (3, *size)
    assert first[0].dtype == jnp.float32 and first[1].dtype == jnp.int32
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert first[0].min() >= 0 and first[0].max() <= 255.001
    assert set(np.unique(first[1])) <= {0, 1, 2, 3, 4, 255}
    backwards = change(keys[::-1], *batch)  # an image depends on its own key alone
    np.testing.assert_array_equal(backwards[0][::-1], first[0])
    if config.crop[0]:
        assert np.any(np.asarray(first[0][0]) != np.asarray(first[0][1]))


def test_switched_off_changes_nothing_and_costs_nothing(key):
    image, label = scene()
    off = Augment(flip=0.0)
    got = augment.augment(key, image, label, off, FILL)
    np.testing.assert_array_equal(got[0], image)
    np.testing.assert_array_equal(got[1], label)
    lowered = jax.jit(lambda k, i, x: augment.augment(k, i, x, off, FILL)).lower(key, image, label)
    text = lowered.compile().as_text()
    for operation in ("dot(", "gather", "reduce(", "threefry", "while"):
        assert operation not in text, operation


def test_flip_happens_as_often_as_asked(key):
    image, label = scene(4, 4)
    keys = jax.random.split(key, 2000)
    got = jax.vmap(lambda k: augment.augment(k, image, label, Augment(flip=0.3), FILL)[0])(keys)
    flipped = np.all(np.asarray(got) == image[None, :, ::-1], axis=(1, 2, 3)).mean()
    assert abs(flipped - 0.3) < 0.04  # four standard deviations


def test_crops_lie_within_the_image_and_reach_its_edges(key):
    """An image of 40 x 60 on a canvas of 100 x 100: no crop of 32 x 32 holds padding."""
    image, _ = scene()
    canvas = np.full((100, 100, 3), np.round(FILL), np.uint8)
    canvas[:40, :60] = image
    label = np.full((100, 100), 255, np.int32)
    label[:40, :60] = np.arange(40)[:, None] % 200  # the row
    config = Augment(crop=(32, 32), flip=0.5)
    keys = jax.random.split(key, 300)
    change = jax.jit(jax.vmap(lambda k: augment.augment(k, canvas, label, config, FILL)))
    _, labels = change(keys)
    assert 255 not in np.unique(labels)
    assert set(np.asarray(labels[:, 0, 0])) == set(range(9))  # every offset from 0 to 40 - 32


def test_scales_are_drawn_from_the_set(key):
    """A ramp tells the scale: its step is 1 / scale."""
    image = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3)).copy()
    label = np.zeros((64, 64), np.int32)
    config = Augment(crop=(16, 16), scales=(0.5, 1.0, 2.0), flip=0.0)
    keys = jax.random.split(key, 200)
    change = jax.jit(jax.vmap(lambda k: augment.augment(k, image, label, config, FILL)))
    images, _ = change(keys)
    steps = np.median(np.diff(np.asarray(images)[:, 8, :, 0], axis=-1), axis=-1)
    assert set(np.round(steps, 3)) == {0.5, 1.0, 2.0}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("crop", (-1, 4)), ("scales", (0.5, 0.0)), ("scale_range", (2.0, 0.5)), ("flip", 1.5)],
        *[("blur_sigma", (0.0, 1.0)), ("brightness", -0.1), ("hue", 181.0), ("rotate", -5.0)],
    ],
)
def test_a_wrong_field_is_named(key, field, value):
    with pytest.raises(ValueError, match=f"augment.{field} is "):
        augment.augment(key, *scene(), Augment(**{field: value}), FILL)


def test_two_kinds_of_scale_are_refused(key):
    config = Augment(scales=(0.5,), scale_range=(0.5, 2.0))
    with pytest.raises(ValueError, match=r"augment.scales is .*leave scale_range at"):
        augment.augment(key, *scene(), config, FILL)
