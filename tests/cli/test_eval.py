"""segjax eval."""

import json
import types

import pytest

from segjax import hosts, training
from segjax.cli import main as cli
from segjax.config import Config, Data, Eval, Train
from segjax.models import SegNetBasic
from segjax.report import gallery
from tests.cli.runs import said
from tests.data.files import blocks, picture, write

pytestmark = pytest.mark.usefixtures("compiled_once")


def settings(tmp_path, steps):
    return Config(
        model=SegNetBasic(num_classes=7, width=4),
        data=Data(cache=str(tmp_path / "cache"), options="height=32,width=48,train=8,val=5"),
        eval=Eval(batch_size=4),
        train=Train(steps=steps, batch_size=4, checkpoint_every=1, log_every=1, images=2),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps that went on with another normalisation and other class weights."""
    folder = tmp_path_factory.mktemp("eval")
    training.train(settings(folder, 2), folder / "run")
    other = settings(folder, 3)
    other.input.mean = (10.0, 20.0, 30.0)
    other.loss.class_weights = "1,2,3,4,5,6,7"
    training.train(other, folder / "run")
    return folder / "run"


def scores(run, name):
    values = json.loads((run / "eval" / f"{name}.json").read_text())
    return values["confusion"], values["val_loss"]


@pytest.mark.parametrize("step", [2, 3])
def test_a_checkpoint_is_scored_as_it_was_trained(run, step, capsys):
    """config.json says how the run went on; the first steps were trained in another way."""
    assert cli.main(["eval", f"--workdir={run}", f"--step={step}"]) == 0
    assert scores(run, f"val_{step:06d}") == scores(run, f"{step:06d}")
    assert "changed for this command" not in said(capsys)[1]


def test_explicit_changes_are_made_and_printed(run, capsys):
    command = ["eval", f"--workdir={run}", "--step=2", "--config.input.mean=(10.0, 20.0, 30.0)"]
    assert cli.main([*command, "--protocol=deeplab_v1"]) == 0
    found = scores(run, "val_000002_deeplab_v1")
    assert found != scores(run, "000002")
    change = "input.mean: [123.675, 116.28, 103.53] -> [10.0, 20.0, 30.0]"
    assert f"changed for this command: {change}" in said(capsys)[1]


def test_all_processes_score_the_same_in_the_same_way(run, monkeypatch):
    told = []

    def same(values):
        told.append(values)
        if "images of train" in values:
            raise ValueError("they differ")

    monkeypatch.setattr(hosts, "link", lambda: types.SimpleNamespace(same=same))
    command = ["eval", f"--workdir={run}", "--split=train", "--step=2", "--crf"]
    assert cli.main([*command, "--config.eval.batch_size=8"]) == 2
    options = {"split": "train", "step": 2, "protocol": "whole", "--crf": "auto", "--save": None}
    assert told[0] == options
    assert told[1]["config.eval.batch_size"] == 8


def test_fewer_images_to_validate_on_are_not_fewer_to_test_on(tmp_path):
    config = settings(tmp_path, 1)
    config.data.num_val = 2
    training.train(config, tmp_path / "run")

    def images(name, *words):
        assert cli.main(["eval", f"--workdir={tmp_path / 'run'}", *words]) == 0
        return json.loads((tmp_path / f"run/eval/{name}_000001.json").read_text())["images"]

    assert images("val") == images("val", "--split=val") == 2
    assert images("train", "--split=train") == 8
    assert images("train", "--split=train", "--config.data.num_val=3") == 3


def test_a_split_may_lack_a_class_of_the_network(tmp_path, capsys):
    """Without a list of classes: the last one is in the split to validate on alone."""
    root = tmp_path / "raw"
    splits = {"train": (0, 1), "val": (0, 1, 2), "test": (0, 1), "more": (0, 1, 3)}
    for split, ids in splits.items():
        write(root / f"images/{split}/a.png", picture())
        write(root / f"masks/{split}/a.png", blocks(ids=ids))
    config = settings(tmp_path, 1)
    config.model = SegNetBasic(num_classes=0, width=4)
    config.data = Data(name="folder", dir=str(root), cache=str(tmp_path / "cache"))
    training.train(config, tmp_path / "run")
    command = ["eval", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*command, "--split=test"]) == 0
    values = json.loads((tmp_path / "run/eval/test_000001.json").read_text())
    assert list(values["per_class"]) == ["class 0", "class 1", "class 2"]
    assert values["confusion"][2] == [0, 0, 0]
    capsys.readouterr()
    assert cli.main([*command, "--split=more"]) == 2
    assert 'network has the classes 0..2; --config.data.label_map="{3:255}"' in said(capsys)[1]
    assert cli.main([*command, "--split=more", "--config.data.label_map={3:255}"]) == 0


def test_scores_are_shown_and_reported_where_pictures_cannot_be_written(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(gallery, "write", None)
        assert cli.main(["eval", f"--workdir={run}", "--step=2"]) == 0
    assert "the pictures of val_000002 could not be written" in said(capsys)[1]
    assert cli.main(["report", str(run)]) == 0
    (run / "eval" / "broken.json").write_text("{")
    assert cli.main(["eval", f"--workdir={run}", "--step=2"]) == 2
    text = said(capsys)[1]
    assert "┃ class ┃ IoU ┃" in text and "broken.json is not JSON" in text
