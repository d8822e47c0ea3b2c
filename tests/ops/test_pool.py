"""Pooling with indices, unpooling and adaptive pooling."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segjax import ops

GEOMETRIES = [  # window, stride, padding, ceil_mode
    (2, 2, 0, True),
    (2, 2, 0, False),
    (3, 3, 1, True),
    (2, 3, 1, True),
    ((1, 2), (2, 2), (0, 1), True),
    (3, 2, 1, True),
    (3, 2, 0, False),
    (3, 1, 1, False),
]
SEPARATE = GEOMETRIES[:5]  # their windows do not overlap


def pair(value):
    return (value, value) if isinstance(value, int) else value


def cells(size, window, stride, padding, ceil_mode):
    """Counts windows by trying: each starts before the end of the image and its left padding."""
    count = 0
    while True:
        start = count * stride - padding
        whole = start + window <= size + padding
        if not whole and not (
            ceil_mode and start < size and start - stride + window < size + padding
        ):
            return count
        count += 1


def pool_by_loops(image, window, stride, padding, ceil_mode):
    """Returns maxima and positions of one [H, W, C] image, pixel by pixel."""
    size, (kh, kw), (sh, sw), (ph, pw) = image.shape[:2], *map(pair, (window, stride, padding))
    h, w = (cells(n, k, s, p, ceil_mode) for n, k, s, p in zip(size, (kh, kw), (sh, sw), (ph, pw)))
    values = np.zeros((h, w, image.shape[2]), image.dtype)
    indices = np.zeros(values.shape, np.int32)
    for i, j, c in np.ndindex(values.shape):
        best = -np.inf, None
        for y in range(max(i * sh - ph, 0), min(i * sh - ph + kh, size[0])):
            for x in range(max(j * sw - pw, 0), min(j * sw - pw + kw, size[1])):
                if best[1] is None or image[y, x, c] > best[0]:
                    best = image[y, x, c], y * size[1] + x
        values[i, j, c], indices[i, j, c] = best
    return values, indices


def unpool_by_loops(values, indices, size):
    plane = np.zeros((size[0] * size[1], values.shape[-1]), values.dtype)
    for i, j, c in np.ndindex(values.shape):
        plane[indices[i, j, c], c] = values[i, j, c]  # the last one stays
    return plane.reshape(*size, -1)


def distinct(shape, seed=0):
    """Returns values a tenth apart, so that small changes do not move a maximum."""
    order = np.random.default_rng(seed).permutation(np.prod(shape))
    return jnp.asarray((order / 10 - np.prod(shape) / 20).reshape(shape), jnp.float32)


@pytest.mark.parametrize("size", [(7, 9), (8, 6)])
@pytest.mark.parametrize(("window", "stride", "padding", "ceil_mode"), GEOMETRIES)
def test_max_pool_takes_the_maxima(size, window, stride, padding, ceil_mode):
    x = -(distinct((2, *size, 3)) ** 2)
    geometry = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    expected = [pool_by_loops(np.asarray(one), window, **geometry)[0] for one in x]
    np.testing.assert_array_equal(ops.max_pool(x, window, **geometry), expected)
    half = x.astype(jnp.bfloat16)
    assert ops.max_pool(half, window, **geometry).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("size", "stride", "ceil_mode", "out"),
    [
        (321, 2, True, 161),
        (321, 2, False, 161),
        (320, 2, True, 161),
        (320, 2, False, 160),
        (2, 2, True, 2),
        (1, 2, True, 1),
        (40, 1, True, 40),
        (41, 1, False, 41),
    ],
)
def test_sizes_of_max_pool(size, stride, ceil_mode, out):
    x = jnp.zeros((1, size, 7, 1))
    y = ops.max_pool(x, 3, stride=stride, padding=1, ceil_mode=ceil_mode)
    assert y.shape[1] == out


def chain(window, stride, padding, ceil_mode, *, fast):
    """Returns the function that pools, squares the maxima and unpools them to the old size."""
    geometry = {"window": window, "stride": stride, "padding": padding} if fast else {}

    def run(x):
        values, indices = ops.max_pool_with_argmax(
            x, window, stride=stride, padding=padding, ceil_mode=ceil_mode
        )
        return ops.max_unpool(values * values, indices, x.shape[-3:-1], **geometry)

    return jax.jit(run)


def test_first_maximum_wins():
    x = jnp.array([[1.0, 3.0, 7.0, 7.0], [3.0, 2.0, 7.0, 7.0]])[..., None]
    values, indices = ops.max_pool_with_argmax(x, 2)
    np.testing.assert_array_equal(values[..., 0], [[3, 7]])
    np.testing.assert_array_equal(indices[..., 0], [[1, 2]])
    assert indices.dtype == jnp.int32


def test_gradient_of_a_tie_goes_to_the_first():
    gradient = jax.grad(lambda x: ops.max_pool_with_argmax(x, 2)[0].sum())(jnp.ones((2, 4, 1)))
    np.testing.assert_array_equal(gradient[..., 0], [[1, 0, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("window", [2, 3])
def test_padding_never_wins(window):
    x = jnp.full((3, 3, 1), -jnp.inf)
    values, indices = ops.max_pool_with_argmax(x, window, padding=1, ceil_mode=True)
    assert np.all(values == -jnp.inf)
    starts = [max(i * window - 1, 0) for i in range(values.shape[0])]
    np.testing.assert_array_equal(indices[..., 0], np.add.outer(np.array(starts) * 3, starts))


def test_nan_is_not_swept_under_the_carpet():
    x = jnp.array([[[1.0], [jnp.nan]], [[2.0], [3.0]]])
    values, indices = ops.max_pool_with_argmax(x, 2)
    assert np.isnan(values).all()
    assert indices.item() == 1


def test_ceil_rule_of_caffe():
    sizes = [(360, 480)]
    for _ in range(5):
        x = jax.ShapeDtypeStruct((*sizes[-1], 1), jnp.float32)
        pool = functools.partial(ops.max_pool_with_argmax, window=2, ceil_mode=True)
        sizes.append(jax.eval_shape(pool, x)[0].shape[:2])
    assert sizes[1:] == [(180, 240), (90, 120), (45, 60), (23, 30), (12, 15)]


@pytest.mark.parametrize("fast", [True, False])
def test_unpool_literal(fast):
    values = jnp.array([[5.0, 6.0], [7.0, 8.0]])[..., None]
    indices = jnp.array([[1, 2], [6, 8]])[..., None]
    y = ops.max_unpool(values, indices, (3, 3), **({"window": 2} if fast else {}))
    np.testing.assert_array_equal(y[..., 0], [[0, 5, 6], [0, 0, 0], [7, 0, 8]])


def test_of_several_claimants_the_last_wins_and_has_the_gradient():
    values = jnp.array([[1.0, 2.0, 3.0]])[..., None]
    indices = jnp.array([[4, 4, 0]])[..., None]
    y, pull = jax.vjp(lambda v: ops.max_unpool(v, indices, (2, 3)), values)
    np.testing.assert_array_equal(y[..., 0], [[3, 0, 0], [0, 2, 0]])
    (gradient,) = pull(jnp.arange(6.0).reshape(2, 3, 1))
    np.testing.assert_array_equal(gradient[..., 0], [[0, 4, 0]])


@hypothesis.settings(max_examples=20, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.data())
def test_any_geometry_equals_loops_and_keeps_the_maxima_alone(data):
    draw = data.draw
    size = draw(st.tuples(*[st.integers(1, 9)] * 2))
    window = draw(st.tuples(*[st.integers(1, 4)] * 2))
    stride = draw(st.tuples(*[st.integers(1, 4)] * 2))
    padding = tuple(draw(st.integers(0, k // 2)) for k in window)
    ceil_mode = draw(st.booleans())
    hypothesis.assume(all(cells(*n, ceil_mode) > 0 for n in zip(size, window, stride, padding)))
    # Few different values: many ties.
    x = np.random.default_rng(draw(st.integers(0, 99))).integers(1, 5, (*size, 2)).astype("f")

    @jax.jit
    def run(x):
        values, indices = ops.max_pool_with_argmax(
            x, window, stride=stride, padding=padding, ceil_mode=ceil_mode
        )
        geometry = {"window": window, "stride": stride, "padding": padding}
        return (
            values,
            indices,
            ops.max_unpool(values, indices, size),
            ops.max_unpool(values, indices, size, **geometry),
        )

    values, indices, general, fast = run(x)
    expected = pool_by_loops(x, window, stride, padding, ceil_mode)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(indices, expected[1])
    at_maximum = np.zeros((size[0] * size[1], 2), bool)
    for channel in range(2):
        at_maximum[np.ravel(indices[..., channel]), channel] = True
    np.testing.assert_array_equal(general, np.where(at_maximum.reshape(x.shape), x, 0))
    np.testing.assert_array_equal(fast, general)


@hypothesis.settings(max_examples=10, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_any_indices_overwrite_in_order(height, width, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(3, 4, 2)).astype("f")
    indices = rng.integers(0, height * width, (3, 4, 2)).astype(np.int32)
    y = jax.jit(ops.max_unpool, static_argnums=2)(values, indices, (height, width))
    np.testing.assert_array_equal(y, unpool_by_loops(values, indices, (height, width)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("geometry", SEPARATE, ids=str)
def test_both_forms_agree_to_the_bit_with_their_gradients(geometry, dtype):
    x = distinct((2, 7, 8, 3)).astype(dtype)
    g = distinct((2, 7, 8, 3), seed=1).astype(dtype)

    @jax.jit
    def both(x, g):
        results = []
        for fast in (True, False):
            y, pull = jax.vjp(chain(*geometry, fast=fast), x)
            results.append((y, *pull(g)))
        return results

    fast, general = both(x, g)
    assert fast[0].dtype == fast[1].dtype == dtype
    np.testing.assert_array_equal(fast[0], general[0])
    np.testing.assert_array_equal(fast[1], general[1])


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_gradients_against_finite_differences(geometry):
    separate = geometry in SEPARATE
    x = distinct((5, 7, 2))
    check = functools.partial(check_grads, order=1, eps=1e-2, atol=1e-2, rtol=1e-2)
    check(chain(*geometry, fast=False), (x,), modes=["rev"])
    check(chain(*geometry, fast=True), (x,), modes=["fwd", "rev"] if separate else ["rev"])


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_second_derivative(outer):
    x = distinct((3, 3, 1))
    sum_of_squares = lambda x: chain(2, 2, 0, True, fast=True)(x).sum()
    hessian = jax.jit(outer(jax.grad(sum_of_squares)))(x)
    _, positions = pool_by_loops(np.asarray(x), 2, 2, 0, True)
    expected = np.zeros(9)
    expected[positions.ravel()] = 2
    np.testing.assert_array_equal(hessian.reshape(9, 9), np.diag(expected))


@pytest.mark.parametrize("fast", [True, False])
def test_jit_vmap_and_leading_axes(fast):
    run = chain(2, 2, 0, True, fast=True) if fast else chain(3, 2, 1, True, fast=False)
    x = distinct((2, 3, 5, 7, 2))
    expected = np.stack([[run(image) for image in group] for group in x])
    np.testing.assert_array_equal(run(x), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(run))(x), expected)
    last = jax.jit(jax.vmap(run, in_axes=-1, out_axes=-1))(jnp.moveaxis(x, 0, -1))
    np.testing.assert_array_equal(last, np.moveaxis(expected, 0, -1))
    gradient = jax.grad(lambda x: run(x).sum())
    np.testing.assert_array_equal(jax.jit(jax.vmap(gradient))(x), jax.jit(gradient)(x))


def test_export_with_a_symbolic_batch():
    def run(x):
        values, indices = ops.max_pool_with_argmax(x, 2, ceil_mode=True)
        general = ops.max_unpool(values, indices, (5, 7))
        fast = ops.max_unpool(values, indices, (5, 7), window=2)
        overlapping, _ = ops.max_pool_with_argmax(x, 3, stride=2, padding=1)
        return general, fast, overlapping, ops.adaptive_avg_pool(x, 3), ops.adaptive_max_pool(x, 3)

    shape = jax.export.symbolic_shape("b, 5, 7, 2")
    exported = jax.export.export(jax.jit(run))(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = distinct((3, 5, 7, 2))
    for got, expected in zip(exported.call(x), run(x)):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.max_pool_with_argmax(x, 0), "window and stride"),
        (lambda x: ops.max_pool_with_argmax(x, 2, stride=0), "window and stride"),
        (lambda x: ops.max_pool_with_argmax(x, 2, padding=2), "at most half"),
        (lambda x: ops.max_pool_with_argmax(x, 5), "larger than the image"),
        (lambda x: ops.max_pool_with_argmax(x[..., 0], 2), r"\[4, 4\]"),
        (lambda x: ops.max_pool_with_argmax(x.astype(int), 2), "needs floating"),
        (lambda x: ops.max_unpool(x, x, (8, 8)), "integers from max_pool_with_argmax"),
        (lambda x: ops.max_unpool(x, x[:2].astype(int), (8, 8)), "integers from max_pool"),
        (
            lambda x: ops.max_unpool(x, x.astype(int), (9, 6), window=2),
            r"\(4, 3\) or \(5, 3\), but x is \(4, 4\)",
        ),
        (lambda x: ops.adaptive_avg_pool(x, 0), "bins"),
        (lambda x: ops.adaptive_max_pool(x, (2, 0)), "bins"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((4, 4, 1)))


def test_adaptive_average_of_symbolic_sizes():
    run = jax.jit(lambda x: ops.adaptive_avg_pool(x, 3))
    shape = jax.export.symbolic_shape("b, h, w, 2")
    exported = jax.export.export(run)(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = distinct((2, 5, 7, 2))
    np.testing.assert_allclose(exported.call(x), run(x), rtol=1e-5, atol=1e-5)


def test_adaptive_windows_are_uneven():
    x = jnp.arange(5.0).reshape(1, 5, 1)
    np.testing.assert_allclose(ops.adaptive_avg_pool(x, (1, 3))[0, :, 0], [0.5, 2, 3.5])
    np.testing.assert_array_equal(ops.adaptive_max_pool(x, (1, 3))[0, :, 0], [1, 3, 4])
    np.testing.assert_allclose(
        ops.adaptive_avg_pool(x, (1, 7))[0, :, 0], [0, 0.5, 1.5, 2, 2.5, 3.5, 4]
    )


@pytest.mark.parametrize("pool", [ops.adaptive_avg_pool, ops.adaptive_max_pool])
def test_adaptive_pools_under_vmap_and_grad(pool):
    x = distinct((2, 5, 7, 3))
    run = jax.jit(lambda x: pool(x, (2, 3)))
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(x), run(x), rtol=1e-6, atol=1e-6)
    check_grads(run, (x,), order=1, eps=1e-2, atol=1e-2, rtol=1e-2)
    assert run(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


class TestTorch:
    """The same, by PyTorch."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch", reason="needs the parity extra")

    @pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
    @pytest.mark.parametrize("size", [(7, 9), (8, 6)])
    def test_pool_and_unpool(self, torch, size, geometry):
        window, stride, padding, ceil_mode = geometry
        x = distinct((2, *size, 3))
        g = distinct((2, *size, 3), seed=1)
        theirs = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).requires_grad_()
        values, indices = torch.nn.functional.max_pool2d(
            theirs, window, stride, padding, ceil_mode=ceil_mode, return_indices=True
        )
        expected = torch.nn.functional.max_unpool2d(
            values * values, indices, window, stride, padding, output_size=size
        )
        expected.backward(torch.tensor(np.asarray(g)).permute(0, 3, 1, 2))
        channels_last = lambda t: t.detach().permute(0, 2, 3, 1).numpy()

        pool = functools.partial(
            ops.max_pool_with_argmax,
            window=window,
            stride=stride,
            padding=padding,
            ceil_mode=ceil_mode,
        )
        ours = jax.jit(pool)(x)
        np.testing.assert_array_equal(ours[0], channels_last(values))
        np.testing.assert_array_equal(ours[1], channels_last(indices))
        for fast in (True, False):
            y, pull = jax.vjp(chain(*geometry, fast=fast), x)
            np.testing.assert_array_equal(y, channels_last(expected))
            if geometry in SEPARATE:  # else PyTorch's gradient reaches those who were overwritten
                np.testing.assert_array_equal(pull(g)[0], channels_last(theirs.grad))

    def test_gradient_of_overlapping_pools(self, torch):
        x = distinct((2, 7, 9, 3))
        theirs = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).requires_grad_()
        values = torch.nn.functional.max_pool2d(theirs, 3, 2, 1, ceil_mode=True)
        (values**2).sum().backward()
        pool = functools.partial(
            ops.max_pool_with_argmax, window=3, stride=2, padding=1, ceil_mode=True
        )
        gradient = jax.grad(lambda x: jnp.square(pool(x)[0]).sum())(x)
        np.testing.assert_allclose(gradient, theirs.grad.permute(0, 2, 3, 1), rtol=1e-6)

    @pytest.mark.parametrize("bins", [1, 3, 6, (4, 11)])
    @pytest.mark.parametrize("size", [(7, 9), (12, 6)])
    def test_adaptive(self, torch, size, bins):
        x = distinct((2, *size, 3))
        theirs = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
        for ours, function in (
            (ops.adaptive_avg_pool, torch.nn.functional.adaptive_avg_pool2d),
            (ops.adaptive_max_pool, torch.nn.functional.adaptive_max_pool2d),
        ):
            expected = function(theirs, bins).permute(0, 2, 3, 1)
            got = jax.jit(ours, static_argnums=1)(x, bins)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
