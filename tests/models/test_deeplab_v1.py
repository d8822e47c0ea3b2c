"""DeepLab v1: the paper's variants, and its multi-scale branches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import DeepLabV1
from segjax.models.deeplab_v1 import MSC_STRIDES
from tests.models.fill import random_variables

ALL = tuple(MSC_STRIDES)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        # The paper's Table 2 has 20.5M, 134.3M and 65.1M; exactly, from the layers' shapes:
        ({}, 20_505_429),
        ({"kernel_size": 7, "rate": 4, "width": 4096}, 134_346_581),
        ({"kernel_size": 4, "rate": 4, "width": 4096}, 65_140_565),
        ({"kernel_size": 4, "rate": 8, "width": 4096}, 65_140_565),
        ({"msc": ALL}, 21_711_445),
    ],
)
def test_variants_of_the_paper(fields, count):
    net = DeepLabV1(num_classes=21, **fields)
    image = jax.ShapeDtypeStruct((1, 321, 321, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    assert list(variables) == ["params"]
    assert sum(x.size for x in jax.tree.leaves(variables)) == count
    logits = jax.eval_shape(net.apply, variables, image)["logits"]
    assert logits.shape == (1, 41, 41, 21) and logits.dtype == jnp.float32


@pytest.mark.parametrize("size", [(321, 321), (320, 327), (306, 500), (33, 64)])
def test_branches_reach_the_grid_of_any_size(size):
    net = DeepLabV1(num_classes=3, msc=ALL, body_width=8, width=16)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    with_branches = jax.eval_shape(net.apply, variables, image)["logits"]
    assert variables["params"]["fc8"]["kernel"].shape == (1, 1, 16 + 5 * 128, 3)
    assert variables["params"]["msc0"]["conv1"]["kernel"].shape == (3, 3, 3, 128)
    plain = net.clone(msc=())
    variables = jax.eval_shape(plain.init, jax.random.key(0), image)
    assert with_branches.shape == jax.eval_shape(plain.apply, variables, image)["logits"].shape


def test_a_branch_adds_to_the_scores():
    """With its part of the classifier at zero a branch changes nothing, else it does."""
    net = DeepLabV1(num_classes=3, msc=("pool2",), body_width=4, width=16)
    image = jax.random.normal(jax.random.key(0), (1, 33, 41, 3))
    params = random_variables(net, image)["params"]
    assert sorted(params) == ["backbone", "fc6", "fc7", "fc8", "msc2"]
    kernel = params["fc8"]["kernel"]

    plain = {name: value for name, value in params.items() if name != "msc2"}
    plain["fc8"] = {"kernel": kernel[:, :, :16], "bias": params["fc8"]["bias"]}
    expected = jax.jit(net.clone(msc=()).apply)({"params": plain}, image)["logits"]
    silent = params | {"fc8": params["fc8"] | {"kernel": kernel.at[:, :, 16:].set(0)}}
    apply = jax.jit(net.apply)
    np.testing.assert_allclose(
        apply({"params": silent}, image)["logits"], expected, rtol=1e-5, atol=1e-5
    )
    assert np.abs(apply({"params": params}, image)["logits"] - expected).max() > 1e-3


def test_refuses_a_branch_that_is_not_there():
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"msc=\('pool5',\): the maps with a branch are"):
        jax.eval_shape(DeepLabV1(21, msc=("pool5",)).init, jax.random.key(0), image)
