import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import config as config_lib
from segjax import crf_rnn, state, steps
from segjax.models.layers import Norm, batch_norm


class Net(nn.Module):
    """Two convolutions with BatchNorm between them, a quarter of the resolution."""

    num_classes: int = 3
    dtype: str = "float32"
    norm: Norm = dataclasses.field(default_factory=Norm)
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.Conv(4, (3, 3), strides=4, name="conv1")(image)
        x = nn.relu(batch_norm(self.norm, train, self.dtype, "bn1")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return {
            "logits": nn.Conv(self.num_classes, (1, 1), name="conv2")(x),
            "aux": nn.Conv(self.num_classes, (1, 1), name="conv3")(x),
        }


def settings(**norm):
    config = config_lib.Config(model=Net(norm=Norm(**norm)))
    config.augment = config_lib.Augment(crop=(16, 16), scale_range=(0.7, 1.4), flip=0.5)
    config.loss.heads = {"logits": 1.0, "aux": 0.4}
    config.optim.lr = 0.1
    config.eval.trimap_widths = (2,)
    return config


def batch(devices, seed=0):
    """Eight images for one or four devices, with very different numbers of void pixels."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (8, 20, 24, 3)).astype(np.uint8)
    label = (image[..., 0] // 86).astype(np.int32)
    for i in range(8):
        label[i, : 2 * i] = 255
    split = lambda x: x.reshape(devices, 8 // devices, *x.shape[1:])
    return {"image": split(image), "label": split(label)}


def start(config):
    variables = state.init_variables(config.model, jax.random.key(1), (16, 16), config.crf)
    tx = state.transformation(config, variables["params"])
    return state.create(variables, tx), tx


def run(config, devices, count):
    now, tx = start(config)
    now = steps.replicated(now, jax.devices()[:devices])
    weights = jnp.asarray([1.0, 0.5, 2.0])
    step = steps.parallel(
        steps.train_step,
        config=config,
        tx=tx,
        class_weights=weights,
        devices=jax.devices()[:devices],
    )
    losses = []
    for i in range(count):
        now, numbers = step(now, batch(devices, seed=i % 3), jax.random.key(7))
        losses.append(float(numbers["loss"]))
    return now, losses


def test_four_devices_train_as_one_with_the_whole_batch():
    """BatchNorm, loss, class weights and augmentation are those of the global batch.

    The tolerance, 1e-6 after three steps at a learning rate of 0.1, is that of float32 sums in
    another order. The mean of per-device means would be off by 6e-3 here.
    """
    config = settings()
    one, losses_of_one = run(config, 1, 3)
    four, losses_of_four = run(config, 4, 3)
    assert int(four.step) == 3
    np.testing.assert_allclose(losses_of_one, losses_of_four, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for a, b in zip(
        jax.tree.leaves(one.batch_stats), jax.tree.leaves(four.batch_stats), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("engine", ["pmap", "shard_map"])
def test_a_step_is_compiled_once_copies_nothing_and_gives_memory_back(engine, caplog):
    config = settings()
    config.train.engine = engine
    first, tx = start(config)
    now = first = steps.replicated(jax.device_get(first))
    step = steps.parallel(steps.train_step, config=config, tx=tx, donate=True)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (steps.AXIS,))
    given = jax.device_put(batch(4), jax.sharding.NamedSharding(mesh, steps.P(steps.AXIS)))
    key = steps.replicated(jax.random.key(7))
    with jax.log_compiles():
        assert steps.precompile(step, now, given, key) > 0
        assert "Compiling" in caplog.text
        caplog.clear()
        with jax.transfer_guard("disallow"):
            for _ in range(2):
                now, _ = step(now, given, key)
        assert "Compiling" not in caplog.text
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))


def test_operations_are_counted_before_libraries_hide_them():
    a, b = jnp.ones((64, 32)), jnp.ones((32, 16))
    assert steps.precompile(jax.jit(jnp.matmul), a, b) == 2 * 64 * 32 * 16


class Body(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.tanh(
            nn.Conv(8, (3, 3), name="conv2")(nn.tanh(nn.Conv(8, (3, 3), name="conv1")(x)))
        )


class Remat(nn.Module):
    num_classes: int = 3
    remat: bool = True

    @nn.compact
    def __call__(self, image, train=False):
        body = nn.remat(Body) if self.remat else Body
        return {"logits": nn.Conv(self.num_classes, (1, 1), name="conv3")(body(name="body")(image))}


def test_operations_made_twice_count_once():
    config = config_lib.Config(model=Remat())
    config.augment = config_lib.Augment(crop=(16, 16))
    plain = steps.without_remat(config)
    assert not plain.model.remat and steps.without_remat(plain) is None
    first, tx = start(config)
    twice, once = (
        steps.parallel(steps.train_step, config=each, tx=tx, devices=jax.devices()[:1])
        for each in (config, plain)
    )
    arguments = (first, batch(1), jax.random.key(7))
    counted = steps.precompile(twice, *arguments, counted=once)
    assert counted == steps.operations(once.lower(*arguments))
    pixels, body = 8 * 16 * 16, 2 * 9 * 8 * (3 + 8)  # the maps of the body, a multiply-add is two
    assert steps.operations(twice.lower(*arguments)) > counted + 0.8 * pixels * body


def test_the_choice_of_libraries_changes_rounding_alone_and_gives_memory_back():
    config, off = settings(), settings()
    off.compile.libraries = False
    (now, losses), (other, same) = run(config, 4, 3), run(off, 4, 3)
    np.testing.assert_allclose(losses, same, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(now.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert a.sharding == b.sharding
    _, tx = start(config)
    step = steps.parallel(steps.train_step, config=config, tx=tx, donate=True)
    step(now, batch(4), jax.random.key(7))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(now.params))


@pytest.mark.parametrize(("devices", "kernels"), [(1, 1), (2, 0), (2, 2), (4, 1)])
def test_both_engines_give_the_same_bits(devices, kernels, monkeypatch):
    """BatchNorm, dropout, a learnt CRF, accumulation and a moving average included.

    The CRF has one or both of its kernels: the spatial one alone is compiled in half the time.
    """
    both, found = crf_rnn.kernels, []
    monkeypatch.setattr(crf_rnn, "kernels", lambda *arguments: both(*arguments)[-kernels:])
    for engine in ("pmap", "shard_map"):
        config = settings()
        config.model = config.model.clone(dropout=0.5)
        config.crf = config_lib.CRF(learn=kernels > 0, train_iterations=1)
        config.optim.accumulate, config.optim.ema_decay = 2, 0.9
        config.train.engine = engine
        found.append(run(config, devices, 4))
    (one, losses), (other, same) = found
    assert losses == same
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("engine", ["pmap", "shard_map"])
def test_a_step_that_is_not_finite_changes_nothing_where_it_is_left_out(engine):
    """NaN comes from pixels of one of two devices alone."""
    config = settings()
    config.train.engine, config.train.max_skipped = engine, 1
    config.optim.ema_decay = 0.9
    now, tx = start(config)
    devices = jax.devices()[:2]
    step = steps.parallel(
        steps.train_step,
        config=config,
        tx=tx,
        class_weights=jnp.asarray([1.0, np.nan, 1.0]),
        devices=devices,
    )
    images = batch(2)
    images["label"] = np.where(images["label"] == 1, 0, images["label"])
    good, numbers = step(steps.replicated(now, devices), images, jax.random.key(7))
    assert np.isfinite(numbers["loss"]) and good.step == 1
    images["label"][1] = 1
    after, numbers = step(good, images, jax.random.key(7))
    assert np.isnan(numbers["loss"]) and after.step == 2
    jax.tree.map(np.testing.assert_array_equal, good.replace(step=after.step), after)
    jax.tree.map(lambda leaf: leaf.is_fully_replicated or pytest.fail("not the same"), after)


def test_training_lowers_the_loss_and_replays_exactly():
    config = settings()
    now, losses = run(config, 4, 30)
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    again, same = run(config, 4, 30)
    assert losses == same
    jax.tree.map(np.testing.assert_array_equal, now.params, again.params)


def test_frozen_norm_has_no_update_while_the_rest_learns():
    config = settings(frozen=True)
    before, _ = start(config)
    now, _ = run(config, 4, 3)
    jax.tree.map(np.testing.assert_array_equal, before.batch_stats, now.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, before.params["bn1"], now.params["bn1"])
    assert np.abs(now.params["conv1"]["kernel"] - before.params["conv1"]["kernel"]).max() > 0


def test_batch_stats_step_gives_the_statistics_of_the_batch():
    config = settings(decay=0.99, epsilon=1e-3)
    now, _ = start(config)
    step = steps.parallel(steps.batch_stats_step, config=config)
    variables = {"params": now.params, "batch_stats": now.batch_stats}
    stats = step(variables, batch(4), jax.random.key(0))
    image = batch(1)["image"][0].astype(np.float32)
    image = (image - np.float32(config.input.mean)) / np.float32(config.input.std)
    conv = nn.Conv(4, (3, 3), strides=4)
    features = conv.apply({"params": now.params["conv1"]}, jnp.asarray(image))
    np.testing.assert_allclose(stats["bn1"]["mean"], features.mean((0, 1, 2)), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(stats["bn1"]["var"], features.var((0, 1, 2)), rtol=2e-4)
