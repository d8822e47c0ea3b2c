"""The permutohedral lattice against one in a dict, and the properties that define it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.crf import lattice, vertices
from tests.crf import reference

ALIVE = np.asarray(True)


@functools.partial(jax.jit, static_argnums=(1, 2))
def build(features, extent, capacity):
    tables = vertices.build(vertices.sort_corners(features, extent), extent, capacity=capacity)
    ones = jnp.ones(features[0].shape[0], jnp.float32)
    return lattice.scale(tables, ones, ones)


apply = jax.jit(lattice.apply, static_argnames="reverse")


@pytest.mark.parametrize(
    ("dimension", "spread"), [(1, 5.0), (2, 6.0), (5, 0.7), (5, 30.0), (7, 2.0)]
)
def test_filter_equals_a_lattice_in_a_dict(dimension, spread):
    features, extent, values = reference.random_points(dimension, spread)
    tables = build(tuple(features), extent, (dimension + 1) * reference.POINTS)
    expected = reference.lattice_filter(features.T.astype(np.float64), values)
    np.testing.assert_allclose(apply(tables, values, ALIVE), expected, atol=2e-5)
    expected = reference.lattice_filter(features.T.astype(np.float64), values, reverse=True)
    np.testing.assert_allclose(apply(tables, values, ALIVE, reverse=True), expected, atol=2e-5)


def test_more_capacity_changes_nothing_and_the_count_is_true():
    features, extent, values = reference.random_points(5, 4.0)
    roomy = build(tuple(features), extent, 6 * reference.POINTS)
    count = int(roomy.count)
    tight = build(tuple(features), extent, count)
    assert int(tight.count) == count == len(np.unique(roomy.corner))
    np.testing.assert_allclose(
        apply(tight, values, ALIVE), apply(roomy, values, ALIVE), rtol=1e-5, atol=1e-6
    )


def test_each_point_is_a_convex_combination_of_its_corners():
    features, extent, _ = reference.random_points(5, 4.0)
    tables = build(tuple(features), extent, 6 * reference.POINTS)
    weight = np.asarray(tables.slice_weight) * (1 + 2.0**-5)
    assert weight.min() > -1e-5
    np.testing.assert_allclose(weight.sum(0), 1, atol=1e-5)
    assert np.asarray(tables.corner).min() > 0


def test_the_transpose_is_the_blur_in_reverse():
    features, extent, u = reference.random_points(5, 4.0)
    v = np.random.default_rng(1).normal(size=u.shape).astype(np.float32)
    tables = build(tuple(features), extent, 6 * reference.POINTS)
    rng = np.random.default_rng(2)
    before, after = rng.uniform(0.5, 2, (2, reference.POINTS)).astype(np.float32)
    forward, backward = lattice.scale(tables, before, after), lattice.scale(tables, after, before)
    left = np.vdot(apply(forward, u, ALIVE), v)
    right = np.vdot(u, apply(backward, v, ALIVE, reverse=True))
    same_order = np.vdot(u, apply(backward, v, ALIVE))
    assert left == pytest.approx(right, rel=1e-5)
    assert abs(left - same_order) > 3 * abs(left - right)
