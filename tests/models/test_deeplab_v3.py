"""DeepLab v3: its pyramid on known input, output strides, parameter counts."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import ASPP, DeepLabV3, DeepLabV3Cascade, deeplab_v3
from tests.models.fill import random_variables


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        # Computed from the layers' shapes.
        (DeepLabV3(num_classes=21), 58_040_661),
        (DeepLabV3(num_classes=19), 58_040_147),
        (DeepLabV3(num_classes=150, depth=50), 39_081_686),
        (DeepLabV3(num_classes=21, depth=50), 39_048_533),
        (DeepLabV3Cascade(num_classes=21), 82_706_517),
        (DeepLabV3Cascade(num_classes=21, depth=50), 63_714_389),
    ],
)
def test_parameter_counts(net, expected):
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == expected


@pytest.mark.parametrize(
    ("net", "size", "rows"),
    [
        (DeepLabV3(num_classes=21), 513, 33),
        (DeepLabV3(num_classes=21, output_stride=8), 513, 65),
        (DeepLabV3(num_classes=19), 769, 49),
        (DeepLabV3Cascade(num_classes=21), 513, 33),
        (DeepLabV3Cascade(num_classes=21, output_stride=256, multi_grid=(1, 1, 1)), 513, 3),
    ],
)
def test_sizes(net, size, rows):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    logits = jax.eval_shape(net.apply, variables, image)["logits"]
    assert logits.shape == (1, rows, rows, net.num_classes)
    assert logits.dtype == jnp.float32


def test_aspp_on_constant_input():
    """Inside, every tap sees the constant; in a corner, four of nine do; by hand, in numpy."""
    rates = (2, 3)
    value = np.random.default_rng(0).standard_normal(5).astype(np.float32)
    x = jnp.broadcast_to(value, (1, 9, 12, 5))
    aspp = ASPP(features=4, rates=rates)
    params = random_variables(aspp, x)["params"]
    for name in fresh_statistics(4):
        params[name] = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    y = jax.jit(aspp.apply)({"params": params, "batch_stats": fresh_statistics(4)}, x)

    def layer(name, x):
        return np.maximum(x @ params[name]["kernel"][0, 0] / np.sqrt(1 + 1e-5), 0)

    def atrous(name, rows, columns):
        kernel = np.asarray(params[name]["kernel"])[rows, columns].sum(axis=(0, 1))
        return np.maximum(value @ kernel / np.sqrt(1 + 1e-5), 0)

    def expected(rows, columns):
        branches = [layer("conv1", value)]
        branches += [atrous(name, rows, columns) for name in ("conv2", "conv3")]
        branches.append(layer("conv_pool", value))
        return layer("conv_project", np.concatenate(branches))

    inside, corner = slice(0, 3), slice(1, 3)
    assert y.shape == (1, 9, 12, 4)
    np.testing.assert_allclose(y[0, 4, 6], expected(inside, inside), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y[0, 0, 0], expected(corner, corner), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y[0, 0, 6], expected(corner, inside), rtol=1e-4, atol=1e-5)


def fresh_statistics(features):
    names = ["bn1", "bn2", "bn3", "bn_pool", "bn_project"]
    return {n: {"mean": jnp.zeros(features), "var": jnp.ones(features)} for n in names}


def test_image_level_features_are_the_mean_of_any_map():
    """With all other branches cut off, only the mean of the map is left, the same everywhere."""
    aspp = ASPP(features=4, rates=(1, 2, 3))
    apply = jax.jit(aspp.apply)
    variables = random_variables(aspp, jnp.zeros((1, 4, 4, 6)))
    kernel = variables["params"]["conv_project"]["kernel"]
    variables["params"]["conv_project"]["kernel"] = kernel.at[:, :, :16].set(0)
    x = jax.random.normal(jax.random.key(1), (2, 6, 7, 6)) + 1
    y = apply(variables, x)
    np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1, :1], y.shape), rtol=1e-5, atol=1e-6)
    mean = jnp.broadcast_to(x.mean(axis=(1, 2), keepdims=True), (2, 3, 5, 6))
    np.testing.assert_allclose(apply(variables, mean)[:, 0, 0], y[:, 0, 0], rtol=1e-4, atol=1e-5)


def test_trained_at_16_evaluated_at_8():
    """The same variables give the same scores on a finer grid, but for the mean of the map."""
    net = DeepLabV3(num_classes=3, depth=14, width=8, features=8, multi_grid=(2,), rates=(1, 2))
    image = jax.random.normal(jax.random.key(0), (1, 97, 129, 3))
    variables = random_variables(net, image)
    kernel = variables["params"]["aspp"]["conv_project"]["kernel"]
    variables["params"]["aspp"]["conv_project"]["kernel"] = kernel.at[:, :, -8:].set(0)
    coarse = jax.jit(net.apply)(variables, image)["logits"]
    fine = jax.jit(net.clone(output_stride=8).apply)(variables, image)["logits"]
    assert fine.shape[1:3] == (13, 17) and coarse.shape[1:3] == (7, 9)
    assert np.asarray(coarse).std() > 1e-3
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, rtol=1e-4, atol=1e-5)


def test_example():
    result = doctest.testmod(deeplab_v3)
    assert result.attempted and not result.failed
