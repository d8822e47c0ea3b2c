"""torchvision's DeepLab v3: sizes and parameter counts; its values: tests/test_pretrained.py."""

import jax
import jax.numpy as jnp
import pytest

from segjax.models import TorchvisionDeepLabV3


# The numbers are torchvision's num_params of the two.
@pytest.mark.parametrize(("depth", "expected"), [(101, 60_996_202), (50, 42_004_074)])
def test_parameter_counts_and_sizes(depth, expected):
    net = TorchvisionDeepLabV3(num_classes=21, depth=depth)
    image = jax.ShapeDtypeStruct((1, 520, 520, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == expected
    outputs = jax.eval_shape(net.apply, variables, image)
    assert {name: (x.shape, str(x.dtype)) for name, x in outputs.items()} == {
        name: ((1, 65, 65, 21), "float32") for name in ("logits", "aux")
    }
