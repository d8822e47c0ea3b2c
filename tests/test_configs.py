"""Every configuration: it builds what it says, trains, and comes back from a checkpoint."""

import pathlib
import re
import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import checkpoint, models, optim, state, steps
from segjax import config as config_lib
from segjax import crf_rnn as refinement
from segjax.config import Config
from segjax.data.datasets import DATASETS
from tests.models.fill import random_variables

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))

PARAMETERS = {
    "segnet_basic_camvid": 1_416_587,
    "segnet_basic_camvid_crops": 1_416_587,
    "segnet_camvid": 29_449_355,
    "crf_rnn_shapes": 356_935,
    "crf_rnn_voc": 20_505_429,
    "deeplab_v1_camvid": 20_495_179,
    "deeplab_v1_voc": 20_505_429,
    "deeplab_v2_vgg_voc": 37_877_652,
    "deeplab_v2_resnet101_voc": 44_048_532,
    "deeplab_v3_voc": 58_040_661,
    "deeplab_v3_voc_phase2": 58_040_661,
    "deeplab_v3_cityscapes": 58_040_147,
    "deeplab_v3_cascade_voc": 82_706_517,
    "pspnet_ade20k": 46_782_550 + 2_398_358,  # the second number: the auxiliary head
    "pspnet_voc": 65_708_501 + 2_365_205,
    "pspnet_cityscapes": 65_707_475 + 2_364_691,
}
NARROW = {
    models.DeepLabV1: {"body_width": 4, "width": 16},
    models.DeepLabV2VGG: {"body_width": 4, "width": 16},
    models.DeepLabV2ResNet: {"depth": 14, "width": 4},
    models.DeepLabV3: {"depth": 14, "width": 4, "features": 8},
    models.DeepLabV3Cascade: {"depth": 14, "width": 4},
    models.PSPNet: {"depth": 14, "width": 4},
    models.SegNet: {"widths": (4, 4, 8, 8, 8)},
    models.SegNetBasic: {"width": 4},
}


def load(name: str) -> Config:
    config = runpy.run_path(FOLDER / f"{name}.py")["get_config"]()
    if not config.model.num_classes:  # those of the data
        config.model = config.model.clone(num_classes=2)
    return config


def narrow(config: Config) -> nn.Module:
    return config.model.clone(**NARROW[type(config.model)])


@pytest.mark.parametrize("name", NAMES)
def test_builds_what_it_says(name):
    config = load(name)
    config_lib.check(config)
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    variables = jax.eval_shape(config.model.init, jax.random.key(0), image)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert name in ("demo", "own_folder") or count == PARAMETERS[name]
    outputs = jax.eval_shape(config.model.apply, variables, image)
    assert set(config.loss.heads) <= set(outputs)
    if config.crf.learn:
        variables["params"]["crf"] = refinement.init(config.crf, config.model.num_classes)
    state.transformation(config, variables["params"])  # each of its expressions finds a parameter

    text = runpy.run_path(FOLDER / f"{name}.py")["__doc__"]
    assert f"--config=configs/{name}.py" in text and "--workdir=" in text
    assert re.search(r"^Hardware: .", text, re.M)
    for part in () if name == "demo" else ("Published", "Measured"):
        assert re.search(rf"^{part}: .", text, re.M)


@pytest.mark.parametrize("name", NAMES)
def test_fits_its_data_set(name):
    config = load(name)
    dataset = DATASETS[config.data.name]
    if config.data.name == "folder":
        return  # its classes and splits are the user's
    assert config.model.num_classes == dataset.num_classes
    assert {config.data.train_split, config.data.val_split} <= set(dataset.splits)
    assert config.loss.class_weights != "published" or dataset.class_weights


FACTORS = {  # configuration: parameter: its learning rate and its weight decay over the general
    "segnet_camvid": {"classifier/bias": (2, 0), "classifier/kernel": (1, 1)},
    "segnet_basic_camvid": {"classifier/bias": (2, 0), "bn1/bias": (1, 1)},
    "deeplab_v1_voc": {
        "fc8/kernel": (10, 1),
        "fc8/bias": (20, 0),
        "fc6/bias": (2, 0),
        "backbone/stage5/conv3/kernel": (1, 1),
    },
    "deeplab_v2_vgg_voc": {
        "fc8_4/kernel": (10, 1),
        "fc8_1/bias": (20, 0),
        "fc7_1/bias": (2, 0),
        "fc7_1/kernel": (1, 1),
    },
    "deeplab_v2_resnet101_voc": {
        "aspp/branch3/kernel": (10, 1),
        "aspp/branch3/bias": (20, 0),
        "backbone/stage4/block1/conv2/kernel": (1, 1),
        "backbone/stage4/block1/bn2/scale": (0, 0),
        "backbone/stage4/block1/bn_proj/bias": (0, 0),
    },
    "deeplab_v3_voc": {"logits/bias": (1, 0), "aspp/bn1/scale": (1, 0), "logits/kernel": (1, 1)},
    "deeplab_v3_voc_phase2": {
        "aspp/bn1/scale": (0, 0),
        "backbone/stem/bn1/bias": (0, 0),
        "aspp/conv1/kernel": (1, 1),
    },
    "pspnet_ade20k": {
        "ppm/conv1/kernel": (10, 1),
        "head/logits/bias": (10, 1),
        "aux/bn/scale": (10, 1),
        "backbone/stem/bn3/scale": (1, 1),
    },
}


def test_the_scales_of_a_network_are_aligned_too():
    config = load("deeplab_v2_resnet101_voc")
    assert config.model.scales == (1.0, 0.75, 0.5) and config_lib.alignment(config) == 32
    for scales, expected in (((1.0,), 8), ((1.0, 1.5), 16), ((0.5, 1.25), 32)):
        config.model = config.model.clone(scales=scales)
        stride = config_lib.alignment(config)
        assert stride == expected
        assert all(stride * scale % 8 == 0 for scale in scales)


@pytest.mark.parametrize("name", NAMES)
def test_aligned_corners_stay_where_they_are(name):
    config = load(name)
    for sides in (config.data.canvas, config.augment.crop):
        assert not any((side - 1) % config_lib.alignment(config) for side in sides if side)


@pytest.mark.parametrize("name", FACTORS)
def test_learning_rate_and_weight_decay_of_parameters(name):
    """The first update from parameters of one: by the gradient alone, and by the decay alone."""
    config = load(name)
    rate = config.optim.lr
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    shapes = jax.eval_shape(narrow(config).init, jax.random.key(0), image)["params"]
    params = jax.tree.map(lambda _: jnp.ones(()), shapes)  # their paths are what counts

    def updates(gradient: float, weight_decay: float) -> dict[str, float]:
        config.optim.accumulate, config.optim.weight_decay = 1, weight_decay
        tx = state.transformation(config, params)
        grads = jax.tree.map(lambda p: jnp.full_like(p, gradient), params)
        made, _ = tx.update(grads, tx.init(params), params)
        found = {}
        optim.by_path(made, lambda path, update: found.update({path: float(update)}))
        return found

    by_gradient, by_decay = updates(1.0, 0.0), updates(0.0, 0.1)
    for path, (lr, decay) in FACTORS[name].items():
        assert by_gradient[path] == pytest.approx(-rate * lr, rel=1e-5), path
        assert by_decay[path] == pytest.approx(-rate * lr * decay * 0.1, rel=1e-5), path


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_loses_nothing_in_a_checkpoint(name, tmp_path):
    config = load(name)
    config.model = narrow(config)
    config.augment.crop = (33, 41)
    config.optim.accumulate = min(config.optim.accumulate, 2)
    variables = random_variables(config.model, jnp.zeros((1, 33, 41, 3)))
    variables.setdefault("batch_stats", {})
    if config.crf.learn:
        variables["params"]["crf"] = refinement.init(config.crf, config.model.num_classes)
    tx = state.transformation(config, variables["params"])
    now = start = state.create(variables, tx)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 2, 40, 48, 3)).astype(np.uint8)
    label = (image[..., 0] // 86).astype(np.int32)
    label[:, :, :5] = 255
    step = steps.parallel(steps.train_step, config=config, tx=tx, devices=jax.devices()[:1])
    batch = {"image": image, "label": label}
    # Compiling takes nearly all the time of this test, and half as long without optimising.
    step = step.lower(now, batch, jax.random.key(0)).compile({"xla_backend_optimization_level": 0})
    for _ in range(config.optim.accumulate):
        now, numbers = step(now, batch, jax.random.key(0))
        assert np.isfinite(numbers["loss"]) and numbers["loss"] > 0
    frozen = getattr(getattr(config.model, "norm", None), "frozen", False)
    may_stay = "$."  # nothing
    if frozen:
        may_stay = r"(^|/)bn\w*/"
    elif isinstance(config.model, models.SegNet | models.SegNetBasic):
        may_stay = r"conv\w*/bias$"  # BatchNorm takes away what it adds
    for tree in ("params", "batch_stats"):
        before, after = (jax.tree.leaves_with_path(getattr(s, tree)) for s in (start, now))
        for (path, old), (_, new) in zip(before, after, strict=True):
            path = jax.tree_util.keystr(path, simple=True, separator="/")
            stayed = np.array_equal(old, new)
            assert not stayed or re.search(may_stay, path), path
            assert stayed or not (frozen and re.search(may_stay, path)), path

    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, now, position={}, metadata={})
        checkpoints.wait()
        again, _ = checkpoints.restore(1, start)
    jax.tree.map(np.testing.assert_array_equal, again, now)
