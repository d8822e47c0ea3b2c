"""DeepLab v2: summed pyramids, three scales, parameter counts."""

import doctest
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import AtrousConv, DeepLabV1, DeepLabV2ResNet, DeepLabV2VGG, SumASPP, deeplab_v2
from segjax.models.deeplab_v2 import multi_scale
from tests.models.fill import random_variables


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def shapes(net, size):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    return variables["params"], jax.eval_shape(net.apply, variables, image)


@pytest.mark.parametrize("rates", [(6, 12, 18, 24), (2, 4, 8, 12)])
def test_vgg_counts_and_size(rates):
    params, outputs = shapes(DeepLabV2VGG(num_classes=21, rates=rates), 321)
    assert count(params) == 37_877_652  # computed from the layers' shapes
    assert outputs["logits"].shape == (1, 41, 41, 21)


@pytest.mark.parametrize(
    ("classes", "expected"), [(21, 44_048_532), (19, 43_901_068), (60, 46_924_080)]
)
def test_resnet_counts(classes, expected):
    params, _ = shapes(DeepLabV2ResNet(num_classes=classes, scales=(1.0,)), 65)
    assert count(params) == expected  # 42,500,160 + 73,732 per class, from the layers' shapes
    frozen = sum(
        leaf.size
        for path, leaf in jax.tree.leaves_with_path(params)
        if re.match("bn", path[-2].key)
    )
    assert frozen == 105_344
    if classes == 21:
        assert expected - frozen == 43_943_188


def test_resnet_sizes():
    _, outputs = shapes(DeepLabV2ResNet(num_classes=21, depth=26), 321)
    sizes = {name: logits.shape[1:3] for name, logits in outputs.items()}
    on_grid = ("logits", "scale_100", "scale_075")
    assert sizes == dict.fromkeys(on_grid, (41, 41)) | {"scale_050": (21, 21)}
    _, outputs = shapes(DeepLabV2ResNet(num_classes=21, depth=26, scales=(1.0,)), 513)
    assert {name: x.shape for name, x in outputs.items()} == dict.fromkeys(
        ("logits", "scale_100"), (1, 65, 65, 21)
    )


def test_three_scales_of_321_and_their_logits():
    seen = []

    def score(image):
        logits = jnp.zeros((1, *(1 + (n - 1) // 8 for n in image.shape[1:3]), 2))
        seen.append((image.shape[1], logits.shape[1]))
        return logits

    multi_scale(score, jnp.zeros((1, 321, 321, 3)))
    assert seen == [(321, 41), (241, 31), (161, 21)]


def test_fusion_is_the_maximum_with_aligned_corners():
    """Scores linear in the position survive aligned resizing, so each map is known by hand."""
    rows = np.linspace(0, 1, 33, dtype=np.float32)
    image = jnp.broadcast_to(rows[:, None, None], (1, 33, 33, 3))
    slopes = {33: 1.0, 25: -1.0, 17: 0.5}  # of the score at each size of the image

    def score(image):
        return slopes[image.shape[1]] * image[:, ::8, ::8, :1]

    maps = multi_scale(score, image)
    ramp = rows[::8]
    np.testing.assert_allclose(maps["scale_100"][0, :, 2, 0], ramp, atol=1e-6)
    np.testing.assert_allclose(maps["scale_075"][0, :, 2, 0], -ramp, atol=1e-6)
    np.testing.assert_allclose(maps["scale_050"][0, :, 1, 0], 0.5 * ramp[::2], atol=1e-6)
    np.testing.assert_allclose(maps["logits"][0, :, 2, 0], ramp, atol=1e-6)
    slopes[33] = -2.0
    np.testing.assert_allclose(
        multi_scale(score, image)["logits"][0, :, 2, 0], 0.5 * ramp, atol=1e-6
    )


def test_scales_share_the_network():
    net = DeepLabV2ResNet(num_classes=3, depth=14, width=8)
    image = jax.random.normal(jax.random.key(0), (1, 65, 57, 3))
    variables = random_variables(net, image)
    maps = jax.jit(net.apply)(variables, image)
    single = jax.jit(net.clone(scales=(1.0,)).apply)(variables, image)
    np.testing.assert_allclose(single["logits"], maps["scale_100"], rtol=1e-4, atol=1e-5)
    assert np.all(maps["logits"] >= maps["scale_100"])
    assert np.all(maps["logits"] >= maps["scale_075"])
    assert np.abs(maps["logits"] - maps["scale_100"]).max() > 1e-3


def test_sum_aspp_is_the_sum_of_its_branches():
    x = jax.random.normal(jax.random.key(0), (2, 11, 13, 6))
    aspp = SumASPP(num_classes=4, rates=(1, 3, 5))
    params = random_variables(aspp, x)["params"]
    branches = [
        AtrousConv(4, rate=rate, use_bias=True).apply({"params": params[f"branch{i}"]}, x)
        for i, rate in enumerate((1, 3, 5), start=1)
    ]
    y = jax.jit(aspp.apply)({"params": params}, x)
    np.testing.assert_allclose(y, sum(branches), rtol=1e-4, atol=1e-4)


def test_vgg_with_one_branch_is_deeplab_v1():
    net = DeepLabV2VGG(num_classes=3, rates=(12,), width=16, body_width=4)
    image = jax.random.normal(jax.random.key(0), (1, 65, 65, 3))
    variables = random_variables(net, image)
    outputs = jax.jit(net.apply)(variables, image)
    params = {name.removesuffix("_1"): value for name, value in variables["params"].items()}
    v1 = jax.jit(DeepLabV1(num_classes=3, width=16, body_width=4).apply)({"params": params}, image)
    np.testing.assert_allclose(outputs["logits"], v1["logits"], rtol=1e-5, atol=1e-6)


def test_example():
    result = doctest.testmod(deeplab_v2)
    assert result.attempted and not result.failed
