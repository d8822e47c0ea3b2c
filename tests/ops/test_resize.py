"""Resizing of images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segjax import ops

RULES = [(a, b) for a in (True, False) for b in (True, False)]  # align_corners, antialias


def noise(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def row(values, out, **rules):
    """Resizes one row of numbers."""
    x = jnp.array(values, jnp.float32).reshape(1, -1, 1)
    return ops.resize(x, (1, out), **rules)[0, :, 0]


@pytest.mark.parametrize(
    ("values", "align_corners", "antialias", "expected"),
    [
        ([0, 4, 8], True, False, [0, 2, 4, 6, 8]),
        ([0, 10], False, False, [0, 1, 5, 9, 10]),  # positions -0.3, 0.1, 0.5, 0.9, 1.3
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], True, False, [0, 2, 4, 6, 8]),
        ([0, 0, 12, 0, 0, 0, 0, 0, 0, 0], False, False, [0, 6, 0, 0, 0]),
        # Triangles of half-width 2 around 0.5, 2.5, ...: 0.75 of 1.75, then 0.25 of 2.
        ([0, 12, 0, 0, 0, 0, 0, 0, 0, 0], False, True, [36 / 7, 1.5, 0, 0, 0]),
    ],
)
def test_literal(values, align_corners, antialias, expected):
    got = row(values, 5, align_corners=align_corners, antialias=antialias)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("align_corners", "antialias"), RULES)
def test_constants_stay_and_the_same_size_is_the_identity(align_corners, antialias):
    rules = {"align_corners": align_corners, "antialias": antialias}
    x = noise(2, 5, 7, 3)
    np.testing.assert_array_equal(ops.resize(x, (5, 7), **rules), x)
    for size in [(1, 1), (3, 11), (9, 2)]:
        np.testing.assert_allclose(ops.resize(jnp.ones((5, 7, 1)), size, **rules), 1, rtol=1e-6)


@pytest.mark.parametrize("size", [(9, 11), (3, 4), (9, 4)])
def test_leading_axes_jit_vmap_and_types(size):
    rules = {"align_corners": True, "antialias": False}
    run = jax.jit(lambda x: ops.resize(x, size, **rules))
    x = noise(2, 3, 5, 7, 4)
    expected = np.stack([[run(image) for image in group] for group in x])
    np.testing.assert_allclose(run(x), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(x), expected, rtol=1e-6, atol=1e-6)
    half = run(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("align_corners", "antialias"), RULES)
def test_gradient(align_corners, antialias):
    rules = {"align_corners": align_corners, "antialias": antialias}
    run = jax.jit(lambda x: ops.resize(x, (4, 9), **rules))
    check_grads(run, (noise(5, 7, 2),), order=1, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("size", "out"), [(1, 4), (4, 1), (5, 12), (12, 5), (321, 41), (41, 321)])
def test_weights_of_traced_sizes_are_those_of_static_ones(size, out, align_corners):
    static = ops.bilinear_weights(
        np.arange(out), out, size, np.arange(size), align_corners=align_corners
    )
    assert isinstance(static, np.ndarray) and static.dtype == np.float64
    run = jax.jit(functools.partial(ops.bilinear_weights, align_corners=align_corners))
    traced = run(jnp.arange(out), out, size, jnp.arange(size))
    np.testing.assert_allclose(traced, static, rtol=0, atol=1e-7)


def test_weights_outside_are_zero():
    weights = functools.partial(ops.bilinear_weights, out=6, size=3, align_corners=False)
    wide = weights(np.arange(-2, 9), pixel=np.arange(-1, 7))
    np.testing.assert_array_equal(wide[2:8, 1:4], weights(np.arange(6), pixel=np.arange(3)))
    np.testing.assert_array_equal(wide[2:8, 1:4].sum(1), 1)
    assert wide.sum() == 6


def test_resample_takes_matrices_made_on_the_device():
    rows, columns = noise(3, 5), noise(9, 7)
    expected = jnp.einsum("ih,jw,hwc->ijc", rows, columns, noise(5, 7, 2))
    got = jax.jit(ops.resample)(noise(5, 7, 2), rows, columns)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_export_with_symbolic_sizes(align_corners):
    def run(x):
        double = tuple(2 * n for n in x.shape[1:3])
        up = ops.resize(x, double, align_corners=align_corners, antialias=False)
        return up, ops.resize(up, (9, 4), align_corners=align_corners, antialias=False)

    shape = jax.export.symbolic_shape("b, h, w, 2")
    exported = jax.export.export(jax.jit(run))(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = noise(3, 5, 7, 2)
    for got, expected in zip(exported.call(x), run(x)):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.resize(x[0], (2, 2), align_corners=True, antialias=True), "channels"),
        (lambda x: ops.resize(x, (2, 0), align_corners=True, antialias=True), "at least 1"),
        (lambda x: ops.resize(x > 0, (2, 2), align_corners=True, antialias=True), "resize_labels"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((4, 4, 3)))


def test_the_rules_must_be_spelled_out():
    with pytest.raises(TypeError, match="antialias"):
        ops.resize(jnp.zeros((4, 4, 3)), (2, 2), align_corners=True)


class TestTorch:
    """The same, by PyTorch, whose positions are float32: 1e-5 of values of order one."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch", reason="needs the parity extra")

    @pytest.mark.parametrize(("align_corners", "antialias"), RULES)
    @pytest.mark.parametrize("size", [(5, 5), (14, 20), (33, 7), (1, 1), (3, 1), (65, 41)])
    @pytest.mark.parametrize("source", [(7, 9), (33, 21)])
    def test_resize(self, torch, source, size, align_corners, antialias):
        x = noise(2, *source, 3)
        expected = torch.nn.functional.interpolate(
            torch.tensor(np.asarray(x)).permute(0, 3, 1, 2),
            size,
            mode="bilinear",
            align_corners=align_corners,
            antialias=antialias,
        )
        rules = {"align_corners": align_corners, "antialias": antialias}
        got = jax.jit(lambda x: ops.resize(x, size, **rules))(x)
        np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
