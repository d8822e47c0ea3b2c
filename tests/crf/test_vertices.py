"""Sorted corners of simplices: what identifies a vertex, and what does not fit."""

import jax
import numpy as np

from segjax.crf import simplex, vertices
from tests.crf import reference


def test_keys_tell_vertices_apart_and_stay_in_their_space():
    features, extent, _ = reference.random_points(5, 20.0)
    corners = jax.jit(vertices.sort_corners, static_argnums=1)(tuple(features), extent)
    key = np.asarray(corners.key)
    assert key.min() >= 0
    assert key.max() < simplex.key_space(extent)
    assert int(corners.count) == int(corners.new.sum())


def test_features_outside_their_extent_are_told():
    features, extent, _ = reference.random_points(3, 2.0)
    features[1, 7] = extent[1] * 1.01
    corners = jax.jit(vertices.sort_corners, static_argnums=1)(tuple(features), extent)
    assert int(corners.count) == 4 * reference.POINTS + 1
