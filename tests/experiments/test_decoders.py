"""The decoders of SegNet's Table 1: sizes, parameters, and upsampling that starts bilinear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import decoders, stored_indices, trial
from segjax import ops

ENCODER = 7 * 7 * 64 * (3 + 3 * 64) + 4 * 3 * 64  # kernels; biases, scales, shifts
PARAMETERS = {
    # as in the paper, which gives 1.425 M, 1.425 M, 0.65 M and 0.65 M
    "SegNet-Basic": 1_416_587,
    "bilinear": 1_416_587,
    "encoder addition": 1_416_587,
    "FCN-Basic": ENCODER + 4 * (64 * 11 * 11 + 11) + 5 * 65 * 11,
    "FCN-Basic, no addition": ENCODER + 4 * (64 * 11 * 11 + 11) + 65 * 11,
}


@pytest.mark.parametrize("name", stored_indices.DECODERS)
def test_parameters_and_shapes(name):
    network = stored_indices.DECODERS[name]
    assert trial.parameters(network(11)) == PARAMETERS[name]
    image = jax.ShapeDtypeStruct((2, 45, 61, 3), jnp.float32)
    output = jax.eval_shape(network(11).init_with_output, jax.random.key(0), image)[0]
    assert output["logits"].shape == (2, 45, 61, 11)


def test_fcn_basic_is_as_large_as_the_paper_says():
    assert round(PARAMETERS["FCN-Basic"] / 1e6, 2) == 0.65


def test_memory_kept_is_eleven_times_as_large():
    # Two bits for each cell of a 2x2 window are half a bit a value of the map before pooling.
    positions, scores = (stored_indices.kept(n) for n in ("SegNet-Basic", "FCN-Basic"))
    assert scores / positions == pytest.approx(11, rel=0.01)


def test_learned_upsampling_starts_bilinear(key):
    x = jax.random.normal(key, (1, 9, 12, 3))
    like = jnp.zeros((1, 17, 24, 5))
    layer = decoders.nn.ConvTranspose(3, (8, 8), (2, 2), kernel_init=decoders.bilinear_kernel)
    y = layer.init_with_output(key, x)[0][:, :17]
    expected = ops.resize(x, (18, 24), align_corners=False, antialias=False)[:, :17]
    assert like.shape[1:3] == y.shape[1:3]
    np.testing.assert_allclose(y[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-5)
