"""What all networks have in common."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import crf, steps
from segjax import state as state_lib
from segjax.config import Augment, Config, Optim, Train
from segjax.models import (
    DeepLabV1,
    DeepLabV2ResNet,
    DeepLabV2VGG,
    DeepLabV3,
    DeepLabV3Cascade,
    Norm,
    PSPNet,
    SegNet,
    SegNetBasic,
    TorchvisionDeepLabV3,
)
from segjax.models.deeplab_v1 import MSC_STRIDES
from segjax.predict import program, protocols
from tests.models.fill import random_variables

SMALL = {"num_classes": 4, "depth": 14, "width": 8}
NETS = [
    DeepLabV1(num_classes=4, width=32, body_width=8, msc=tuple(MSC_STRIDES)),
    DeepLabV2VGG(num_classes=4, width=32, body_width=8),
    DeepLabV2ResNet(**SMALL, scales=(1.0, 0.5), norm=Norm()),
    DeepLabV3(**SMALL, features=16),
    DeepLabV3Cascade(**SMALL, cascade=1),
    TorchvisionDeepLabV3(**SMALL, features=16),
    PSPNet(**SMALL),
]
ALL = [*NETS, SegNet(num_classes=4, widths=(8,) * 5), SegNetBasic(num_classes=4, width=8)]


@pytest.mark.parametrize("net", NETS, ids=lambda net: type(net).__name__)
def test_training_reaches_every_parameter_and_bfloat16_stays_near(net):
    """Gradients and statistics in training mode; then the network in bfloat16, in evaluation mode.

    The distance is the mean absolute difference of the logits over their standard deviation: at
    most 2% is stated, 0.4% to 0.9% was measured.
    """
    image = jax.random.normal(jax.random.key(0), (2, 65, 49, 3))
    variables = random_variables(net, image)
    apply = functools.partial(net.apply, rngs={"dropout": jax.random.key(2)}, train=True)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients(params, rest):
        outputs, changed = apply({"params": params, **rest}, image, mutable=["batch_stats"])
        weights = jnp.arange(4.0).reshape(1, 1, 1, 4)
        return sum(jnp.sum(x * weights) for x in outputs.values()), changed

    params = variables["params"]
    rest = {name: value for name, value in variables.items() if name != "params"}
    grads, changed = gradients(params, rest)
    silent = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree.leaves_with_path(grads)
        if not (np.isfinite(g).all() and np.any(g))
    ]
    assert not silent
    assert jax.tree.structure(changed) == jax.tree.structure(rest)
    for before, after in zip(jax.tree.leaves(rest), jax.tree.leaves(changed), strict=True):
        assert np.any(before != after)

    both = jax.jit(lambda v: (net.apply(v, image), net.clone(dtype="bfloat16").apply(v, image)))
    exact, near = both(variables)
    for name, logits in exact.items():
        assert near[name].dtype == jnp.float32
        assert np.abs(near[name] - logits).mean() < 0.02 * np.asarray(logits).std(), name


@pytest.mark.parametrize("net", NETS, ids=lambda net: type(net).__name__)
@pytest.mark.parametrize("size", [(1, 1), (64, 30)])
def test_any_size(net, size):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    for logits in jax.eval_shape(net.apply, variables, image).values():
        assert logits.shape[0] == 1 and logits.shape[-1] == 4


@pytest.mark.parametrize(
    "net", [net for net in ALL if hasattr(net, "remat")], ids=lambda net: type(net).__name__
)
def test_remat_reaches_the_backbone_and_changes_no_variable(net):
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    again = net.clone(remat=True)
    assert jax.eval_shape(again.init, jax.random.key(0), image) == variables
    apply = jax.make_jaxpr(functools.partial(again.apply, mutable=["batch_stats"], train=True))
    rngs = {"dropout": jax.random.key(0)}
    assert "remat" in str(apply(variables, image, rngs=rngs))


@pytest.mark.parametrize(
    "net",
    [SegNet(num_classes=4, widths=(4,) * 5), DeepLabV1(num_classes=4, width=8, body_width=8)],
    ids=lambda net: type(net).__name__,
)
def test_stages_that_are_computed_again_have_the_same_gradients(net):
    image = jax.random.normal(jax.random.key(0), (2, 32, 40, 3))
    variables = random_variables(net, image)

    def gradients(net, params):
        def loss(params):
            both = {**variables, "params": params}
            rngs = {"dropout": jax.random.key(2)}
            out, changed = net.apply(both, image, train=True, mutable=["batch_stats"], rngs=rngs)
            return jnp.square(out["logits"]).sum(), changed

        return jax.grad(loss, has_aux=True)(params)

    expected, got = (
        jax.jit(functools.partial(gradients, net)).lower(variables["params"])
        for net in (net, net.clone(remat=True))
    )
    convolutions = [lowered.as_text().count("stablehlo.convolution") for lowered in (expected, got)]
    assert convolutions[1] > convolutions[0]
    expected, got = (lowered.compile()(variables["params"]) for lowered in (expected, got))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("net", ALL, ids=lambda net: type(net).__name__)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 64, 48), r"got \(2, 3, 64, 48\): looks like NCHW; transpose\(0, 2, 3, 1\)"),
        ((64, 48, 3), r"got \(64, 48, 3\): add the batch axis, image\[None\]"),
        ((64, 48), r"expected NHWC, got \(64, 48\)"),
    ],
)
def test_images_of_another_layout_are_refused(net, shape, message):
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.apply, variables, jax.ShapeDtypeStruct(shape, jnp.float32))


def for_tpu_and_cuda(function, *arguments):
    return function.trace(*arguments).lower(lowering_platforms=("tpu", "cuda")).as_text()


def settings(net, engine="pmap"):
    """Returns a configuration that trains all outputs of a network, and the network's variables."""
    init = functools.partial(net.init_with_output, jax.random.key(0))
    outputs, variables = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 33, 41, 3), jnp.float32))
    config = Config(model=net, train=Train(engine=engine), optim=Optim(ema_decay=0.9))
    config.augment = Augment(crop=(33, 41), scale_range=(0.7, 1.4))
    config.loss.heads = {name: 1.0 for name in outputs}
    return config, {"batch_stats": {}, **variables}


def training(config, variables, lower=for_tpu_and_cuda):
    """Returns the text of the training step, and its state."""
    tx = state_lib.transformation(config, variables["params"])
    state = jax.eval_shape(functools.partial(state_lib.create, tx=tx), variables)
    devices = jax.devices()[:1]
    step = steps.parallel(steps.train_step, config=config, tx=tx, donate=True, devices=devices)
    images = jax.ShapeDtypeStruct((1, 2, 33, 41, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((1, 2, 33, 41), jnp.int32)
    batch = {"image": images, "label": labels}
    return lower(step, state, batch, jax.eval_shape(jax.random.key, 0)), state


def prediction(config, variables, refined=None):
    """Returns the text of the program that predicts, its scores refined by a function."""
    options = {"config": config, "protocol": protocols.Protocol()}

    def predict(variables, image, size):
        if refined is None:
            return program.segment(variables, image, size, **options)
        return refined(program.scores(variables, image, size, **options), image)

    image = jax.ShapeDtypeStruct((2, 33, 41, 3), jnp.uint8)
    size = jax.ShapeDtypeStruct((2, 2), jnp.int32)
    return for_tpu_and_cuda(jax.jit(predict), variables, image, size)


def donated(text):
    return len(re.findall(r"jax\.buffer_donor = true|tf\.aliasing_output = ", text))


@pytest.mark.parametrize("net", ALL, ids=lambda net: type(net).__name__)
def test_bfloat16_training_and_prediction_lower_for_tpu_and_cuda(net):
    """No convolution, and no product in place of one, takes float32; the state stays float32.

    Every array of the state is donated.
    """
    given = settings(net.clone(dtype="bfloat16"), "shard_map")
    text, state = training(*given)
    assert donated(text) == len(jax.tree.leaves(state))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    for each in (text, prediction(*given)):
        products = re.findall(r"stablehlo\.(convolution|dot_general)(.*)", each)
        assert len(products) > 8
        for name, line in products:
            operands = line[line.rindex(": (") : line.rindex("->")]
            resizing = name == "dot_general" and "precision = [HIGHEST, HIGHEST]" in line
            assert resizing or "f32" not in operands, line


def test_pmap_donates_the_state_too():
    text, state = training(*settings(ALL[-1]), lambda step, *given: step.lower(*given).as_text())
    assert donated(text) == len(jax.tree.leaves(state))


@pytest.mark.parametrize("filter", crf.FILTERS)
def test_prediction_with_a_crf_lowers_for_tpu_and_cuda(filter):
    options = {"filter": filter, "num_iterations": 1}
    if filter == "lattice":
        options["capacity"] = 2048
    kernels = (crf.Bilateral(20.0, 13.0, 5.0),)
    refined = functools.partial(crf.refine_logits, kernels=kernels, **options)
    assert "stablehlo.convolution" in prediction(*settings(ALL[-1]), refined)
