"""The exact spatial filter against the sum over all pairs."""

import jax.numpy as jnp
import numpy as np
import pytest

from segjax import crf
from segjax.crf import spatial
from tests.crf import reference


@pytest.mark.parametrize("shape", [(70, 3), (3, 70), (9, 12)])
@pytest.mark.parametrize("sigma", [1.5, 20.0])  # the wide one is a matrix product on long sides
def test_separable_equals_the_sum_over_all_pairs(shape, sigma):
    values = np.random.default_rng(0).normal(size=(shape[0] * shape[1], 4)).astype(np.float32)
    kernel = reference.dense(crf.Spatial(sigma), np.zeros((*shape, 3)))
    found = spatial.separable(jnp.asarray(values), shape, sigma, jnp.asarray(True))
    np.testing.assert_allclose(found, kernel @ values, atol=1e-4)
    np.testing.assert_allclose(spatial.separable_sums(*shape, sigma), kernel.sum(1), rtol=1e-5)
