"""Published weights give the network they were made for, and a wrong file gives one clear line."""

import functools
import hashlib
import importlib.util
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import segjax
from segjax import config, losses, models, pretrained
from segjax.cli import convert as program
from segjax.models import vgg
from segjax.pretrained import files, sources
from tests.reference import caffemodel, cases, fill, training

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4  # largest difference over largest value


def needs(*modules: str) -> None:
    """Skips where the independent implementation is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"compares with torch: pip install '.[parity]' ({missing[0]} is missing)")


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def shapes_of(model: nn.Module, size: tuple[int, int] = (65, 65)) -> dict:
    """Variables without values: what `load` fills."""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def write(folder: pathlib.Path, tensors: dict[str, np.ndarray], kind: str) -> pathlib.Path:
    path = folder / f"weights.{kind}"
    if kind == "caffemodel":
        path.write_bytes(caffemodel.of_tensors(tensors))
    else:
        safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("weights")


@functools.cache
def golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The tensors of a case, made from their names and shapes, and the outputs of torch."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        shapes = json.loads(str(stored["shapes"]))
        outputs = {k: v for k, v in stored.items() if k not in ("note", "shapes")}
    return fill.weights({k: tuple(s) for k, s in shapes.items()}, name), outputs


@functools.cache
def segjax_outputs(name: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """What segjax.models computes with the file of a case."""
    case = cases.CASES[name]
    tensors, shapes = golden(name)[0], shapes_of(case.model)
    if isinstance(case.source, pretrained.Source):
        needed = {path: leaf.shape for path, leaf in files.flatten(shapes).items()}
        values, unused = sources.translate(case.source, tensors, needed, epsilon=1e-5, seed=0)
        assert not unused and values.keys() == needed.keys()
        variables = files.unflatten(values)
    else:
        assert sources.detect(tensors) == case.source
        path = write(folder, tensors, case.kind)
        variables, report = pretrained.load(path, case.model, shapes)
        assert not report.new and not report.unused and not report.reshaped
    apply = jax.jit(lambda variables, image: case.model.apply(variables, image))
    outputs = {}
    for size in case.sizes:
        found = apply(variables, cases.image(name, size))
        outputs |= {f"{size[0]}x{size[1]}/{key}": np.asarray(found[key]) for key in case.outputs}
    return outputs


@pytest.mark.parametrize("name", cases.CASES)
def test_outputs_equal_the_stored_ones_of_torch(name: str, folder: pathlib.Path):
    found, expected = segjax_outputs(name, folder), golden(name)[1]
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert difference(found[key], values) < TOLERANCE, key


@pytest.mark.parametrize("name", cases.CASES)
def test_outputs_equal_those_of_torch(name: str, folder: pathlib.Path):
    needs("torch", *(["torchvision", "PIL"] if name.startswith("torchvision") else []))
    found, case = segjax_outputs(name, folder), cases.CASES[name]
    module, shapes = cases.counterpart(name)
    assert shapes == {key: value.shape for key, value in golden(name)[0].items()}
    for size in case.sizes:
        outputs = cases.run(module, cases.image(name, size))
        for key, values in zip(case.outputs, outputs, strict=True):
            path = f"{size[0]}x{size[1]}/{key}"
            assert difference(found[path], values) < TOLERANCE, path
            assert difference(golden(name)[1][path], values) < 1e-5, "make the golden file again"


@functools.cache
def trained() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One training step of segjax: gradients and statistics by path, outputs by name."""
    with np.load(GOLDEN / "training.npz") as stored:
        shapes = {k: tuple(s) for k, s in json.loads(str(stored["shapes"])).items()}
    model = training.MODEL
    paths = {p: leaf.shape for p, leaf in files.flatten(shapes_of(model)).items()}
    variables = files.unflatten(training.as_variables(fill.weights(shapes, "training"), paths))

    def without_dropout(call, arguments, options, context):
        if isinstance(context.module, nn.Dropout):
            return arguments[0]
        return call(*arguments, **options)

    def loss(params, batch_stats, image, label):
        with nn.intercept_methods(without_dropout):
            outputs, changed = model.apply(
                {"params": params, "batch_stats": batch_stats},
                image,
                train=True,
                mutable=["batch_stats"],
            )
        total = 0.0
        for name, weight in (("logits", 1.0), ("aux", training.AUX_WEIGHT)):
            matched = losses.match_resolution(
                outputs[name], label, resolution="label", align_corners=True
            )
            entropy, count = losses.cross_entropy(*matched)
            total += weight * entropy / count
        return total, (outputs, changed)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (outputs, changed)), gradient = step(
        variables["params"], variables["batch_stats"], *training.batch()
    )
    found = files.flatten({"params": gradient, **changed})
    return (
        {path: np.asarray(leaf) for path, leaf in found.items()},
        {"loss": value, **outputs},
    )


# BatchNorm over four values, as in the first bin of the pyramid, magnifies rounding.
GRADIENT_TOLERANCE = 1e-3


def test_a_training_step_equals_the_stored_one_of_torch():
    found, outputs = trained()
    with np.load(GOLDEN / "training.npz") as expected:
        for name in ("loss", "logits", "aux"):
            assert difference(np.asarray(outputs[name]), expected[name]) < TOLERANCE, name
        probe, norm = expected["probe"].T
    error = np.abs(training.probe(found)[:, 0] - probe) / norm
    assert dict(zip(sorted(found), error)) == {
        path: pytest.approx(0.0, abs=GRADIENT_TOLERANCE) for path in found
    }


def test_a_training_step_equals_that_of_torch():
    needs("torch")
    found, outputs = trained()
    _, tensors, expected = training.step()
    for name, value in expected.items():
        assert difference(np.asarray(outputs[name]), value) < TOLERANCE, name
    expected = training.as_variables(tensors, {path: v.shape for path, v in found.items()})
    assert expected.keys() == found.keys()
    error = {path: difference(found[path], value) for path, value in expected.items()}
    assert error == {path: pytest.approx(0.0, abs=GRADIENT_TOLERANCE) for path in found}


def fits(source: str, shapes: dict[str, tuple[int, ...]], model: nn.Module) -> list[str]:
    """The variables that stay new; everything of the file is used, everything in scope filled."""
    chosen = pretrained.SOURCES[source]
    needed = {path: leaf.shape for path, leaf in files.flatten(shapes_of(model)).items()}
    tensors = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}
    assert sources.detect(tensors) == source
    assert sources.detect({f"module.{name}": a for name, a in tensors.items()}) == source
    values, unused = sources.translate(chosen, tensors, needed, epsilon=1e-5, seed=0)
    assert unused == []
    assert {path: value.shape for path, value in values.items()} == {
        path: needed[path] for path in values
    }
    new = [path for path in needed if path not in values]
    assert not [path for path in new if chosen.needs(path, values)]
    return new


@pytest.mark.parametrize(
    "name, source, model, parts_left_new",
    [
        ("deeplabv3_resnet50", "deeplabv3", models.TorchvisionDeepLabV3(21, depth=50), set()),
        ("deeplabv3_resnet101", "deeplabv3", models.TorchvisionDeepLabV3(21), set()),
        ("resnet50", "resnet", models.DeepLabV3(21, depth=50), {"aspp", "logits"}),
        ("resnet101", "resnet", models.DeepLabV2ResNet(21), {"aspp"}),
        ("resnet152", "resnet", models.PSPNet(21, 152, stem="plain"), {"ppm", "head", "aux"}),
        ("vgg16", "vgg16", models.DeepLabV1(21), {"fc8"}),
        ("vgg16", "vgg16", models.DeepLabV1(21, kernel_size=7, rate=4, width=4096), {"fc8"}),
        ("vgg16", "vgg16", models.DeepLabV1(21, kernel_size=4, rate=8, width=4096), {"fc8"}),
        ("vgg16", "vgg16", models.DeepLabV2VGG(21), {f"fc8_{i}" for i in (1, 2, 3, 4)}),
        ("vgg16", "vgg16", models.SegNet(11), {"encoder", "decoder", "classifier"}),
        ("vgg16_bn", "vgg16_bn", models.SegNet(11), {"decoder", "classifier"}),
    ],
)
def test_every_name_of_torchvision_has_its_place(name, source, model, parts_left_new):
    needs("torch", "torchvision", "PIL")
    from tests.reference import torchvision_import

    new = fits(f"torchvision_{source}", torchvision_import.shapes(name), model)
    assert {path.split("/")[1] for path in new} == parts_left_new
    assert all("/bn" in path for path in new if "/encoder/" in path)


@pytest.mark.parametrize(
    "module, arguments, source, model",
    [
        ("pspnet", (150,), "semseg_pspnet", models.PSPNet(150, 50)),
        ("pspnet", (21, (3, 4, 23, 3)), "semseg_pspnet", models.PSPNet(21)),
        ("deeplab_v2", (21,), "kazuto1011_deeplabv2", models.DeepLabV2ResNet(21)),
        ("segnet", (11,), "segnet_caffe", models.SegNet(11)),
        ("vgg", (21,), "deeplab_vgg_caffe", models.DeepLabV1(21)),
    ],
)
def test_every_name_of_the_published_networks_has_its_place(module, arguments, source, model):
    torch = pytest.importorskip("torch", reason="the independent networks are torch's")
    classes = {"pspnet": "PSPNet", "deeplab_v2": "DeepLabV2", "segnet": "SegNet", "vgg": "LargeFOV"}
    build = getattr(importlib.import_module(f"tests.reference.{module}"), classes[module])
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in build(*arguments).state_dict().items()}
    found = fits(source, shapes, model)
    assert found == []


@pytest.mark.parametrize("size", [(65, 97), (64, 80)])
@pytest.mark.parametrize(
    "name, body", [("resnet50", models.ResNet(depth=50)), ("vgg16", vgg.VGG16())]
)
def test_a_classifier_of_torchvision_gives_the_same_features(name, body, size):
    torch = pytest.importorskip("torch", reason="compares with torchvision")
    needs("torchvision", "PIL")
    from tests.reference import torchvision_import

    module = torchvision_import.features(name)
    tensors = fill.weights({k: tuple(v.shape) for k, v in module.state_dict().items()}, name)
    module.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    module.eval()
    image = cases.image(name, size)
    x = torch.tensor(image.transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = module(x) if name == "resnet50" else {"pool5": module["features"](x)}

    shapes = {
        path.replace("/", "/backbone/", 1): leaf.shape
        for path, leaf in files.flatten(shapes_of(body)).items()
    }
    source = pretrained.SOURCES[f"torchvision_{name.removesuffix('50')}"]
    values, unused = sources.translate(source, tensors, shapes, epsilon=1e-5, seed=0)
    assert not unused and values.keys() == shapes.keys()
    variables = {part: tree["backbone"] for part, tree in files.unflatten(values).items()}
    found = jax.jit(body.apply)(variables, image)
    for end, value in expected.items():
        value = value.numpy().transpose(0, 2, 3, 1)
        assert difference(np.asarray(found[end]), value) < TOLERANCE, end


# VGG16's fully connected layers, small: a window of 7x7 with 6 channels, 16 filters.
FC = fill.weights(
    {
        "classifier.0.weight": (16, 6 * 7 * 7),
        "classifier.0.bias": (16,),
        "classifier.3.weight": (16, 16),
        "classifier.3.bias": (16,),
    },
    "fc",
)


def convolutions(size: int, width: int, seed: int = 0, suffix: str = "") -> dict[str, np.ndarray]:
    shapes = {
        f"params/fc6{suffix}/kernel": (size, size, 6, width),
        f"params/fc6{suffix}/bias": (width,),
        f"params/fc7{suffix}/kernel": (1, 1, width, width),
        f"params/fc7{suffix}/bias": (width,),
    }
    source = pretrained.SOURCES["torchvision_vgg16"]
    values, unused = sources.translate(source, FC, shapes, epsilon=1e-5, seed=seed)
    assert not unused and {path: v.shape for path, v in values.items()} == shapes
    return {path.removeprefix("params/").replace(suffix, ""): v for path, v in values.items()}


def test_fully_connected_layers_are_convolutions_of_the_whole_window():
    window = fill.image((1, 7, 7, 6), "window")[0]
    found = convolutions(7, 16)
    hidden = np.einsum("hwi,hwio->o", window, found["fc6/kernel"]) + found["fc6/bias"]
    flat = window.transpose(2, 0, 1).ravel()  # torch flattens channel by channel
    expected = FC["classifier.0.weight"] @ flat + FC["classifier.0.bias"]
    np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["fc7/kernel"][0, 0], FC["classifier.3.weight"].T)


@pytest.mark.parametrize("size, rows", [(3, [0, 3, 6]), (4, [0, 2, 4, 6])])
def test_fully_connected_layers_are_decimated_to_drawn_filters(size: int, rows: list[int]):
    found = convolutions(size, 5)
    windows = FC["classifier.0.weight"].reshape(16, 6, 7, 7)[:, :, rows][:, :, :, rows]
    drawn = [int(np.flatnonzero(FC["classifier.0.bias"] == b)[0]) for b in found["fc6/bias"]]
    assert len(set(drawn)) == 5
    np.testing.assert_array_equal(found["fc6/kernel"], windows[drawn].transpose(2, 3, 1, 0))
    after = [int(np.flatnonzero(FC["classifier.3.bias"] == b)[0]) for b in found["fc7/bias"]]
    expected = FC["classifier.3.weight"][after][:, drawn].T  # inputs are the filters kept of fc6
    np.testing.assert_array_equal(found["fc7/kernel"][0, 0], expected)


def test_the_draw_depends_on_the_seed_and_the_branch_alone():
    first = convolutions(3, 5)["fc6/bias"]
    np.testing.assert_array_equal(first, convolutions(3, 5)["fc6/bias"])
    assert (first != convolutions(3, 5, seed=1)["fc6/bias"]).any()
    branches = [convolutions(3, 5, suffix=f"_{i}")["fc6/bias"] for i in (1, 2)]
    assert (branches[0] != branches[1]).any()


@pytest.mark.parametrize("size, width", [(5, 5), (1, 5), (3, 17)])
def test_windows_and_widths_that_cannot_be_had_are_named(size: int, width: int):
    with pytest.raises(ValueError, match="fc6"):
        convolutions(size, width)


@pytest.mark.parametrize("legacy", [True, False])
def test_the_caffemodel_that_the_papers_start_from(legacy: bool, tmp_path: pathlib.Path):
    """Of 2014: its layers are V1, all its arrays have four axes."""
    tensors, inputs = {}, 3
    for stage, features in enumerate(vgg.STAGES, start=1):
        for i, count in enumerate(features, start=1):
            tensors[f"conv{stage}_{i}.weight"] = (count // 16, inputs, 3, 3)
            tensors[f"conv{stage}_{i}.bias"] = (inputs := count // 16,)
    for layer, outputs, inputs in (("fc6", 16, 32 * 49), ("fc7", 16, 16), ("fc8", 9, 16)):
        tensors |= {f"{layer}.weight": (outputs, inputs), f"{layer}.bias": (outputs,)}
    tensors = fill.weights(tensors, "2014")
    path = tmp_path / "VGG_ILSVRC_16_layers.caffemodel"
    path.write_bytes(caffemodel.of_tensors(tensors, v1=legacy, legacy=legacy))
    deeplab = models.DeepLabV1(num_classes=3, width=16, body_width=4)
    segnet = models.SegNet(num_classes=3, widths=(4, 8, 16, 32, 32))
    loaded = {}
    for model in (deeplab, segnet):
        variables, report = pretrained.load(path, model, shapes_of(model), strict=False)
        loaded |= files.flatten({"params": variables["params"]})
        assert not report.unused and not report.reshaped
        for name in report.new:
            assert name.split("/")[1] in ("fc8", "decoder", "classifier") or "/bn" in name
    for body in ("backbone", "encoder"):
        kernel = loaded[f"params/{body}/stage3/conv2/kernel"]
        np.testing.assert_array_equal(kernel, tensors["conv3_2.weight"].transpose(2, 3, 1, 0))
    window = tensors["fc6.weight"].reshape(16, 32, 7, 7)[:, :, ::3, ::3]
    np.testing.assert_array_equal(loaded["params/fc6/kernel"], window.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(loaded["params/fc7/kernel"][0, 0], tensors["fc7.weight"].T)
    np.testing.assert_array_equal(loaded["params/fc6/bias"], tensors["fc6.bias"])


SMALL = "semseg_pspnet"  # the case for everything that is the same for all


@pytest.mark.parametrize("kind, wrapper", [("pth", "state_dict"), ("pt", None), ("npz", None)])
def test_every_kind_of_file_holds_the_same_tensors(kind, wrapper, tmp_path):
    tensors, path = golden(SMALL)[0], tmp_path / f"weights.{kind}"
    if kind == "npz":
        np.savez(path, **tensors)
    else:
        torch = pytest.importorskip("torch", reason="writes a file of torch")
        state = {f"module.{name}": torch.tensor(value) for name, value in tensors.items()}
        torch.save({wrapper: state, "epoch": 100, "optimizer": {}} if wrapper else state, path)
    model = cases.CASES[SMALL].model
    loaded, _ = pretrained.load(path, model, shapes_of(model))
    same, _ = pretrained.load(write(tmp_path, tensors, "safetensors"), model, shapes_of(model))
    jax.tree.map(np.testing.assert_array_equal, loaded, same)


def test_names_of_the_multi_scale_wrapper_are_known():
    tensors = golden("kazuto1011_deeplabv2")[0]
    source = pretrained.SOURCES["kazuto1011_deeplabv2"]
    for prefix in ("base.", "scale.", "module.base.", "scale.base."):
        assert [source.canonical(prefix + name) for name in tensors] == list(tensors)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_become_float32(dtype: str, tmp_path: pathlib.Path):
    array = np.asarray(jnp.arange(6.0).reshape(2, 3)).astype(jnp.dtype(dtype))
    safetensors.numpy.save_file({"a": array}, tmp_path / "a.safetensors")
    found = files.read(tmp_path / "a.safetensors")["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(6).reshape(2, 3))


def load_small(tmp_path: pathlib.Path, tensors: dict[str, np.ndarray], **options):
    model = options.pop("model", cases.CASES[SMALL].model)
    return pretrained.load(
        write(tmp_path, tensors, "safetensors"), model, shapes_of(model), **options
    )


def test_leftovers_and_other_shapes_are_listed(tmp_path: pathlib.Path):
    tensors = dict(golden(SMALL)[0])
    tensors["layer1.0.conv2.strange"] = tensors.pop("layer1.0.conv2.weight")
    tensors["ppm.features.1.1.weight"] = np.zeros((7, 512, 1, 1), np.float32)
    with pytest.raises(ValueError) as error:
        load_small(tmp_path, tensors)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("as it is (strict=False loads what fits):")
    assert lines[1].endswith("no tensor for params/backbone/stage1/block1/conv2/kernel")
    assert lines[2].endswith("no variable for layer1.0.conv2.strange")
    assert lines[3].endswith(
        "another shape: params/ppm/conv2/kernel is (1, 1, 512, 7) in the file and (1, 1, 512, 128) "
        "in the network"
    )


def test_another_depth_is_refused(tmp_path: pathlib.Path):
    for depth in (14, 50):
        model = cases.CASES[SMALL].model.clone(depth=depth)
        with pytest.raises(ValueError, match="stage3" if depth == 50 else r"layer1\.1"):
            load_small(tmp_path, golden(SMALL)[0], model=model)


def test_a_head_of_other_classes_stays_new(tmp_path: pathlib.Path):
    model = cases.CASES[SMALL].model.clone(num_classes=9)
    with pytest.raises(ValueError, match=r"5.*9"):
        load_small(tmp_path, golden(SMALL)[0], model=model)
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), shapes_of(model))
    path = write(tmp_path, golden(SMALL)[0], "safetensors")
    loaded, report = pretrained.load(path, model, variables, strict=False)
    assert str(report).splitlines()[0] == (
        "checkpoint head has 5 classes, model has 9: loaded 185 of 189 tensors, "
        "initialised afresh: params/aux/logits/bias, params/aux/logits/kernel, "
        "params/head/logits/bias, params/head/logits/kernel"
    )
    for path in report.new:
        old, new = (files.flatten(tree)[path] for tree in (variables, loaded))
        np.testing.assert_array_equal(old, new)
    assert (
        loaded["params"]["head"]["conv"]["kernel"] != variables["params"]["head"]["conv"]["kernel"]
    ).all()


def test_an_auxiliary_head_may_be_missing_as_a_whole_only(tmp_path: pathlib.Path):
    tensors = {k: v for k, v in golden(SMALL)[0].items() if not k.startswith("aux.")}
    _, report = load_small(tmp_path, tensors)
    assert {path.split("/")[1] for path in report.new} == {"aux"}
    tensors["aux.0.weight"] = golden(SMALL)[0]["aux.0.weight"]
    with pytest.raises(ValueError, match=r"no tensor for .*params/aux/logits/kernel"):
        load_small(tmp_path, tensors)


def test_coco_weights_of_deeplab_v2_leave_the_pyramid_new(tmp_path: pathlib.Path):
    case = cases.CASES["kazuto1011_deeplabv2"]
    tensors = {k: v for k, v in golden("kazuto1011_deeplabv2")[0].items() if "aspp" not in k}
    tensors |= {"fc.weight": np.ones((91, 512), np.float32), "fc.bias": np.ones(91, np.float32)}
    _, report = load_small(tmp_path, tensors, model=case.model)
    assert {path.split("/")[1] for path in report.new} == {"aspp"}


def test_the_stride_of_another_resnet_is_mentioned(tmp_path: pathlib.Path):
    tensors = {
        name.replace("layer0.0", "conv1").replace("layer0.1", "bn1"): value
        for name, value in golden(SMALL)[0].items()
        if name.startswith(("layer0.0", "layer0.1", "layer1", "layer2", "layer3", "layer4"))
    }
    tensors["conv1.weight"] = np.ones((16, 3, 7, 7), np.float32)
    tensors["layer1.0.conv1.weight"] = np.ones((16, 16, 1, 1), np.float32)
    tensors["layer1.0.downsample.0.weight"] = np.ones((64, 16, 1, 1), np.float32)
    model = models.DeepLabV2ResNet(5, 26, width=16)
    assert "stride" in str(load_small(tmp_path, tensors, model=model)[1])
    model = models.DeepLabV3(5, 26, width=16)
    assert 'stride_in="3x3"' in str(load_small(tmp_path, tensors, model=model)[1])
    model = model.clone(stride_in="3x3", first_rate="previous")
    assert "stride" not in str(load_small(tmp_path, tensors, model=model)[1])


def test_weights_of_no_known_network_are_refused(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=r"(?s)no known network.*a\.weight.*semseg_pspnet"):
        load_small(tmp_path, {"a.weight": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="source='psp'; accepted are auto, segjax, torchvision"):
        load_small(tmp_path, golden(SMALL)[0], source="psp")
    with pytest.raises(ValueError, match="nothing of these weights fits"):
        load_small(tmp_path, {"params/a/kernel": np.ones(3, np.float32)})


def test_merge_takes_what_fits_and_keeps_types():
    variables = {
        "params": {"a": {"kernel": jnp.zeros((2, 3), jnp.bfloat16)}, "b": {"kernel": jnp.zeros(4)}},
        "batch_stats": {},
    }
    new = {"params": {"a": {"kernel": np.ones((2, 3))}, "b": {"kernel": np.ones((2, 2))}, "c": 1.0}}
    merged, report = pretrained.merge(variables, new)
    assert merged["params"]["a"]["kernel"].dtype == jnp.bfloat16
    assert (merged["params"]["a"]["kernel"] == 1).all()
    assert merged["params"]["b"]["kernel"] is variables["params"]["b"]["kernel"]
    assert not variables["params"]["a"]["kernel"].any()  # the arguments are not changed
    assert merged["batch_stats"] == {}
    assert report.loaded == ("params/a/kernel",)
    assert report.reshaped == {"params/b/kernel": ((2, 2), (4,))}
    assert str(report) == (
        "loaded 1 of 2 tensors, initialised afresh: params/b/kernel; "
        "of another shape: params/b/kernel is (2, 2) in the file and (4,) in the network; "
        "not used: params/c"
    )
    with pytest.raises(ValueError, match=r"nothing.*b/kernel is \(\) in the file"):
        pretrained.merge(variables, {"params": {"b": {"kernel": 1.0}, "c": np.ones(3)}})


def test_a_snapshot_of_segnet_has_no_statistics(folder: pathlib.Path):
    case, tensors = cases.CASES["segnet"], golden("segnet")[0]
    path = write(folder, tensors, "caffemodel")
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), shapes_of(case.model))
    loaded, report = pretrained.load(path, case.model, variables, "segnet_caffe_snapshot")
    assert all(path.startswith("batch_stats/") for path in report.new)
    assert "recompute_batch_stats" in str(report)
    jax.tree.map(np.testing.assert_array_equal, loaded["batch_stats"], variables["batch_stats"])
    scale = loaded["params"]["decoder"]["stage5"]["bn3"]["scale"]
    np.testing.assert_array_equal(scale, tensors["conv5_3_D_bn.weight"].ravel())


def test_absorbed_batch_norm_is_refused(folder: pathlib.Path):
    tensors = {k: 0 * v if "_bn" in k else v for k, v in golden("segnet")[0].items()}
    case = cases.CASES["segnet"]
    with pytest.raises(ValueError, match="absorbed"):
        pretrained.load(write(folder, tensors, "caffemodel"), case.model, shapes_of(case.model))


def test_names_of_the_data_set_in_a_caffemodel_are_dropped():
    for net in ("deeplab_v1_large_fov", "deeplab_v2_vgg"):
        source = pretrained.SOURCES["deeplab_vgg_caffe"]
        names = list(golden(net)[0])
        assert [source.canonical(n.replace("fc8", "fc8_voc12")) for n in names] == names


def test_the_program_converts_a_network(tmp_path, folder, capsys, monkeypatch):
    case = cases.CASES[SMALL]
    path = write(tmp_path, golden(SMALL)[0], "safetensors")
    program.main([str(path), str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "loaded 189 of 189 tensors" in said and "hszhao/semseg" in said
    variables, metadata = pretrained.load_weights(tmp_path / "out")
    classes = {"PSPNet": models.PSPNet, "Norm": models.Norm}
    stored = config.from_dict(metadata["config"], classes)
    assert stored.model == case.model and stored.input == config.Input()
    assert stored.loss.align_corners  # as semseg upsamples; prediction does the same
    assert segjax.load(tmp_path / "out").config.loss.align_corners
    assert metadata["provenance"]["file"] == path.name
    assert metadata["provenance"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert metadata["provenance"]["source"] == "semseg_pspnet"
    size = case.sizes[0]
    found = jax.jit(case.model.apply)(variables, cases.image(SMALL, size))["logits"]
    key = f"{size[0]}x{size[1]}/logits"
    assert difference(np.asarray(found), golden(SMALL)[1][key]) < TOLERANCE
    # and the folder is a file of weights like any other
    again, report = pretrained.load(tmp_path / "out", case.model, shapes_of(case.model))
    assert not report.new
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_the_program_keeps_the_classes_of_a_data_set(tmp_path, capsys):
    path = write(tmp_path, golden("segnet")[0], "caffemodel")
    with pytest.raises(ValueError, match="camvid has 11 classes, the weights predict 3"):
        program.main([str(path), str(tmp_path / "out"), "--dataset=camvid"])
    tensors = dict(golden("segnet")[0])
    tensors["conv1_1_D.weight"] = np.ones((11, 8, 3, 3), np.float32)
    tensors["conv1_1_D.bias"] = np.ones(11, np.float32)
    program.main(
        [str(write(tmp_path, tensors, "caffemodel")), str(tmp_path / "out"), "--dataset=camvid"]
    )
    _, metadata = pretrained.load_weights(tmp_path / "out")
    assert metadata["dataset"] == "camvid" and len(metadata["palette"]) == 11
    assert metadata["classes"][0].lower() == "sky"
    assert metadata["config"]["input"]["bgr"] is True
    assert metadata["config"]["loss"] == {"align_corners": False}  # unpooled to full size


def test_the_program_converts_the_body_of_a_classifier(tmp_path, capsys):
    tensors = {name: value for name, value in golden("semseg_pspnet")[0].items() if "layer" in name}
    for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"):
        index = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}[name]
        for kind in sources.KINDS.values():
            if f"layer0.{index}.{kind}" in tensors:
                tensors[f"{name}.{kind}"] = tensors.pop(f"layer0.{index}.{kind}")
    tensors = {name: value for name, value in tensors.items() if "layer0" not in name}
    tensors["fc.weight"] = np.ones((1000, 512), np.float32)
    path = write(tmp_path, tensors, "safetensors")
    program.main([str(path), str(tmp_path / "out")])
    variables, metadata = pretrained.load_weights(tmp_path / "out")
    assert set(variables["params"]) == {"backbone"}
    assert "model" not in metadata["config"] and "start" in metadata["partial"]
    model = models.PSPNet(7, 26, width=16)
    _, report = pretrained.load(tmp_path / "out", model, shapes_of(model), strict=False)
    assert {path.split("/")[1] for path in report.new} == {"ppm", "head", "aux"}


def test_the_program_ends_with_one_line(tmp_path):
    for file, message in (("nowhere.pth", "does not exist"), ("out", "own form already")):
        pretrained.save_weights(tmp_path / "out", {"params": {"a": np.ones(3)}}, {})
        with pytest.raises(ValueError, match=message) as error:
            program.main([str(tmp_path / file), str(tmp_path / "out")])
        assert "\n" not in str(error.value)


def test_a_file_that_lacks_what_tells_its_network_is_named(tmp_path):
    """A part of one, or another variant: conversion needs the tensors that tell the sizes."""
    path = tmp_path / "part.npz"
    np.savez(path, **{"classifier.0.convs.0.0.weight": np.zeros((8, 8, 1, 1), np.float32)})
    message = r"part\.npz is not torchvision's deeplabv3.*no tensor 'classifier\.4\.bias'"
    with pytest.raises(ValueError, match=message):
        pretrained.convert(path)
    with pytest.raises(ValueError, match=r"is not torchvision's VGG16.*'features"):
        pretrained.convert(path, "torchvision_vgg16")
