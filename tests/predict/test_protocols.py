"""Protocols against plain loops over numpy arrays, written from the descriptions in the papers."""

import functools
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models, state
from segjax.config import Input
from segjax.predict import protocols
from segjax.predict.protocols import MULTI_SCALE, PROTOCOLS, Protocol

CLASSES, STRIDE = 4, 4
FILL = (10.0, 120.0, 240.0)
WEIGHTS = np.random.default_rng(0).normal(size=(2, 3, CLASSES)).astype(np.float32) / 64


def net(image, xp=jnp):
    """A network at stride 4 that tells left from right; the same in numpy and in JAX."""
    here, right = image[:, ::STRIDE, ::STRIDE], xp.roll(image, -1, axis=2)[:, ::STRIDE, ::STRIDE]
    return here @ WEIGHTS[0] + right @ WEIGHTS[1]


def picture(height, width, seed=0):
    """Smooth noise, so that interpolation matters but does not blow up differences."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def on_canvas(image, canvas):
    filled = np.broadcast_to(np.float32(FILL), (*canvas, 3)).copy()
    filled[: image.shape[0], : image.shape[1]] = image
    return filled


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def resize(x, size, align_corners):
    """Bilinear, pixel by pixel along each axis, in float64."""
    for axis, out in enumerate(size):
        n = x.shape[axis]
        lines = []
        for i in range(out):
            if align_corners:
                at = i * (n - 1) / (out - 1) if out > 1 else 0
            else:
                at = min(max((i + 0.5) * n / out - 0.5, 0), n - 1)
            low = min(math.floor(at), n - 2) if n > 1 else 0
            high = min(low + 1, n - 1)
            share = at - low
            lines.append((1 - share) * x.take(low, axis) + share * x.take(high, axis))
        x = np.stack(lines, axis)
    return x


def reference_sliding(image, crop, base, scales, flip, align_corners):
    """tool/test.py of PSPNet's authors, written anew: for one image, with OpenCV's resize."""
    height, width, _ = image.shape
    total = np.zeros((height, width, CLASSES))
    for scale in scales:
        longer = round(scale * base)
        if height > width:
            new = (longer, max(round(longer / height * width), 1))
        else:
            new = (max(round(longer / width * height), 1), longer)
        scaled = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
        missing = [max(crop - n, 0) for n in new]
        top, left = (m // 2 for m in missing)
        padded = cv2.copyMakeBorder(
            scaled, top, missing[0] - top, left, missing[1] - left, cv2.BORDER_CONSTANT, value=FILL
        )
        stride = math.ceil(crop * 2 / 3)
        sums, visits = np.zeros((*padded.shape[:2], CLASSES)), np.zeros(padded.shape[:2])
        for i in range(math.ceil((padded.shape[0] - crop) / stride) + 1):
            for j in range(math.ceil((padded.shape[1] - crop) / stride) + 1):
                row = min(i * stride, padded.shape[0] - crop)
                column = min(j * stride, padded.shape[1] - crop)
                window = padded[row : row + crop, column : column + crop][None]
                probs = softmax(resize(net(window, np)[0], (crop, crop), align_corners))
                if flip:
                    mirrored = net(window[:, :, ::-1], np)[0]
                    mirrored = softmax(resize(mirrored, (crop, crop), align_corners))
                    probs = (probs + mirrored[:, ::-1]) / 2
                sums[row : row + crop, column : column + crop] += probs
                visits[row : row + crop, column : column + crop] += 1
        mean = (sums / visits[..., None])[top : top + new[0], left : left + new[1]]
        total += cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR)
    return total / len(scales)


def reference_whole(image, scales, flip, align_corners):
    """DeepLab v3's multi-scale evaluation: probabilities averaged at the image's size."""
    size, runs = image.shape[:2], []
    for scale in scales:
        if align_corners:
            new = tuple(math.floor((n - 1) * scale) + 1 for n in size)
        else:
            new = tuple(math.floor(n * scale + 0.5) for n in size)
        scaled = resize(image, new, align_corners)
        runs.append(softmax(resize(net(scaled[None], np)[0], size, align_corners)))
        if flip:
            mirrored = net(scaled[None, :, ::-1], np)[0]
            runs.append(softmax(resize(mirrored, size, align_corners))[:, ::-1])
    return np.mean(runs, 0)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.75)])
def test_sliding_windows_are_those_of_pspnet(scales, align_corners):
    """Landscape, portrait, square and tiny images share one program."""
    images = [picture(*size, seed=size[0]) for size in ((40, 60), (60, 37), (50, 50), (9, 12))]
    sizes = np.int32([image.shape[:2] for image in images])
    batch = np.stack([on_canvas(image, (64, 64)) for image in images])
    run = jax.jit(
        functools.partial(
            protocols.sliding,
            net,
            crop=33,
            base=64,
            scales=scales,
            fill=FILL,
            align_corners=align_corners,
        )
    )
    probs = np.asarray(run(batch, sizes))
    for image, (height, width), found in zip(images, sizes, probs, strict=True):
        expected = reference_sliding(image, 33, 64, scales, True, align_corners)
        np.testing.assert_allclose(found[:height, :width], expected, atol=2e-5)
        assert not found[height:].any() and not found[:, width:].any()


def test_sliding_windows_of_pictures_thinner_than_a_pixel_at_their_scale():
    """Their other side keeps one pixel: what is seen is never the filling alone."""
    sizes = np.int32([[1, 150], [150, 1], [2, 150], [1, 1], [3, 2]])
    images = [np.full((*size, 3), 255, np.float32) for size in sizes]
    for image in images:
        image[: -(-len(image) // 2), : -(-image.shape[1] // 2)] = 0
    batch = np.stack([on_canvas(image, (150, 150)) for image in images])
    run = functools.partial(
        protocols.sliding, net, crop=33, base=40, scales=(0.5, 1.0), fill=FILL, align_corners=True
    )
    for image, size, found in zip(images, sizes, np.asarray(jax.jit(run)(batch, sizes))):
        expected = reference_sliding(image, 33, 40, (0.5, 1.0), True, True)
        np.testing.assert_allclose(found[: size[0], : size[1]], expected, atol=2e-5)


def test_sliding_windows_without_mirroring():
    image = picture(30, 45)
    found = protocols.sliding(
        net,
        image[None],
        np.int32([[30, 45]]),
        crop=17,
        base=50,
        flip=False,
        fill=FILL,
        align_corners=True,
    )
    expected = reference_sliding(image, 17, 50, (1.0,), False, True)
    np.testing.assert_allclose(found[0], expected, atol=2e-5)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_scales_and_mirroring_average_probabilities(flip, align_corners):
    image = picture(41, 33)
    run = functools.partial(
        protocols.whole, net, scales=MULTI_SCALE, flip=flip, align_corners=align_corners
    )
    found = jax.jit(run)(image[None])
    expected = reference_whole(image, MULTI_SCALE, flip, align_corners)
    np.testing.assert_allclose(found[0], expected, atol=2e-5)


def test_max_fusion_is_deeplab_v2s():
    """321 -> 241 and 161; maps of 81, 61 and 41 fused on the first grid, then upsampled."""
    image, size = picture(65, 81), (65, 81)
    maps = []
    for scale in (1.0, 0.75, 0.5):
        scaled = resize(image, tuple(math.floor((n - 1) * scale) + 1 for n in size), True)
        maps.append(net(scaled[None], np)[0])
    grid = maps[0].shape[:2]
    fused = np.max([resize(m, grid, True) for m in maps], axis=0)
    found = protocols.max_fusion(net, image[None])
    np.testing.assert_allclose(found[0], resize(fused, size, True), atol=2e-4)


@pytest.mark.parametrize("name", ["whole", "deeplab_v2", "deeplab_v3", "small_windows"])
def test_scores_are_the_protocols(name):
    """Their softmax is what the protocol averages or fuses."""
    windows = Protocol(crop=17, base=40, flip=True)
    protocol = windows if name == "small_windows" else protocols.find(name)
    image, size = picture(33, 41)[None], np.int32([[33, 41]])
    found = protocols.scores(net, image, size, protocol=protocol, fill=FILL, align_corners=True)
    expected = {
        "whole": lambda: softmax(resize(net(image, np)[0], (33, 41), True)),
        "deeplab_v2": lambda: softmax(np.asarray(protocols.max_fusion(net, image)[0])),
        "deeplab_v3": lambda: reference_whole(image[0], MULTI_SCALE, True, True),
        "small_windows": lambda: reference_sliding(image[0], 17, 40, (1.0,), True, True),
    }[name]()
    np.testing.assert_allclose(jax.nn.softmax(found)[0], expected, atol=3e-5)


def test_windows_need_the_length_to_resize_to():
    """Without it every picture would be one pixel."""
    with pytest.raises(ValueError, match="crop=513 needs base, the length in pixels"):
        Protocol(crop=513)
    assert Protocol(crop=513, base=513).base == 513


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fuse": "maximum"}, "fuse='maximum'.*'mean' or 'max'"),
        ({"scales": ()}, "of one scale or more"),
        ({"fuse": "max", "flip": True}, "leave out flip and crop"),
        ({"fuse": "max", "crop": 33, "base": 48}, "leave out flip and crop"),
    ],
)
def test_fields_that_would_do_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**{"scales": (1.0, 0.5)} | fields)


def test_published_protocols():
    """The numbers of DeepLab v2 and v3 and of PSPNet's PyTorch code."""
    assert PROTOCOLS["deeplab_v2"].scales == (1.0, 0.75, 0.5)
    assert PROTOCOLS["deeplab_v3"].output_stride == 8 and PROTOCOLS["deeplab_v3"].flip
    assert PROTOCOLS["deeplab_v3"].scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert PROTOCOLS["deeplab_v3_cityscapes"].scales == (0.75, 1.0, 1.25)
    windows = {(p.crop, p.base) for p in PROTOCOLS.values() if p.crop}
    assert windows == {(473, 512), (713, 2048)}
    assert all(p.flip for p in PROTOCOLS.values() if p.crop)  # "single scale" mirrors too
    for protocol in PROTOCOLS.values():
        assert protocol.fuse in ("mean", "max") and (protocol.crop - 1) % 8 in (0, 7)


def test_unknown_protocol():
    with pytest.raises(ValueError, match=r"'v3' is unknown; accepted are whole, .*deeplab_v3"):
        protocols.find("v3")


def test_adapt_keeps_the_variables(key):
    """DeepLab v3 trained at output stride 16 runs at 8; DeepLab v2 leaves its scales outside."""
    model = models.DeepLabV3(num_classes=3, depth=14, width=4, features=4)
    at_8 = protocols.adapt(model, PROTOCOLS["deeplab_v3"])
    assert (model.output_stride, at_8.output_stride) == (16, 8)
    assert protocols.adapt(model, PROTOCOLS["whole"]) is model

    model = models.DeepLabV2ResNet(num_classes=3, depth=14, width=4)
    variables = state.init_variables(model, key, (33, 33))
    protocol = PROTOCOLS["deeplab_v2"]
    inside = protocols.network(model, variables, Input())
    outside = protocols.network(protocols.adapt(model, protocol), variables, Input())
    image = picture(33, 41)[None]
    grid = jax.jit(inside)(image)
    found = jax.jit(functools.partial(protocols.max_fusion, outside))(image)
    expected = resize(np.asarray(grid[0]), (33, 41), True)
    np.testing.assert_allclose(found[0], expected, atol=1e-5 * np.abs(expected).max())
