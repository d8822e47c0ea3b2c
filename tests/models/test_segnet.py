"""SegNet and SegNet-Basic, against the numbers of the papers and the authors' layers in torch."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import Norm, SegNet, SegNetBasic, monte_carlo

NARROW = (4, 8, 16, 32, 32)
SEGNET = SegNet(num_classes=5, widths=NARROW)
BASIC = SegNetBasic(num_classes=5, width=8)
NETS = pytest.mark.parametrize("net", [SEGNET, BASIC], ids=["SegNet", "SegNetBasic"])


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(net, size=(64, 64), batch=1):
    image = jnp.zeros((batch, *size, 3))
    return jax.eval_shape(functools.partial(net.init, jax.random.key(0)), image)


@functools.cache
def variables(net):
    """Returns random values for every variable, the statistics included."""
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        noise = rng.normal(size=leaf.shape)
        name = path[-1].key
        if name == "kernel":
            noise *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            noise = np.exp(0.2 * noise) if name in ("scale", "var") else 0.2 * noise
        return jnp.asarray(noise, jnp.float32)

    return jax.tree.map_with_path(fill, shapes(net))


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (SegNet(num_classes=11), 29_449_355),
        (SegNet(num_classes=19), 29_453_971),
        (SegNet(num_classes=37), 29_464_357),
        (SegNetBasic(num_classes=11), 1_416_587),
        (SegNetBasic(num_classes=12), 1_416_652),
    ],
)
def test_parameter_counts(net, expected):
    assert count(shapes(net)["params"]) == expected


def test_parameter_counts_of_the_parts():
    params = shapes(SegNet(num_classes=11))["params"]
    assert set(params) == {"encoder", "decoder", "classifier"}
    convs = {part: count([v for k, v in flat(params[part]) if "conv" in k]) for part in params}
    norms = {part: count([v for k, v in flat(params[part]) if "bn" in k]) for part in params}
    assert convs["encoder"] == 14_714_688
    assert convs["decoder"] == 14_712_448
    assert (norms["encoder"], norms["decoder"]) == (8_448, 7_424)
    assert count(params["classifier"]) == 64 * 9 * 11 + 11


def flat(tree):
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def test_parameter_paths_follow_the_papers_names():
    names = {re.sub(r"/(kernel|bias|scale)$", "", k) for k, _ in flat(shapes(SEGNET)["params"])}
    layers = ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))
    both = [(s, i) for s, n in layers for i in range(1, n + 1)]
    expected = {f"encoder/stage{s}/{k}{i}" for s, i in both for k in ("conv", "bn")}
    expected |= {f"decoder/stage{s}/{k}{i}" for s, i in both for k in ("conv", "bn")}
    expected -= {"decoder/stage1/conv1", "decoder/stage1/bn1"}  # the classifier
    assert names == expected | {"classifier"}
    kernels = {k: v.shape for k, v in flat(shapes(SegNet(num_classes=11))["params"])}
    # The number of channels shrinks on the last convolution of a decoder stage.
    assert kernels["decoder/stage4/conv2/kernel"] == (3, 3, 512, 512)
    assert kernels["decoder/stage4/conv1/kernel"] == (3, 3, 512, 256)
    assert kernels["decoder/stage1/conv2/kernel"] == (3, 3, 64, 64)
    assert kernels["classifier/kernel"] == (3, 3, 64, 11)
    basic = {k for k, _ in flat(shapes(BASIC)["params"]) if k.endswith("kernel")}
    expected = {f"{name}{i}/kernel" for name in ("conv", "conv_decode") for i in range(1, 5)}
    assert basic == expected | {"classifier/kernel"}


def test_sizes_of_the_maps_at_360_by_480():
    net = SegNet(num_classes=11)
    image = jax.ShapeDtypeStruct((1, 360, 480, 3), jnp.float32)
    apply = functools.partial(net.apply, capture_intermediates=True, mutable=["intermediates"])
    outputs, captured = jax.eval_shape(apply, shapes(net), image)
    assert outputs["logits"].shape == (1, 360, 480, 11)
    bottleneck, pools = captured["intermediates"]["encoder"]["__call__"][0]
    assert bottleneck.shape == (1, 12, 15, 512)
    assert [indices.shape[1:3] for indices, _ in pools] == [
        *[(180, 240), (90, 120), (45, 60), (23, 30), (12, 15)]
    ]
    decoder = captured["intermediates"]["decoder"]
    assert [decoder[f"stage{i}"]["__call__"][0].shape[1:] for i in (5, 4, 3, 2, 1)] == [
        *[(23, 30, 512), (45, 60, 256), (90, 120, 128), (180, 240, 64), (360, 480, 64)]
    ]


@NETS
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 40), (33, 31), (64, 64)])
def test_any_size(net, size):
    outputs = jax.eval_shape(net.apply, shapes(net), jnp.zeros((2, *size, 3)))
    assert outputs["logits"].shape == (2, *size, 5)
    assert outputs["logits"].dtype == jnp.float32


@NETS
def test_initial_values(net):
    key = jax.random.key(0, impl="rbg")  # compiles fast
    params = jax.jit(net.init)(key, jnp.zeros((1, 16, 16, 3)))["params"]
    for path, value in flat(params):
        name = path.split("/")[-2:]
        if name[-1] == "kernel":
            deviation = np.sqrt(2 / np.prod(value.shape[:-1]))
            count = value.size
            np.testing.assert_allclose(np.std(value), deviation, rtol=4 / np.sqrt(2 * count))
            if count > 1000:  # not cut at two deviations
                assert np.abs(value).max() > 2.5 * deviation
        else:
            expected = {"scale": 1, "bias": 0.001 if name[0].startswith("bn") else 0}
            np.testing.assert_allclose(value, expected[name[-1]])


def torch_name(path):
    """Returns the layer of the prototxt that a parameter path stands for."""
    path = re.sub(r"^encoder/stage(\d)/conv(\d)$", r"conv\1_\2", path)
    path = re.sub(r"^encoder/stage(\d)/bn(\d)$", r"conv\1_\2_bn", path)
    path = re.sub(r"^decoder/stage(\d)/conv(\d)$", r"conv\1_\2_D", path)
    path = re.sub(r"^decoder/stage(\d)/bn(\d)$", r"conv\1_\2_D_bn", path)
    path = re.sub(r"^bn(\d)$", r"conv\1_bn", path)
    return re.sub(r"^bn_decode(\d)$", r"conv_decode\1_bn", path)


def torch_twin(net, values, learn):
    """Returns the float64 reference with the same weights; learning, or with folded statistics."""
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    from tests.reference import segnet

    if isinstance(net, SegNet):
        twin = segnet.SegNet(5, learn=learn, divide=64 // NARROW[0])
        classifier = "conv1_1_D"
    else:
        twin = segnet.SegNetBasic(5, learn=learn, width=8)
        classifier = "conv_classifier"
    state = {}
    stats = dict(flat(values["batch_stats"]))
    params = dict(flat(values["params"]))
    for path, value in params.items():
        layer, kind = path.rsplit("/", 1)
        name = classifier if layer == "classifier" else torch_name(layer)
        if kind == "kernel":
            state[f"{name}.weight"] = np.transpose(value, (3, 2, 0, 1))
        elif not name.endswith("_bn"):
            state[f"{name}.bias"] = value
        elif kind == "scale":
            mean, variance = stats[f"{layer}/mean"], stats[f"{layer}/var"]
            shift = params[f"{layer}/bias"]
            if not learn:  # scale' = g / sqrt(v + e), shift' = b - g m / sqrt(v + e)
                value = value / np.sqrt(variance + net.norm.epsilon)
                shift = shift - value * mean
            state[f"{name}.weight"] = np.reshape(value, (1, -1, 1, 1))
            state[f"{name}.bias"] = np.reshape(shift, (1, -1, 1, 1))
    twin.load_state_dict({k: torch.tensor(np.array(v)) for k, v in state.items()})
    return twin.double()


def assert_close(actual, expected, middle=None):
    """Bounds the error over the norm by 3%, and that of the middle value over the largest.

    Rounding to float32 moves a maximum or a ReLU here and there, and then values jump: the torch
    network in float32 is up to 2% from itself in float64. A wrong layer is nowhere near.
    """
    error = np.abs(actual - expected)
    assert np.linalg.norm(error) < 0.03 * np.linalg.norm(expected)
    if middle is not None:
        assert np.median(error) < middle * np.abs(expected).max()


@NETS
@pytest.mark.parametrize("size", [(64, 96), (45, 59)], ids=["even", "odd"])
def test_torch_in_evaluation(net, size):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    values = variables(net)
    image = np.random.default_rng(0).uniform(0, 255, (2, *size, 3))
    with torch.no_grad():
        twin = torch_twin(net, values, learn=False)
        expected = twin(torch.tensor(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    logits = jax.jit(net.apply)(values, image.astype("f"))["logits"]
    assert_close(logits, expected, middle=1e-5)


@NETS
def test_torch_in_training(net):
    """The scores, and the gradients of all hidden kernels."""
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    net = net.clone(norm=Norm(epsilon=1e-9))  # the Caffe layer's
    values = variables(net)
    image = np.random.default_rng(0).uniform(0, 255, (2, 45, 59, 3))
    weight = np.random.default_rng(1).normal(size=(2, 45, 59, 5))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(params):
        inputs = {"params": params, "batch_stats": values["batch_stats"]}
        outputs, _ = net.apply(inputs, image.astype("f"), train=True, mutable=["batch_stats"])
        return jnp.sum(outputs["logits"] * weight.astype("f")), outputs["logits"]

    gradients, logits = run(values["params"])
    twin = torch_twin(net, values, learn=True)
    theirs = twin(torch.tensor(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    (theirs * torch.tensor(weight)).sum().backward()
    assert_close(logits, theirs.detach().numpy(), middle=1e-5)
    hidden = [path for path, _ in flat(gradients) if re.search(r"conv.*kernel$", path)]
    assert len(hidden) == (25 if isinstance(net, SegNet) else 8)
    for path, gradient in flat(gradients):
        if path in hidden:
            there = getattr(twin, torch_name(path.removesuffix("/kernel"))).weight.grad
            assert_close(gradient, there.permute(2, 3, 1, 0).numpy())


def dropouts(net, train=False, rngs=None):
    """Returns (height, channels) of every array that goes through an active dropout."""
    seen = []

    def record(next_fun, args, kwargs, context):
        layer = context.module
        if isinstance(layer, nn.Dropout) and layer.rate > 0 and not layer.deterministic:
            seen.append((args[0].shape[1], args[0].shape[3]))
        return next_fun(*args, **kwargs)

    apply = functools.partial(net.apply, train=train, mutable=["batch_stats"])
    values, image = shapes(net), jnp.zeros((1, 64, 64, 3))
    with nn.intercept_methods(record):
        jax.eval_shape(lambda values, rngs: apply(values, image, rngs=rngs), values, rngs)
    return seen


@NETS
def test_dropout_stands_where_the_prototxts_have_it(net):
    if isinstance(net, SegNet):
        # pool3, pool4, pool5, conv5_1_D, conv4_1_D, conv3_1_D
        expected = [(8, 16), (4, 32), (2, 32), (4, 32), (8, 16), (16, 8)]
    else:
        expected = [(8, 8), (4, 8), (8, 8), (16, 8)]  # pool3, pool4, decode4, decode3
    bayesian, key = net.clone(dropout=0.5), {"dropout": jax.random.key(0)}
    assert dropouts(bayesian, train=True, rngs=key) == expected
    assert dropouts(bayesian, rngs=key) == expected  # samples for monte_carlo
    assert dropouts(bayesian) == []
    assert dropouts(net, train=True, rngs=key) == []


@NETS
def test_monte_carlo_is_mean_and_variance_of_the_samples(net):
    bayesian = net.clone(dropout=0.5)
    image = jax.random.normal(jax.random.key(2), (2, 20, 36, 3))
    key = jax.random.key(3)
    mean, uncertainty = monte_carlo(bayesian, variables(net), image, key, samples=4)
    apply = jax.jit(lambda key: bayesian.apply(variables(net), image, rngs={"dropout": key}))
    probs = np.stack([jax.nn.softmax(apply(k)["logits"]) for k in jax.random.split(key, 4)])
    np.testing.assert_allclose(mean, probs.mean(0), atol=1e-5)
    np.testing.assert_allclose(uncertainty, probs.var(0).mean(-1), atol=1e-6)
    assert uncertainty.shape == (2, 20, 36)
    assert uncertainty.max() > 1e-4  # the samples do differ
    np.testing.assert_allclose(mean.sum(-1), 1, rtol=1e-5)


def test_monte_carlo_needs_dropout_and_samples():
    image = jnp.zeros((1, 8, 8, 3))
    with pytest.raises(ValueError, match=r"SegNetBasic\(dropout=0.5\)"):
        monte_carlo(BASIC, {}, image, jax.random.key(0), samples=4)
    with pytest.raises(ValueError, match="samples=0"):
        monte_carlo(BASIC.clone(dropout=0.5), {}, image, jax.random.key(0), samples=0)


@NETS
def test_bfloat16_predicts_the_same(net):
    """With 8 bits some maxima move, and with random weights no class stands out."""
    image = jax.random.normal(jax.random.key(2), (2, 45, 59, 3))
    exact = jax.jit(net.apply)(variables(net), image)["logits"]
    short = jax.jit(net.clone(dtype="bfloat16").apply)(variables(net), image)["logits"]
    assert short.dtype == jnp.float32
    assert 0 < np.abs(short - exact).mean() < 0.15 * np.std(exact)
    assert np.mean(short.argmax(-1) == exact.argmax(-1)) > 0.9


def test_training_in_bfloat16_keeps_float32_variables():
    net = BASIC.clone(dtype="bfloat16")
    image = jnp.zeros((2, 16, 16, 3))
    apply = functools.partial(net.apply, train=True, mutable=["batch_stats"])
    outputs, changed = jax.eval_shape(apply, shapes(net), image)
    assert {v.dtype for v in jax.tree.leaves((outputs, changed, shapes(net)))} == {image.dtype}


@NETS
def test_export_for_any_batch_and_size(net):
    run = jax.jit(lambda image: net.apply(variables(net), image)["logits"])
    shape = jax.export.symbolic_shape("b, h, w, 3")
    exported = jax.export.export(run)(jax.ShapeDtypeStruct(shape, jnp.float32))
    image = jax.random.normal(jax.random.key(2), (2, 45, 59, 3))
    np.testing.assert_allclose(exported.call(image), run(image), rtol=1e-4, atol=1e-4)
