"""Each trial can be built, and a tiny one runs from its data to its figure."""

import dataclasses
import importlib
import json
import shutil

import cv2
import jax
import numpy as np
import pytest

from experiments import output_stride, trial
from segjax import config as config_lib
from segjax import training
from segjax.models import SegNetBasic

pytestmark = pytest.mark.usefixtures("compiled_once")

CLAIMS = (
    *("auxiliary_loss", "batch_norm", "class_balance", "crf_sharpens", "imagenet_start"),
    *("large_rates", "loss_resolution", "output_stride", "poly_schedule", "pyramid_bins"),
    "stored_indices",
)
TINY = trial.Scale("tiny", 10, (32, 32), 4, 14, 8, 8, 4, 2)


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    """A folder like CamVid's with images of 360x480, four to train on and two to validate on."""
    folder = tmp_path_factory.mktemp("camvid")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("", "annot"):
            (folder / f"{split}{kind}").mkdir()
        for i in range(count):
            label = np.kron(rng.integers(0, 12, (6, 8)), np.ones((60, 60))).astype(np.uint8)
            cv2.imwrite(str(folder / split / f"{i}.png"), np.stack([20 * label] * 3, -1))
            cv2.imwrite(str(folder / f"{split}annot" / f"{i}.png"), label)
    return folder


@pytest.mark.parametrize("scale", trial.SCALES)
@pytest.mark.parametrize("name", CLAIMS)
def test_trials_can_be_built(name, scale):
    claim = importlib.import_module(f"experiments.{name}").CLAIM
    trials = claim.trials(trial.SCALES[scale])
    assert claim.name == name
    assert len({t.name for t in trials}) == len(trials) > 1
    for t in trials:
        config_lib.check(t.config)
        image = jax.ShapeDtypeStruct((1, *t.config.augment.crop, 3), np.float32)
        key = jax.random.key(0)
        outputs = jax.eval_shape(t.config.model.init_with_output, key, image)[0]
        assert outputs["logits"].shape[-1] == trial.NUM_CLASSES
        assert set(t.config.loss.heads) <= set(outputs)
        assert t.start in ("", trials[0].name, "batch 16")


def test_a_tiny_claim_runs_and_goes_on(camvid, tmp_path, monkeypatch):
    def trials(scale):
        config = trial.segnet_config(scale, SegNetBasic(trial.NUM_CLASSES, width=scale.width))
        config.eval.trimap_widths = (1, 2)
        config.train.eval_every = 1
        config.train.recompute_batch_stats = 1
        config.data.cache = str(tmp_path / "cache")
        return [trial.Trial("one", config)]

    claim = trial.Claim("tiny", "nothing", trials, facts=lambda: {"a": 1})
    result = trial.run(claim, TINY, str(camvid), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tiny_tiny.json").read_text())
    assert written["facts"] == {"a": 1} and written["scale"]["steps"] == 2
    row = written["rows"]["one"]
    assert row["seed"] == [0] and 0 <= row["mean_iou"][0] <= 1
    assert set(row["curve"]) == {"1", "2"} and len(row["iou"]) == trial.NUM_CLASSES
    assert str(tmp_path) not in json.dumps(written)
    assert cv2.imread(str(tmp_path / "out" / "tiny_tiny.png")).size
    record = written["runs"]["one"]["0"]
    assert (record["steps"], record["batch_size"], record["crop"]) == (2, 4, [32, 32])
    assert record["init_from"] == ""
    assert [origin["packages"]["jax"] for origin in record["origins"]] == [jax.__version__]
    monkeypatch.setattr(training, "train", None)  # what is finished is not trained again
    assert trial.run(claim, TINY, str(camvid), tmp_path / "out") == result
    other = trials(TINY)[0]
    other.config.optim.lr = 0.5
    with pytest.raises(ValueError, match=r"tiny-one-0.*optim.lr=0\.1, and trial one has 0\.5"):
        trial.finish(other, tmp_path / "out" / "tiny" / "tiny-one-0")
    shutil.rmtree(tmp_path / "out" / "tiny")  # nor if its folder is gone
    assert trial.run(claim, TINY, str(camvid), tmp_path / "out") == result
    with pytest.raises(ValueError, match=r"tiny_tiny\.json has results of another scale"):
        trial.run(claim, dataclasses.replace(TINY, steps=3), "", tmp_path / "out")


def test_without_a_file_of_weights_what_starts_from_one_is_left_out(camvid, tmp_path, monkeypatch):
    def trials(scale):
        config = trial.segnet_config(scale, SegNetBasic(trial.NUM_CLASSES, width=scale.width))
        return [trial.Trial("one", config, weights=True)]

    def finish(which, workdir):
        raise InterruptedError(which.config.train.init_from)

    monkeypatch.setattr(trial, "finish", finish)
    claim = trial.Claim("tiny", "nothing", trials)
    assert not trial.run(claim, TINY, str(camvid), tmp_path)["rows"]
    with pytest.raises(InterruptedError, match="vgg16"):
        trial.run(claim, TINY, str(camvid), tmp_path, weights="vgg16.npz")


def test_second_phases_and_other_strides_run(camvid, tmp_path, monkeypatch):
    def trials(scale):
        found = output_stride.trials(scale)[:1]
        again = output_stride.trials(scale)[0].config
        found.append(trial.Trial("again", again, start=found[0].name))
        for t in found:
            t.config.data.cache = str(tmp_path / "cache")
            t.config.train.recompute_batch_stats = 0
        return found

    def scores(which, workdir):
        return (trial.own_scores if which.start else output_stride.scores)(which, workdir)

    claim = dataclasses.replace(output_stride.CLAIM, trials=trials, scores=scores)
    result = trial.run(claim, TINY, str(camvid), tmp_path / "out")
    names = list(result["rows"])
    assert names == ["parallel, at 16", "parallel, at 8", "again"]
    assert result["runs"]["again"]["0"]["init_from"] == "tiny-parallel-0"
    # The trial that the last one starts from is made again where its folder is gone.
    path = tmp_path / "out" / "output_stride_tiny.json"
    del result["runs"]["again"], result["rows"]["again"]
    path.write_text(json.dumps(result))
    shutil.rmtree(tmp_path / "out" / "output_stride")
    trained = []
    monkeypatch.setattr(training, "train", lambda config, workdir: trained.append(workdir.name))
    scores = lambda which, workdir: {which.name: {"mean_iou": 0.5}}
    claim = dataclasses.replace(claim, scores=scores)
    again = trial.run(claim, TINY, str(camvid), tmp_path / "out")["rows"]
    assert trained == ["tiny-parallel-0", "tiny-again-0"]
    assert list(again) == names and all(row["seed"] == [0] for row in again.values())


def test_images_are_averaged_and_labels_picked(camvid, tmp_path):
    scale = dataclasses.replace(TINY, shrink=2)
    folder = trial.shrunken(camvid, tmp_path, scale)
    image, label = (cv2.imread(str(folder / f"val{k}" / "0.png"), -1) for k in ("", "annot"))
    assert image.shape == (180, 240, 3) and label.shape == (180, 240)
    np.testing.assert_array_equal(image[..., 0], 20 * label)
    assert trial.shrunken(camvid, tmp_path, dataclasses.replace(TINY, shrink=1)) == camvid
