"""Evaluations from files on disk to scores and label maps: the same for any batch and devices."""

import jax
import numpy as np
import pytest
from PIL import Image

from segjax import state, steps
from segjax import training as runs
from segjax.config import Config, Data, Eval
from segjax.data import datasets, pipeline
from segjax.data.builders import cityscapes
from segjax.data.labels import colour_map
from segjax.evaluate import scoring as evaluate
from segjax.models import SegNetBasic
from segjax.predict import label_files as submission
from segjax.predict import protocols
from segjax.predict import segmenter as predict
from tests.data.files import blocks, jpeg, picture, png, write

SIZES = ((32, 48), (24, 48), (32, 40), (30, 46), (28, 33))


def voc(root):
    """Five pictures of several sizes, each in both splits."""
    names = [f"2007_{i:06d}" for i in range(len(SIZES))]
    for i, (name, size) in enumerate(zip(names, SIZES, strict=True)):
        write(root / f"JPEGImages/{name}.jpg", jpeg(picture(*size, seed=i)))
        write(root / f"SegmentationClass/{name}.png", png(blocks(*size, ids=range(21), seed=i)))
    for split in ("train", "val"):
        text = "".join(f"{name}\n" for name in names)
        write(root / f"ImageSets/Segmentation/{split}.txt", text.encode())
    return root


def streets(root):
    """Three scenes of two cities in the layout of Cityscapes."""
    for i, city in enumerate(("ulm", "ulm", "bonn")):
        for split in ("train", "val"):
            stem = f"{split}/{city}/{city}_{i:06d}_000019"
            write(root / f"leftImg8bit/{stem}_leftImg8bit.png", picture(32, 48, seed=i))
            mask = blocks(32, 48, ids=(0, 7, 23, 33), seed=i)
            write(root / f"gtFine/{stem}_gtFine_labelIds.png", mask)
    return root


def prepared_run(tmp_path, name, root):
    """A small network with random weights for a data set."""
    dataset = datasets.DATASETS[name]
    config = Config(
        model=SegNetBasic(num_classes=dataset.num_classes, width=4),
        data=Data(name=name, dir=str(root), cache=str(tmp_path / "cache")),
        eval=Eval(batch_size=jax.device_count()),
    )
    config.train.batch_size = jax.device_count()
    variables = state.init_variables(config.model, jax.random.key(0), (32, 32))
    return config, runs.prepare(config, ["train", "val"]), variables


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return prepared_run(folder, "voc_segmentation", voc(folder / "raw"))


@pytest.mark.parametrize("name", ["deeplab_v2", "deeplab_v3", "pspnet"])
def test_protocols_score_alike_for_any_batch_and_devices(run, name):
    config, prepared, variables = run

    def scored(batch_size, devices):
        step = steps.parallel(
            evaluate.protocol_step,
            in_axes=(None, 0),
            out_axes=(None, 0),
            devices=devices,
            config=config,
            protocol=protocols.find(name),
        )
        maps = {}
        with pipeline.eval_batches(
            prepared,
            config.data,
            "val",
            batch_size=batch_size,
            devices=devices,
            fill=config.input.mean,
        ) as batches:
            result = evaluate.evaluate(
                step, variables, batches, num_classes=21, boundary=True, save=maps.setdefault
            )
        return result.to_dict(prepared.dataset.classes), maps

    expected, expected_maps = scored(3, jax.devices()[:1])
    assert expected["images"] == len(SIZES) and 0 < expected["mean_iou"] < 1
    assert np.sum(expected["confusion"]) == sum(height * width for height, width in SIZES)
    found, maps = scored(4, jax.devices())  # one image on each
    assert len(jax.devices()) == 4 and found == expected and list(maps) == list(expected_maps)
    for key, label in maps.items():
        np.testing.assert_array_equal(label, expected_maps[key])


def test_label_maps_for_the_server_of_voc(run, tmp_path):
    """The files are what the predictor says, with the colours of the challenge."""
    config, prepared, variables = run
    dataset = prepared.dataset
    save = submission.writer("voc", tmp_path, dataset.classes, dataset.palette)
    runs.evaluator(config, prepared, protocol=protocols.find("whole"), save=save)(variables, "val")
    seg = predict.Segmenter(config, variables, classes=dataset.classes, palette=dataset.palette)
    folder = tmp_path / "results/VOC2012/Segmentation/comp6_test_cls"
    files = sorted(folder.iterdir())
    assert [p.name for p in files] == [f"2007_{i:06d}.png" for i in range(len(SIZES))]
    for path, size in zip(files, SIZES, strict=True):
        image = f"{config.data.dir}/JPEGImages/{path.stem}.jpg"
        with Image.open(path) as label:
            assert label.mode == "P" and label.size == size[::-1]
            expected = seg(image, canvas=(32, 48)).labels
            np.testing.assert_array_equal(np.asarray(label), expected)
            colours = np.asarray(colour_map(21), np.uint8)[expected]
            np.testing.assert_array_equal(np.asarray(label.convert("RGB")), colours)
    assert len(np.unique(expected)) > 1


def test_label_maps_for_the_server_of_cityscapes(tmp_path):
    """Original ids, grey, one flat folder, a name that holds city, sequence and frame."""
    config, prepared, variables = prepared_run(tmp_path, "cityscapes", streets(tmp_path / "raw"))
    dataset = prepared.dataset
    save = submission.writer("cityscapes", tmp_path / "out", dataset.classes, dataset.palette)
    runs.evaluator(config, prepared, protocol=protocols.find("whole"), save=save)(variables, "val")
    seg = predict.Segmenter(config, variables, classes=dataset.classes, palette=dataset.palette)
    names = ["bonn_000002_000019", "ulm_000000_000019", "ulm_000001_000019"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{n}.png" for n in names]
    for name in names:
        city = name.split("_")[0]
        image = f"{config.data.dir}/leftImg8bit/val/{city}/{name}_leftImg8bit.png"
        expected = seg(image, canvas=(32, 48)).labels
        with Image.open(tmp_path / "out" / f"{name}.png") as label:
            assert label.mode == "L"
            found = np.asarray(label)
        np.testing.assert_array_equal(found, np.asarray(cityscapes.LABEL_IDS)[expected])
    assert found.max() > 18  # not the ids of training


def test_a_head_that_the_network_lacks_is_named():
    config = Config(model=SegNetBasic(num_classes=3, width=4))
    config.loss.heads = {"logits": 1.0, "aux": 0.4}
    with pytest.raises(ValueError, match="names aux; outputs of SegNetBasic are logits"):
        runs.initial_state(config)


@pytest.mark.parametrize("text", ["0,0,0", "1,nan,1", "1,-1,1", "1,1", "median"])
def test_wrong_class_weights_are_named(text):
    config = Config(model=SegNetBasic(num_classes=3))
    config.loss.class_weights = text
    with pytest.raises(ValueError, match=f"loss.class_weights is '{text}'; .* 3 numbers"):
        runs.class_weights(config, None)
