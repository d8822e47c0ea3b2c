"""Every operator and its transpose, which is the gradient of message passing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import crf
from segjax.crf import lattice, operators, vertices
from segjax.crf.kernels import extent, features
from tests.crf import reference

IMAGE = jnp.asarray(reference.random_problem(12, 14, 4)[1])


def operator(filter: str) -> operators.Operator:
    """The operator of one kernel, with different factors before and after."""
    shape, alive = (12, 14), jnp.asarray(True)
    if filter == "planar":
        return operators.planar_operator(crf.Spatial(2.0), shape, "after", alive, None)
    if filter == "separable":
        return operators.separable_operator(crf.Spatial(2.0), shape, "after", alive, None)
    kernel = crf.Bilateral(5.0, 25.0)
    if filter != "lattice":
        return operators.dense_operator(kernel, IMAGE, filter, "after", alive, None)
    box = extent(kernel, *shape)
    corners = vertices.sort_corners(features(kernel, IMAGE), box)
    tables = vertices.build(corners, box, capacity=1008)
    return operators.lattice_operator(tables, lattice.kernel_sums(tables, alive), "after", alive)


@pytest.mark.parametrize("filter", ["planar", "separable", *crf.FILTERS])
def test_message_passing_is_transposed(filter):
    """<K u, v> = <u, K' v> for every filter, as its gradient has it."""
    u, v = np.random.default_rng(0).normal(size=(2, 12 * 14, 8)).astype(np.float32)

    @jax.jit
    def products(u, v):
        op = operator(filter)
        ku, pull = jax.vjp(functools.partial(operators.message_passing, op), u)
        return jnp.vdot(ku, v), jnp.vdot(u, pull(v)[0]), jnp.vdot(u, operators.apply(op, v))

    left, right, not_transposed = map(float, products(u, v))
    assert left == pytest.approx(right, rel=1e-5)
    assert left != pytest.approx(not_transposed, rel=1e-3)
