"""Parts that several networks share."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops
from segjax.models import MaxUnpool, Norm, layers
from segjax.models.deeplab_v3 import ASPP


def run_batch_norm(norm, x, train, dtype="float32", shift=0.0, variables=None):
    """Applies one BatchNorm layer as a network would; returns the output and its variables."""

    class Net(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, x):
            return layers.batch_norm(norm, train, dtype, "bn1", shift)(x)

    if variables is None:
        variables = Net().init(jax.random.key(0), x)
    y, changed = Net().apply(variables, x, mutable=["batch_stats"])
    return y, variables, changed.get("batch_stats")


def test_batch_norm_normalises_and_averages():
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 2)).astype("f")
    norm = Norm(decay=0.75, epsilon=0.5)
    y, variables, changed = run_batch_norm(norm, x, train=True, shift=0.25)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 0.5) + 0.25, atol=1e-5)
    np.testing.assert_array_equal(variables["batch_stats"]["bn1"]["mean"], 0)
    np.testing.assert_allclose(changed["bn1"]["mean"], 0.25 * mean, rtol=1e-5)
    np.testing.assert_allclose(changed["bn1"]["var"], 0.75 + 0.25 * variance, rtol=1e-4)


@pytest.mark.parametrize("norm", [Norm(frozen=True), Norm()], ids=["frozen", "evaluation"])
def test_batch_norm_by_running_statistics(norm):
    x = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype("f")
    stats = {"bn1": {"mean": jnp.array([1.0, 2.0]), "var": jnp.array([3.0, 4.0])}}
    params = {"bn1": {"scale": jnp.array([5.0, 6.0]), "bias": jnp.array([7.0, 8.0])}}
    variables = {"params": params, "batch_stats": stats}
    y, _, changed = run_batch_norm(norm, x, train=norm.frozen, variables=variables)
    expected = (x - np.array([1, 2])) / np.sqrt(np.array([3, 4]) + 1e-5) * [5, 6] + [7, 8]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert not changed or jax.tree.all(jax.tree.map(np.array_equal, changed, stats))


def test_batch_norm_in_bfloat16_keeps_float32_statistics():
    x = (3 + jax.random.normal(jax.random.key(0), (4, 5, 6, 2))).astype(jnp.bfloat16)
    y, variables, changed = run_batch_norm(Norm(), x, train=True, dtype="bfloat16")
    assert y.dtype == jnp.bfloat16
    assert {v.dtype for v in jax.tree.leaves((variables, changed))} == {jnp.dtype("float32")}


def test_batch_norm_over_a_mapped_axis_sees_the_whole_batch():
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 2))
    whole, variables, changed = run_batch_norm(Norm(), x, train=True)
    run = functools.partial(
        run_batch_norm, Norm(axis_name="batch"), train=True, variables=variables
    )
    parts, stats = jax.vmap(lambda x: run(x)[::2], axis_name="batch")(x.reshape(4, 2, 3, 3, 2))
    np.testing.assert_allclose(parts.reshape(whole.shape), whole, atol=1e-5)
    for part, everyone in zip(jax.tree.leaves(stats), jax.tree.leaves(changed)):
        np.testing.assert_allclose(part, np.broadcast_to(everyone, part.shape), rtol=1e-5)


def test_batch_norm_on_four_devices_is_that_of_one():
    """Outputs, statistics and gradients; an all-reduce forward and one backward, for each layer."""
    x = jax.random.normal(jax.random.key(0), (8, 3, 5, 2)) + 1
    target = jax.random.normal(jax.random.key(1), x.shape)
    _, variables, _ = run_batch_norm(Norm(), x, train=True)

    def gradients(norm, x, target):
        def loss(x, params):
            both = {**variables, "params": params}
            y, _, changed = run_batch_norm(norm, x, train=True, variables=both)
            return jnp.sum((y - target) ** 2), (y, changed)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, variables["params"])

    (dx, dparams), (y, stats) = gradients(Norm(), x, target)
    split = lambda x: x.reshape(4, 2, *x.shape[1:])
    run = jax.pmap(functools.partial(gradients, Norm(axis_name="batch")), axis_name="batch")
    (dx4, dparams4), (y4, stats4) = run(split(x), split(target))
    np.testing.assert_allclose(y4, split(y), atol=1e-5)
    np.testing.assert_allclose(dx4, split(dx), atol=1e-5)
    for four, one in zip(jax.tree.leaves(dparams4), jax.tree.leaves(dparams), strict=True):
        np.testing.assert_allclose(four.sum(0), one, rtol=1e-4, atol=1e-5)
    for four, one in zip(jax.tree.leaves(stats4), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(four, np.broadcast_to(one, four.shape), rtol=1e-5)
    text = run.lower(split(x), split(target)).as_text()
    assert text.count("stablehlo.all_reduce") == 2


@pytest.mark.parametrize(
    ("size", "stride", "rate", "rows"),
    [(1, 1, 1, 9), (1, 2, 1, 5), (3, 1, 3, 9), (7, 2, 1, 5), (3, 2, 2, 5)],
)
def test_conv_is_centred_and_keeps_the_size_over_the_stride(size, stride, rate, rows):
    """One pixel in the middle comes out as the mirrored kernel around the middle."""
    layer = layers.conv(2, size, "float32", "conv", stride=stride, rate=rate, use_bias=True)
    x = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4].set(1)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])[:, :, 0]
    assert kernel.shape == (size, size, 2) and y.shape == (1, rows, rows, 2)
    expected = np.zeros((9 + 2 * rate * size, 9 + 2 * rate * size, 2), np.float32)
    middle = 4 + rate * size
    offsets = rate * (np.arange(size) - size // 2)
    expected[np.ix_(middle - offsets, middle - offsets)] = kernel
    inside = expected[rate * size :, rate * size :][:9:stride, :9:stride]
    np.testing.assert_allclose(y[0], inside, rtol=1e-6)
    np.testing.assert_array_equal(variables["params"]["bias"], 0)


def test_fcn_head_drops_whole_channels():
    head = layers.FCNHead(num_classes=3, features=16, dropout=0.5, dropout_dims=(1, 2))
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
    variables = jax.jit(head.init)(jax.random.key(1), x)
    assert sorted(variables["params"]) == ["bn", "conv", "logits"]
    logits, changed = head.apply(
        variables,
        x,
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, layers.nn.Dropout),
        rngs={"dropout": jax.random.key(2)},
    )
    [dropped] = changed["intermediates"]["Dropout_0"]["__call__"]
    silent = np.all(np.asarray(dropped) == 0, axis=(1, 2))
    assert 4 < silent.sum() < 28  # of 32 channels of two images
    assert logits.shape == (2, 5, 5, 3) and logits.dtype == jnp.float32


def test_example_of_max_unpool():
    examples = doctest.DocTestFinder().find(MaxUnpool, globs=vars(layers))
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example)
    assert runner.failures == 0
    assert runner.tries == 3


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, None, 0), (3, 2, 1), (3, 3, 1)])
def test_max_unpool_is_the_function(window, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    geometry = {"window": window, "stride": stride, "padding": padding}
    values, indices = ops.max_pool_with_argmax(x, **geometry)
    layer = MaxUnpool(**geometry)
    assert layer.init(jax.random.key(0), values, indices, (7, 6)) == {}
    y = layer.apply({}, values, indices, (7, 6))
    np.testing.assert_array_equal(y, ops.max_unpool(values, indices, (7, 6)))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_biases_in_bfloat16_do_not_stall(stride):
    """Of 2 x 161 x 161 pixels; a sum in bfloat16 stops where one more is less than its last bit."""

    class Net(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, x):
            return layers.conv(4, 3, "bfloat16", "conv", stride=stride, use_bias=True)(x)

    x = jnp.ones((2, 161, 161, 3))
    variables = Net().init(jax.random.key(0), x)
    names = layers.nn.Conv(4, (3, 3)).init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, variables["params"]["conv"]) == jax.tree.map(jnp.shape, names)
    y, pull = jax.vjp(lambda v: Net().apply(v, x), variables)
    assert y.dtype == jnp.bfloat16
    (grads,) = pull(jnp.ones_like(y))
    np.testing.assert_array_equal(grads["params"]["conv"]["bias"], y.size // 4)


def test_the_gradient_of_pooled_features_in_bfloat16_does_not_stall():
    """By the shift of the pooled branch, of which every pixel of the map has a copy."""
    x = jax.random.normal(jax.random.key(0), (2, 65, 65, 4))

    def gradient(dtype):
        aspp = ASPP(features=4, rates=(1,), dtype=dtype)
        variables = ASPP(features=4, rates=(1,)).init(jax.random.key(1), x)
        total = lambda v: aspp.apply(v, x).astype(jnp.float32).sum()
        return jax.jit(jax.grad(total))(variables)["params"]["bn_pool"]["bias"]

    np.testing.assert_allclose(gradient("bfloat16"), gradient("float32"), rtol=5e-3)
