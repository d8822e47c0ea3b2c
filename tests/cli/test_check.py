"""segjax check."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from segjax import plan
from segjax.cli import check
from segjax.cli import main as cli
from segjax.data import datasets
from segjax.workdir import open_run
from tests.cli.runs import picture, said

pytestmark = pytest.mark.usefixtures("compiled_once")


def write_folder(root, count=10, ids=2):
    for i in range(count):
        picture(root / "images" / f"{i}.png", size=(40, 60), seed=i)
        (root / "masks").mkdir(exist_ok=True)
        label = np.zeros((40, 60), np.uint8)
        label[: 4 * (i + 1)] = ids - 1
        Image.fromarray(label).save(root / "masks" / f"{i}.png")
    return root


def test_check_says_what_is_there_and_what_to_write(tmp_path, capsys):
    root = write_folder(tmp_path / "mine")
    assert cli.main(["check", str(root)]) == 0
    printed, _ = said(capsys)
    for text in ("class 0", "class 1", "largest image 40x60"):
        assert text in printed
    command = f"segjax train --config=own_folder --config.data.dir={root} --workdir=runs/own"
    assert printed.endswith(f"{command}\n")
    words = shlex.split(command)
    small = ["--config.train.steps=1", "--config.model.width=2", f"--config.data.cache={tmp_path}"]
    assert cli.main([*words[1:], f"--workdir={tmp_path}/run", *small]) == 0


def test_what_the_folder_tells_is_known_to_the_whole_run(tmp_path, capsys, monkeypatch):
    root, run = write_folder(tmp_path / "mine", ids=3), tmp_path / "run"
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    words = ["--config=own_folder", f"--config.data.dir={root}", f"--config.data.cache={tmp_path}"]
    words += ["--config.model.width=2", "--config.train.recompute_batch_stats=0"]
    measure = lambda config, crop, batch: plan.Point(crop, batch, None, 1, 1, 1)
    monkeypatch.setattr(plan, "measure", measure)
    assert cli.main(["plan", *words, "--batch=1"]) == 0
    assert "40x64" in said(capsys)[0]
    assert cli.main(["plan", *words, "--batch=1", "--crop=32x32"]) == 0
    assert "32x32" in said(capsys)[0]
    train = ["train", *words, f"--workdir={run}", "--config.train.batch_size=4"]
    for steps in (1, 2):  # the second time it goes on
        assert cli.main([*train, f"--config.train.steps={steps}"]) == 0
    trained = open_run(run, "latest")
    assert trained.step == 2 and trained.classes == ("sky", "road", "car")
    assert trained.config.model.num_classes == 3 and trained.config.augment.crop == (40, 64)
    assert json.loads((run / "config.json").read_text())["augment"]["crop"] == [40, 64]
    assert len(trained.class_weights) == 3
    assert cli.main(["eval", f"--workdir={run}", "--step=latest"]) == 0
    (root / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    said(capsys)
    assert cli.main([*train, "--config.train.steps=3"]) == 2
    assert "other data (model.num_classes: 3 -> 4); choose another --workdir" in said(capsys)[1]


def test_check_changes_ids(tmp_path, capsys):
    root = write_folder(tmp_path / "mine", ids=256)
    assert cli.main(["check", str(root), "--label-map", "{0:0,255:1}"]) == 0
    printed, _ = said(capsys)
    assert "'--config.data.label_map={0:0,255:1}'" in printed
    assert cli.main(["check", str(root)]) == 2  # objects of id 255 would be ignored
    assert '"{0:0,255:1}" (segjax check: --label-map)' in said(capsys)[1]


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        (("leftImg8bit", "gtFine"), "cityscapes"),
        (
            ("VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/ImageSets/Segmentation"),
            "voc_segmentation",
        ),
        (("JPEGImages", "ImageSets/Segmentation"), "voc_segmentation"),
        (("JPEGImages", "SegmentationClass"), "folder"),  # of an annotation tool
        (
            (
                "ADEChallengeData2016/images/training",
                "ADEChallengeData2016/annotations/training",
            ),
            "ade20k",
        ),
        (("images", "annotations"), "folder"),
        (("train", "trainannot", "val", "valannot"), "camvid"),
        (("images", "masks"), "folder"),
    ],
)
def test_check_tells_a_data_set_by_its_folders(tmp_path, folders, name):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    assert check.layout(tmp_path) == name
    assert {*check.NAMES, "shapes"} == {*datasets.DATASETS}
    (tmp_path / "labelmap.txt").write_text("road:1,2,3::\n")
    if not folders[0].startswith(("VOCdevkit", "ADEChallenge")):
        assert check.layout(tmp_path) == "folder"  # it has classes of its own


def test_check_names_mistakes(tmp_path, capsys):
    assert cli.main(["check", str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in said(capsys)[1]
    (tmp_path / "pictures").mkdir()
    assert cli.main(["check", str(tmp_path)]) == 2
    assert "has no images. The data set 'folder' is laid out like this" in said(capsys)[1]
    root = write_folder(tmp_path / "mine")
    (root / "images" / "3.png").write_bytes(b"")
    assert cli.main(["check", str(root)]) == 2
    assert "3.png" in said(capsys)[1]
