import dataclasses
import types

import flax.linen as nn
import jax
import numpy as np
import pytest

from segjax import config as config_lib
from segjax import plan, rows, state, steps, training
from segjax.models import DeepLabV1, DeepLabV3
from segjax.models.atrous import AtrousConv
from segjax.models.layers import Norm, batch_norm
from segjax.ops import max_pool_with_argmax, max_unpool, resize


class Net(nn.Module):
    """Strides, pooling with positions, a rate, the mean, resizing: all that the networks do."""

    num_classes: int = 3
    dtype: str = "float32"
    norm: Norm = dataclasses.field(default_factory=Norm)

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.Conv(4, (5, 5), strides=2, name="conv1")(image)
        x = nn.relu(batch_norm(self.norm, train, self.dtype, "bn1")(x))
        pooled, positions = max_pool_with_argmax(x, 2)
        y = AtrousConv(4, rate=4, name="conv2")(pooled)
        y = batch_norm(self.norm, train, self.dtype, "bn2")(y) + y.mean((1, 2), keepdims=True)
        x = max_unpool(y, positions, x.shape[1:3], window=2)
        x = nn.Conv(self.num_classes, (3, 3), name="conv3")(x)
        x = resize(x, image.shape[1:3], align_corners=True, antialias=False)
        return {"logits": x}


def trained(devices, count):
    """Trains two steps on four images, `count` devices for each band of rows."""
    config = config_lib.Config(model=Net())
    config.augment = config_lib.Augment(crop=(32, 24), scale_range=(0.7, 1.4), flip=0.5)
    config.optim.lr = 0.1
    config.train = config_lib.Train(engine="shard_map", rows=count)
    variables = state.init_variables(config.model, jax.random.key(1), (32, 24))
    tx = state.transformation(config, variables["params"])
    now = steps.replicated(state.create(variables, tx), devices, rows=count)
    rng = np.random.default_rng(0)
    groups = len(devices) // count
    image = rng.integers(0, 256, (groups, 4 // groups, 40, 36, 3)).astype(np.uint8)
    batch = {"image": image, "label": (image[..., 0] // 86).astype(np.uint8)}
    step = steps.parallel(steps.train_step, config=config, tx=tx, devices=devices)
    for _ in range(2):
        now, numbers = step(now, batch, jax.random.key(7))
    program = step.lower(now, batch, jax.random.key(7)).compile().as_text()
    assert step._cache_size() == 1
    twice = {name: np.concatenate([x, x]) for name, x in batch.items()}
    with pytest.raises(ValueError, match="a batch has 2 parts for each device"):
        step(now, twice, jax.random.key(7))
    return now, numbers, program


def test_bands_of_rows_train_as_whole_images():
    """Two groups of two devices, each with a band of 16 rows, and one device with all four images.

    The tolerance, 1e-5 after two steps at a learning rate of 0.1, is that of float32 sums in
    another order.
    """
    one, numbers, _ = trained(jax.devices()[:1], 1)
    four, of_bands, program = trained(jax.devices()[:4], 2)
    np.testing.assert_allclose(of_bands["loss"], numbers["loss"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert "f32[2,8,12,4]" in program  # the first map of 16x12 pixels, half of its rows
    assert "collective-permute" in program  # the rows beside a band


@pytest.mark.parametrize(
    ("model", "size", "count", "message"),
    [
        (
            DeepLabV1(num_classes=21),
            (321, 321),
            2,
            "which does not divide the 321 rows .*rows=1, its largest divisor",
        ),
        (
            DeepLabV1(num_classes=21),
            (320, 320),
            4,
            r"of the 41 rows of fc6's map .* have 10, .* reaches 12, .*rows=2, its largest",
        ),
        (DeepLabV3(num_classes=19), (960, 1920), 4, "reaches 18, .*rows=2, its largest"),
        (DeepLabV3(num_classes=19), (1024, 2048), 8, "reaches 12, .*rows=2, its largest"),
    ],
)
def test_what_cannot_be_split_is_refused(model, size, count, message):
    rows.check(model, size, 1)
    with pytest.raises(ValueError, match=message):
        rows.check(model, size, count)


def test_devices_that_cannot_be_grouped_are_refused():
    rows.check(DeepLabV3(num_classes=19), (1024, 2048), 2)
    with pytest.raises(ValueError, match=r"number of devices, 4; .*rows=1"):
        rows.mesh(jax.devices()[:4], 3)
    hosts = [types.SimpleNamespace(process_index=number // 4) for number in range(16)]
    # Each process feeds whole images to its own devices.
    with pytest.raises(ValueError, match="number of devices of each host, 4;"):
        rows.mesh(hosts, 8)


def test_a_plan_counts_images_for_each_group_of_devices():
    config = config_lib.Config(model=Net())
    config.train = config_lib.Train(engine="shard_map", rows=2)
    lowered = plan.lower(config, (32, 24), 2, jax.devices()[:4])
    assert lowered.args_info[0][1]["image"].shape == (2, 2, 32, 24, 3)


def test_a_run_is_scored_with_as_many_bands_as_there_are_devices_for(monkeypatch):
    assert rows.possible(2) == 2  # of four
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    assert rows.possible(2) == 1


def test_only_the_second_engine_splits_rows():
    config = config_lib.Config(model=Net())
    config.train.rows = 2
    with pytest.raises(ValueError, match=r"write --config\.train\.engine=shard_map"):
        config_lib.check(config)
    config.train.rows = 0
    with pytest.raises(ValueError, match=r"train\.rows is 0"):
        training.prepare(config)
