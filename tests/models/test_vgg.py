"""The VGG16 body: pools by Caffe's rule, sizes, parameter count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.vgg import VGG16, ConvStack, max_pool
from tests.models.fill import random_variables


@pytest.mark.parametrize(
    ("size", "stride", "ceil_mode", "out"),
    [
        (321, 2, True, 161),
        (321, 2, False, 161),
        (320, 2, True, 161),
        (320, 2, False, 160),
        (2, 2, True, 2),
        (1, 2, True, 1),
        (40, 1, True, 40),
        (41, 1, False, 41),
    ],
)
def test_pool_sizes(size, stride, ceil_mode, out):
    x = jnp.zeros((1, size, 7, 1))
    assert max_pool(x, stride=stride, ceil_mode=ceil_mode).shape[1] == out


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("ceil_mode", [True, False])
def test_pool_takes_the_maximum_of_each_window(size, ceil_mode):
    x = -np.random.default_rng(0).random((1, size, size, 2)).astype(np.float32)
    y = max_pool(jnp.asarray(x), stride=2, ceil_mode=ceil_mode)
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            rows, columns = slice(max(2 * i - 1, 0), 2 * i + 2), slice(max(2 * j - 1, 0), 2 * j + 2)
            np.testing.assert_array_equal(y[0, i, j], x[0, rows, columns].max(axis=(0, 1)))


def test_sizes_and_parameter_count():
    image = jax.ShapeDtypeStruct((1, 321, 320, 3), jnp.float32)
    net = VGG16()
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    # The thirteen convolutions of VGG16, weights and biases.
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 14_714_688
    ends = jax.eval_shape(net.apply, variables, image)
    assert [ends[f"pool{i}"].shape[1:] for i in range(1, 6)] == [
        *((161, 161, 64), (81, 81, 128), (41, 41, 256), (41, 41, 512), (41, 41, 512))
    ]
    assert sorted(variables["params"]["stage3"]) == ["conv1", "conv2", "conv3"]
    assert sorted(variables["params"]["stage3"]["conv1"]) == ["bias", "kernel"]


def test_fifth_stage_is_dilated_and_keeps_its_size():
    net = VGG16(width=4)
    image = jax.random.normal(jax.random.key(0), (1, 65, 49, 3))
    variables = random_variables(net, image)
    ends = jax.jit(net.apply)(variables, image)
    stage5 = {"params": variables["params"]["stage5"]}

    def pool5(rate: int) -> jax.Array:
        x = ConvStack((32, 32, 32), rate=rate).apply(stage5, ends["pool4"])
        return max_pool(x, stride=1, ceil_mode=True)

    np.testing.assert_allclose(ends["pool5"], pool5(2), rtol=1e-5, atol=1e-6)
    assert np.abs(ends["pool5"] - pool5(1)).max() > 1e-3
