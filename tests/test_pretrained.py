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
from hypothesis import given, settings
from hypothesis import strategies as st

import segjax
from segjax import config, losses, models, pretrained
from segjax.cli import convert as program
from segjax.models import vgg
from segjax.pretrained import caffe, files, sources
from tests.reference import caffemodel, cases, fill, training

GOLDEN = pathlib.Path(__file__).parent / "golden"
TOLERANCE = 1e-4  # largest difference over largest value


def needs(*modules: str) -> None:
    """Skips where the independent implementation is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"compares with torch: pip install 'segjax[parity]' ({missing[0]} is missing)")


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
    assert sources.detect(shapes) == source
    tensors = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}
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
    assert lines[1].endswith("no tensor for params/backbone/stage1/block1/conv2/kernel")
    assert lines[2].endswith("no variable for layer1.0.conv2.strange")
    assert lines[3].endswith(
        "another shape: params/ppm/conv2/kernel is (1, 1, 512, 7) in the file and (1, 1, 512, 128) "
        "in the network"
    )
    assert "strict=False" in lines[4]


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
        "checkpoint head has 5 classes, model has 9: loaded 185 of 189 tensors, left new: "
        "params/aux/logits/bias, params/aux/logits/kernel, params/head/logits/bias, "
        "params/head/logits/kernel"
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
        "loaded 1 of 2 tensors, left new: params/b/kernel; of another shape: params/b/kernel is "
        "(2, 2) in the file and (4,) in the network; not used: params/c"
    )
    with pytest.raises(ValueError, match=r"nothing.*b/kernel is \(\) in the file"):
        pretrained.merge(variables, {"params": {"b": {"kernel": 1.0}, "c": np.ones(3)}})


def test_saved_weights_come_back(tmp_path: pathlib.Path):
    variables = {
        "params": {"fc6": {"kernel": jnp.arange(6.0).reshape(2, 3).T}},
        "batch_stats": {"bn": {"mean": np.float32([1, 2])}},
    }
    pretrained.save_weights(tmp_path / "a" / "b", variables, {"classes": ["sky"]})
    loaded, metadata = pretrained.load_weights(tmp_path / "a" / "b")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert metadata["classes"] == ["sky"]
    stored = safetensors.numpy.load_file(tmp_path / "a" / "b" / "weights.safetensors")
    assert set(stored) == {"params/fc6/kernel", "batch_stats/bn/mean"}
    same, _ = pretrained.load_weights(tmp_path / "a" / "b" / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_a_folder_is_written_whole_or_found_out(tmp_path: pathlib.Path, monkeypatch):
    for value in (1, 2):
        variables = {"params": {"a": np.full(3, value, np.float32)}}
        pretrained.save_weights(tmp_path / f"run{value}", variables, {"value": value})
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(ValueError, match="cannot be written: full"):
        pretrained.save_weights(tmp_path / "run1", {"params": {"a": np.zeros(3)}}, {})
    loaded, metadata = pretrained.load_weights(tmp_path / "run1")
    assert (loaded["params"]["a"] == 1).all() and metadata["value"] == 1
    assert len(list((tmp_path / "run1").iterdir())) == 2
    (tmp_path / "run2" / "config.json").replace(tmp_path / "run1" / "config.json")
    with pytest.raises(ValueError, match=r"is not the file that config\.json describes"):
        pretrained.load_weights(tmp_path / "run1")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        pretrained.load_weights(tmp_path / "run2")
    (tmp_path / "run1" / "config.json").write_text("[")
    with pytest.raises(ValueError, match="does not describe"):
        pretrained.load_weights(tmp_path / "run1")


class Trap:
    """Pickled, it makes a file when it is read without care."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_a_pickle_with_code_is_not_run(tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch", reason="writes a file of torch")
    trap = tmp_path / "sprung"
    torch.save({"state_dict": {"conv1.weight": Trap(trap)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="more than tensors"):
        files.read(tmp_path / "a.pth")
    np.savez(tmp_path / "a.npz", a=np.array([Trap(trap)], object))
    with pytest.raises(ValueError, match="npz of plain arrays"):
        files.read(tmp_path / "a.npz")
    assert not trap.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert trap.exists()  # it was armed


def broken_files(folder: pathlib.Path) -> dict[str, tuple[bytes, str]]:
    """File name: content, what the error says."""
    np.savez(folder / "whole.npz", a=np.ones(100))
    npz = (folder / "whole.npz").read_bytes()
    tensors = safetensors.numpy.save({"a": np.ones(100, np.float32)})
    return {
        "a.pth": (b"", "is empty"),
        "b.pth": (b"not torch at all", "torch|more than tensors"),
        "c.safetensors": (tensors[:-8], "not a whole .safetensors"),
        "d.safetensors": (b"\xff" * 64, "not a whole .safetensors"),
        "e.npz": (npz[:-40], "not an .npz"),
        "f.npz": (npz[:80] + b"\0" * 40 + npz[120:], "not an .npz"),
        "g.caffemodel": (b"\x08", "not a whole .caffemodel"),
        "h.caffemodel": (b"\x08\x01", "no layer with weights"),
        "i.h5": (b"HDF", "accepted are .pth, .pt, .safetensors, .npz, .caffemodel"),
        "j.safetensors": (
            safetensors.numpy.save({"w": np.array([1, np.nan], np.float32)}),
            "w has values that are not finite",
        ),
    }


@pytest.mark.parametrize("name", "abcdefghij")
def test_a_broken_file_gives_one_clear_line(name: str, tmp_path: pathlib.Path):
    files_by_letter = {key[0]: (key, *value) for key, value in broken_files(tmp_path).items()}
    key, content, message = files_by_letter[name]
    if key.endswith(".pth") and content:
        pytest.importorskip("torch", reason="is torch's reader")
    (tmp_path / key).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        files.read(tmp_path / key)
    assert key in str(error.value)


def test_what_torch_wrote_beside_tensors_is_named(tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch", reason="writes a file of torch")
    torch.save({"conv1.weight": torch.ones(3), "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds epoch beside tensors"):
        files.read(tmp_path / "a.pth")
    torch.save(torch.ones(3), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds a Tensor, not a state_dict"):
        files.read(tmp_path / "a.pth")
    torch.save({"a": torch.ones(300)}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    for end in range(0, len(content), 97):
        (tmp_path / "b.pth").write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"b\.pth"):
            files.read(tmp_path / "b.pth")


def test_without_torch_the_extra_is_named(tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"pip install 'segjax\[parity\]'"):
        files.read(tmp_path / "a.pth")
    with pytest.raises(ValueError, match="does not exist"):
        files.read(tmp_path / "b.pth")


NET = {
    "conv1_1.weight": fill.uniform("net/a", (4, 3, 3, 3), -1, 1),
    "conv1_1.bias": fill.uniform("net/b", (4,), -1, 1),
    "conv1_1_bn.weight": fill.uniform("net/c", (1, 4, 1, 1), -1, 1),
}


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_form_of_a_caffemodel_is_read(v1, packed, legacy, tmp_path):
    path = tmp_path / "a.caffemodel"
    path.write_bytes(caffemodel.of_tensors(NET, v1=v1, packed=packed, legacy=legacy))
    found = caffe.read(path)
    assert list(found) == list(NET)
    for name, expected in NET.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name].ravel(), expected.ravel())
    bias = (1, 1, 1, 4) if legacy else (4,)
    assert [a.shape for a in found.values()] == [(4, 3, 3, 3), bias, (1, 4, 1, 1)]


def hostile_nets() -> dict[str, tuple[bytes, str]]:
    """What is wrong: the content of a .caffemodel, what the error says."""
    layer = lambda blob: caffemodel.net({"a": [blob]})
    field, varint = caffemodel.field, caffemodel.varint
    dims = lambda *sizes: field(7, field(1, b"".join(map(varint, sizes))))
    return {
        "a length beyond the file": (varint(100 << 3 | 2) + varint(2**60) + b"a", "truncated"),
        "a length of eleven bytes": (varint(100 << 3 | 2) + b"\xff" * 11, "ten bytes"),
        "a shape without values": (layer(dims(2**31, 2**31)), "holds 0 numbers"),
        "a negative size": (layer(dims(2**64 - 1) + field(5, b"\0" * 4)), "holds 1 numbers"),
        "hundreds of axes": (layer(dims(*[1] * 99) + field(5, b"\0" * 4)), "shape"),
        "half a number": (layer(field(5, b"\0" * 6)), "6 bytes"),
        "a group": (bytes([3 << 3 | 3]), "wire type 3"),
        "a name twice": (caffemodel.net({"a": [caffemodel.blob(np.ones(2))]}) * 2, "two layers"),
    }


@pytest.mark.parametrize("wrong", hostile_nets())
def test_a_hostile_caffemodel_is_refused(wrong: str, tmp_path: pathlib.Path):
    content, message = hostile_nets()[wrong]
    (tmp_path / "a.caffemodel").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        caffe.read(tmp_path / "a.caffemodel")


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_damaged_caffemodel_is_read_or_refused(data, folder: pathlib.Path):
    content = bytearray(caffemodel.of_tensors(NET))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] + data.draw(st.binary(max_size=20))
    path = folder / "damaged.caffemodel"
    path.write_bytes(content)
    try:
        found = caffe.read(path)
    except ValueError as error:
        assert "caffemodel" in str(error)
    else:
        assert sum(array.nbytes for array in found.values()) <= 2 * len(content)


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
    with pytest.raises(SystemExit, match="camvid has 11 classes, the weights predict 3"):
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
        with pytest.raises(SystemExit, match=message) as error:
            program.main([str(tmp_path / file), str(tmp_path / "out")])
        assert "\n" not in str(error.value)
