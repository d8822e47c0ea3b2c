"""The VGG16 body: sizes, parameter count, rates."""

import jax
import jax.numpy as jnp
import numpy as np

from segjax import ops
from segjax.models.vgg import VGG16, ConvStack
from tests.models.fill import random_variables


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
        return ops.max_pool(x, 3, stride=1, padding=1, ceil_mode=True)

    np.testing.assert_allclose(ends["pool5"], pool5(2), rtol=1e-5, atol=1e-6)
    assert np.abs(ends["pool5"] - pool5(1)).max() > 1e-3
