"""Valid taps of atrous convolutions, counted and measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import large_rates
from segjax.models.atrous import AtrousConv


@pytest.mark.parametrize(("side", "rate"), [(5, 1), (9, 4), (9, 6), (7, 7), (65, 64)])
def test_valid_taps_are_those_of_a_convolution_of_ones(side, rate):
    layer = AtrousConv(1, (3, 3), rate, use_bias=False)
    ones = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    counts = np.asarray(layer.apply(ones, jnp.ones((1, side, side, 1)))).astype(int).ravel()
    shares = {int(n): c / side**2 for n, c in zip(*np.unique(counts, return_counts=True))}
    assert large_rates.valid_taps(side, rate) == pytest.approx(shares)


def test_at_rate_64_of_65_the_centre_is_left_almost_everywhere():
    assert large_rates.valid_taps(65, 64)[1] == pytest.approx((63 / 65) ** 2)


def test_without_image_features_one_branch_is_missing():
    fields = {"depth": 14, "rates": (1, 2, 3), "features": 8, "width": 4}
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    shapes = [
        jax.eval_shape(network(5, **fields).init, jax.random.key(0), image)["params"]["aspp"]
        for network in (large_rates.DeepLabV3, large_rates.WithoutImageFeatures)
    ]
    assert set(shapes[0]) - set(shapes[1]) == {"conv_pool", "bn_pool"}
    assert [s["conv_project"]["kernel"].shape[2] for s in shapes] == [40, 32]


def test_centre_weight():
    assert large_rates.centre_weight(np.ones((3, 3, 2, 2))) == pytest.approx(1 / 9)
