"""Gradients of logits and weights; tests/test_crf_rnn.py trains network and CRF together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax import crf
from tests.crf import reference

LOGITS, IMAGE = reference.random_problem(12, 14, 4)
TARGET = np.random.default_rng(1).integers(0, 4, (12, 14)).astype(np.int32)
MATRICES = np.random.default_rng(2).normal(size=(2, 4, 4)).astype(np.float32)


def loss(logits, weights, **options):
    kernels = (crf.Bilateral(5.0, 25.0, weights[0]), crf.Spatial(2.0, weights[1]))
    refined = crf.refine_logits(logits, IMAGE, kernels, num_iterations=4, capacity=1008, **options)
    return optax.softmax_cross_entropy_with_integer_labels(refined, TARGET).mean()


def plain_loss(logits, weights, normalization):
    """The same from dense matrices, in operations that JAX differentiates by itself."""
    image = np.asarray(IMAGE)
    kernels = (crf.Bilateral(5.0, 25.0), crf.Spatial(2.0))
    ks = [reference.normalize(reference.dense(k, image), normalization) for k in kernels]
    unary = logits.reshape(-1, 4)
    current = unary
    for _ in range(4):
        q = jax.nn.softmax(current, -1)
        messages = [jnp.dot(k.astype(np.float32), q, precision="highest") for k in ks]
        current = unary - sum(
            jnp.dot(m, w.T, precision="highest") for w, m in zip(weights, messages)
        )
    losses = optax.softmax_cross_entropy_with_integer_labels(current, TARGET.reshape(-1))
    return losses.mean()


@pytest.mark.parametrize("normalization", ["symmetric", "after", "before"])
def test_gradients_of_exact_equal_automatic_differentiation(normalization):
    weights = jnp.asarray(MATRICES)
    options = {"filter": "exact", "normalization": normalization}
    value, grads = jax.value_and_grad(functools.partial(loss, **options), (0, 1))(LOGITS, weights)
    plain = functools.partial(plain_loss, normalization=normalization)
    expected, expected_grads = jax.value_and_grad(plain, (0, 1))(LOGITS, weights)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    for a, b in zip(grads, expected_grads):
        np.testing.assert_allclose(a, b, atol=2e-6 * max(1, float(jnp.abs(b).max())), rtol=1e-4)


@pytest.mark.parametrize("normalization", ["symmetric", "after"])
def test_gradients_of_the_lattice_equal_finite_differences(normalization):
    weights = jnp.asarray(MATRICES)
    function = functools.partial(loss, normalization=normalization)
    function = jax.jit(jax.value_and_grad(function, (0, 1)))
    _, (d_logits, d_weights) = function(LOGITS, weights)
    rng = np.random.default_rng(5)
    for _ in range(3):
        u = rng.normal(size=LOGITS.shape).astype(np.float32)
        w = rng.normal(size=MATRICES.shape).astype(np.float32)
        step = 1e-2
        ahead, _ = function(LOGITS + step * u, weights + step * w)
        behind, _ = function(LOGITS - step * u, weights - step * w)
        slope = float(ahead - behind) / (2 * step)
        expected = float(np.vdot(d_logits, u) + np.vdot(d_weights, w))
        assert slope == pytest.approx(expected, rel=2e-2, abs=2e-4)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_every_kind_of_weight_has_a_gradient(kind):
    weights = [jnp.full((4,) * kind, 1.5), jnp.full((4,) * kind, 0.5)]
    grads = jax.grad(lambda w: loss(LOGITS, w, filter="exact"))(weights)
    for grad in grads:
        assert grad.shape == (4,) * kind
        assert float(jnp.abs(grad).max()) > 1e-6 * (kind < 2)
