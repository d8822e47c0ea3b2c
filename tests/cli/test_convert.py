"""segjax convert."""

import json

import jax
import numpy as np
import pytest

import segjax
from segjax import checkpoint, pretrained, workdir
from segjax.cli import main as cli
from tests.cli.runs import picture, said, save_run


def test_sources_are_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", "--sources"])
    assert not stop.value.code
    listed = said(capsys)[0].splitlines()
    assert [line.split()[0] for line in listed] == list(pretrained.SOURCES)


def test_mistakes_are_named(tmp_path, capsys):
    weights, out = str(tmp_path / "weights.npz"), str(tmp_path / "out")
    assert cli.main(["convert", weights, out]) == 2
    assert "weights.npz does not exist" in said(capsys)[1]
    assert cli.main(["convert", weights, out, "--dataset=voc"]) == 2
    assert "--dataset=voc; accepted are ade20k, camvid, " in said(capsys)[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_becomes_weights_that_predict_as_it_does(tmp_path, capsys, dtype):
    run = save_run(tmp_path / "run", ["road", "car"], [[128, 64, 128], [64, 0, 128]])
    tuned = {"w1": 4.0, "alpha": 40.0, "beta": 5.0, "w2": 3.0, "gamma": 3.0}
    (run / workdir.TUNED).write_text(json.dumps(tuned))
    assert not cli.main(["convert", str(run), str(tmp_path / "w"), f"--dtype={dtype}"])
    assert "step 3" in said(capsys)[0]
    before, after = workdir.open_run(run), workdir.open_run(tmp_path / "w")
    assert (after.classes, after.palette, after.crfs) == (
        before.classes,
        before.palette,
        before.crfs,
    )
    for old, new in zip(*map(jax.tree.leaves, (before.variables, after.variables)), strict=True):
        assert new.dtype == np.float32
        kept = old.astype(dtype).astype(np.float32) if old.ndim > 1 else old
        np.testing.assert_array_equal(new, kept)
    size = (tmp_path / "w" / "weights.safetensors").stat().st_size
    count = sum(leaf.size for leaf in jax.tree.leaves(before.variables))
    assert size < {"float32": 4, "bfloat16": 2}[dtype] * count + 8192
    file = picture(tmp_path / "a.png")
    same = segjax.load(run)(file).labels == segjax.load(tmp_path / "w")(file).labels
    assert same.mean() > (0.999 if dtype == "float32" else 0.9)


def test_weights_of_a_run_tell_where_they_come_from_and_no_folder_of_the_machine(tmp_path):
    run = save_run(tmp_path / "run", ["road", "car"], [[128, 64, 128], [64, 0, 128]])
    (run / "checkpoints" / "scores.json").write_text('{"3": {"mean_iou": 0.5}}')
    cli.main(["convert", str(run), str(tmp_path / "w")])
    text = (tmp_path / "w" / "config.json").read_text()
    found = json.loads(text)["provenance"]
    assert (found["run"], found["step"], found["scores"]) == ("run", 3, {"mean_iou": 0.5})
    assert str(tmp_path) not in text
    assert cli.main(["convert", str(run), str(tmp_path / "v"), "--step=4"]) == 2


def test_weights_are_written_into_no_run(tmp_path, capsys):
    run = save_run(tmp_path / "run", ["road", "car"], [[128, 64, 128], [64, 0, 128]])
    before = sorted(run.rglob("*"))
    for folder in (run, run / "checkpoints" / "3"):
        assert cli.main(["convert", str(run), str(folder)]) == 2
        assert "is a run, which would be read as weights" in said(capsys)[1]
    assert sorted(run.rglob("*")) == before


def test_a_run_is_found_from_inside_it(tmp_path, monkeypatch):
    run = save_run(tmp_path / "run", ["road", "car"], [[128, 64, 128], [64, 0, 128]])
    monkeypatch.chdir(run / "checkpoints")
    for name in ("..", ".", "3"):
        assert not cli.main(["convert", name, str(tmp_path / "w")])
        about = json.loads((tmp_path / "w" / "config.json").read_text())
        assert about["provenance"]["run"] == "run"


def test_arguments_of_the_other_kind_are_refused(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    run, file, out = (str(tmp_path / name) for name in ("run", "a.npz", "w"))
    for words, kind in (
        ([run, out, "--source=segnet_caffe"], "--source is for a published file"),
        ([run, out, "--dataset=camvid"], "--dataset is for a published file"),
        ([run, out, "--seed=3"], "--seed is for a published file"),
        ([file, out, "--step=latest"], "--step is for a run"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["convert", *words])
        assert kind in said(capsys)[1]


def test_a_crf_tuned_for_other_weights_does_not_stay(tmp_path, capsys):
    run = save_run(tmp_path / "run", ["road", "car"], [[128, 64, 128], [64, 0, 128]])
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / workdir.TUNED).write_text("{}")
    assert cli.main(["convert", str(run), str(tmp_path / "w")]) == 2
    assert "was tuned for other weights" in said(capsys)[1]
    assert cli.main(["convert", "other.npz", str(tmp_path / "w")]) == 2
    assert "was tuned for other weights" in said(capsys)[1]
    assert len(list((tmp_path / "w").iterdir())) == 1


def test_a_checkpoint_that_describes_no_network_is_refused(tmp_path, monkeypatch, capsys):
    run = save_run(tmp_path / "run", ["road", "car"], [[128, 64, 128], [64, 0, 128]])
    monkeypatch.setattr(checkpoint.Checkpoints, "metadata", lambda self, step: {})
    assert cli.main(["convert", str(run), str(tmp_path / "w")]) == 2
    assert "is no network of segjax" in said(capsys)[1]
