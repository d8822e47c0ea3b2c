"""Exported programs against the network they were made of."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from segjax import config, crf, models, state
from segjax.data.labels import colour_map
from segjax.predict import export
from segjax.predict.protocols import Protocol
from segjax.predict.segmenter import Segmenter

# What README.md shows, and a check that nothing of segjax, Flax or Orbax is needed.
LOADER = """
import sys

import jax
import numpy as np

with open(sys.argv[1], "rb") as file:
    program = jax.jit(jax.export.deserialize(file.read()).call)
for path in sys.argv[2:]:
    out = program(np.load(path))
    np.savez(path + ".npz", **{name: np.asarray(array) for name, array in out.items()})
foreign = {"segjax", "flax", "orbax", "optax", "tensorflow", "safetensors"} & set(sys.modules)
assert not foreign, foreign
"""


def segmenter(model=None, **changes):
    model = model or models.SegNetBasic(num_classes=4, width=4)
    cfg = config.Config(model=model, **changes)
    variables = state.init_variables(model, jax.random.key(0), (32, 32))
    palette = colour_map(model.num_classes)
    classes = "abcdefgh"[: model.num_classes]
    return Segmenter(cfg, variables, classes=classes, palette=palette)


def pictures(batch, height, width):
    shape = (batch, height, width, 3)
    return np.random.default_rng(height).integers(0, 256, shape).astype(np.uint8)


def reload(path):
    return jax.jit(jax.export.deserialize(path.read_bytes()).call)


def test_a_bare_process_runs_the_file_at_three_sizes(tmp_path):
    """Only jax and numpy; odd sizes, another batch: equal to the live network."""
    seg = segmenter(loss=config.Loss(align_corners=True))
    path = tmp_path / "model.stablehlo"
    written = export.export(seg, path, probs=True)
    assert written == [path, tmp_path / "model.json"]
    images = [pictures(2, 64, 96), pictures(1, 45, 130), pictures(3, 31, 7)]
    names = []
    for i, image in enumerate(images):
        names.append(str(tmp_path / f"{i}.npy"))
        np.save(names[-1], image)
    command = [sys.executable, "-W", "error", "-c", LOADER, str(path), *names]
    subprocess.run(command, check=True, cwd=tmp_path)
    for name, image in zip(names, images, strict=True):
        with np.load(name + ".npz") as found:
            size = export.canvas(image.shape[1:3], align_corners=True)
            live = seg(image, probs=True, canvas=size)
            labels = np.stack([out.labels for out in live])
            assert found["labels"].dtype == np.uint8 and found["probs"].dtype == np.float32
            np.testing.assert_array_equal(found["labels"], labels)
            probs = np.stack([out.probs for out in live])
            # Another process, compiled without the options of segjax.compiling: rounding differs.
            np.testing.assert_allclose(found["probs"], probs, atol=5e-6)


def test_one_file_is_for_all_platforms(tmp_path):
    export.export(segmenter(), tmp_path / "a.stablehlo")
    exported = jax.export.deserialize((tmp_path / "a.stablehlo").read_bytes())
    assert exported.platforms == ("cpu", "cuda", "tpu")
    description = json.loads((tmp_path / "a.json").read_text())
    assert description["platforms"] == ["cpu", "cuda", "tpu"]
    assert description["classes"] == list("abcd") and description["palette"][1] == [128, 0, 0]
    assert description["image"] == ["uint8", ["batch", "height", "width", 3], "RGB"]


def test_without_open_sizes_the_bytecode_compiles_by_itself(tmp_path):
    """As a C++ program has it compiled, by PJRT's client."""
    path, image = tmp_path / "a.v1", pictures(2, 40, 48)
    written = export.export(segmenter(), path, size=(40, 48), batch=2, platforms=["cpu"])
    assert written == [path, tmp_path / "a.v1.json"]
    description = json.loads(written[1].read_text())
    assert description["image"] == ["uint8", [2, 40, 48, 3], "RGB"]
    exported = jax.export.deserialize(path.read_bytes())
    assert "tensor<?" not in exported.mlir_module()
    client, devices = jax.devices()[0].client, jax.devices()[:1]
    program = client.compile_and_load(exported.mlir_module_serialized, devices)
    [[label]] = program.execute_sharded(
        [jax.device_put(image, devices[0])]
    ).disassemble_into_single_device_arrays()
    np.testing.assert_array_equal(label, reload(path)(image)["labels"])


def test_weights_beside_the_program(tmp_path):
    seg = segmenter()
    written = export.export(seg, tmp_path / "a.stablehlo", weights="beside", platforms=["cpu"])
    assert [p.suffix for p in written] == [".stablehlo", ".json", ".safetensors"]
    export.export(seg, tmp_path / "b.stablehlo", platforms=["cpu"])
    inside, beside = ((tmp_path / f"{n}.stablehlo").stat().st_size for n in "ba")
    assert inside > beside + 4 * sum(x.size for x in jax.tree.leaves(seg.variables)) / 2
    weights = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    image = pictures(1, 33, 40)
    found = reload(tmp_path / "a.stablehlo")(weights, image)
    assert set(found) == {"labels"}
    expected = seg(image[0], canvas=(64, 64)).labels
    np.testing.assert_array_equal(found["labels"][0], expected)


@pytest.mark.parametrize(
    "model",
    [
        models.SegNet(num_classes=3, widths=(4, 4, 4, 8, 8)),
        models.DeepLabV2VGG(num_classes=3, width=8, body_width=4),
        models.DeepLabV2ResNet(num_classes=3, depth=14, width=4),
        models.DeepLabV3(num_classes=3, depth=14, width=4, features=8),
        models.PSPNet(num_classes=3, depth=14, width=4),
    ],
    ids=lambda model: type(model).__name__,
)
def test_every_network_runs_at_any_size(tmp_path, model):
    seg = segmenter(model, loss=config.Loss(align_corners=True))
    export.export(seg, tmp_path / "a.stablehlo", platforms=["cpu"], probs=True)
    image = pictures(1, 45, 50)
    found = reload(tmp_path / "a.stablehlo")(image)
    live = seg(image[0], canvas=(65, 65), probs=True)
    np.testing.assert_allclose(found["probs"][0], live.probs, atol=1e-5)


def test_fixed_sizes_take_any_protocol(tmp_path):
    seg = segmenter()
    image, size = pictures(2, 40, 48), (40, 48)
    scales = Protocol(scales=(0.5, 1.0), flip=True)
    windows = Protocol(crop=32, base=64, flip=True)
    for protocol in (scales, windows):
        export.export(
            seg, tmp_path / "a.stablehlo", size=size, protocol=protocol, platforms=["cpu"]
        )
        found = reload(tmp_path / "a.stablehlo")(image)["labels"]
        for i in range(2):
            expected = seg(image[i], canvas=size, protocol=protocol).labels
            assert (np.asarray(found[i]) == expected).mean() > 0.999
    with pytest.raises(ValueError, match=r"(?i)shape"):
        reload(tmp_path / "a.stablehlo")(pictures(1, 48, 40))


def test_the_crf_inside(tmp_path):
    seg = segmenter()
    kernels = (crf.Bilateral(20.0, 20.0, 5.0), crf.Spatial(3.0, 3.0))
    image, size = pictures(2, 24, 32) // 8, (24, 32)
    path = tmp_path / "a.stablehlo"
    export.export(seg, path, size=size, crf=kernels, probs=True, platforms=["cpu"])
    found = reload(path)(image)
    for i in range(2):
        live = seg(image[i], crf=kernels, canvas=size, probs=True)
        np.testing.assert_allclose(found["probs"][i], live.probs, atol=1e-4)
    with pytest.raises(ValueError, match=r"of a fixed size; write size=\(height, width\)"):
        export.export(seg, path, crf="auto")


def test_a_run_by_its_name(tmp_path):
    from segjax import pretrained

    seg = segmenter()
    metadata = {"config": config.to_dict(seg.config)}
    pretrained.save_weights(tmp_path / "w", seg.variables, metadata)
    [program, _] = export.export(tmp_path / "w", tmp_path / "deep" / "a.stablehlo")
    assert program == pathlib.Path(tmp_path / "deep" / "a.stablehlo") and program.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "outside"}, "weights='outside'; accepted are 'inside' and 'beside'"),
        ({"platforms": ("gpu",)}, r"platforms=\('gpu',\); accepted are cpu, cuda, tpu"),
        ({"platforms": ()}, r"platforms=\(\); accepted are cpu, cuda, tpu"),
        ({"path": "a.json"}, r"a\.json: the program's own ending is wanted"),
        ({"path": "file/a.stablehlo"}, r"file/a\.stablehlo cannot be written"),
        ({"protocol": "unet"}, "protocol 'unet' is unknown"),
        ({"path": "weights.stablehlo"}, "would be files of a folder of weights"),
        ({"path": "config.stablehlo"}, "would be files of a folder of weights"),
        ({"batch": 0}, "batch=0; at least 1 is needed"),
    ],
)
def test_options_that_cannot_be_used(tmp_path, options, message):
    (tmp_path / "file").touch()
    path = tmp_path / options.pop("path", "a.stablehlo")
    with pytest.raises(ValueError, match=message):
        export.export(segmenter(), path, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
