"""The search for the parameters of a CRF."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segjax
from segjax import checkpoint, crf, metrics, state
from segjax import training as runs
from segjax.cli import main as cli
from segjax.config import Config, Data, Eval, Input
from segjax.data import datasets
from segjax.evaluate import tune_crf as tune
from segjax.evaluate.scoring import Evaluation
from segjax.models import SegNetBasic
from segjax.workdir import begin, open_run, own_crfs
from tests.data import files as raw

pytestmark = pytest.mark.usefixtures("compiled_once")

IMAGES = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a small network with random weights on small scenes."""
    folder = tmp_path_factory.mktemp("tune") / "run"
    data = Data(cache=str(folder / "cache"), options="train=1,val=5,height=24,width=32")
    config = Config(
        model=SegNetBasic(num_classes=7, width=4),
        data=data,
        input=Input(mean=(124.0,) * 3, std=(60.0,) * 3),
        eval=Eval(batch_size=2),
    )
    config.train.batch_size = 1
    variables = state.init_variables(config.model, jax.random.key(0), (32, 32))
    tx = state.transformation(config, variables["params"])
    begin(config, folder)
    with checkpoint.Checkpoints(folder) as checkpoints:
        metadata = runs.metadata(config, datasets.DATASETS["shapes"])
        checkpoints.save(3, state.create(variables, tx), position={}, metadata=metadata)
    return folder


def sensible(path, seed):
    """Scores in place of those of random weights: the truth, with a third of the pixels wrong."""
    with np.load(path) as saved:
        scores, image, label = (saved[name] for name in ("scores", "image", "label"))
    assert scores.dtype == np.float16 and scores.max() == 0 and scores.shape == (*label.shape, 7)
    random = np.random.default_rng(seed)
    said = np.where(random.random(label.shape) < 0.33, random.integers(0, 7, label.shape), label)
    scores = np.where(np.arange(7) == said[..., None], 0, -2).astype(np.float16)
    np.savez(path, scores=scores, image=image, label=label)
    return scores.astype(np.float32), image, label


def test_scores_that_were_removed_are_made_again(run):
    command = ["tune-crf", str(run), "--images", "5", "--finer", "0"]
    command += ["--w1", "2", "--alpha", "10", "--beta", "10"]
    assert cli.main(command) == 0
    (second,) = (run / "tune").glob("val_000003_whole_5_*/000001.npz")
    second.unlink()
    assert cli.main(command) == 0 and second.exists()


def test_a_search_that_was_stopped_goes_on_and_is_what_prediction_uses(run, monkeypatch, capsys):
    tried = []
    real = tune.write_json

    def write(path, values):
        real(path, values)
        if path.name == "points.json":
            tried.append(len(values))
            if len(tried) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(tune, "write_json", write)
    command = ["tune-crf", str(run), "--images", str(IMAGES), "--finer", "1"]
    command += ["--w1", "2", "4", "--alpha", "10", "--beta", "10"]
    assert cli.main(command) == cli.INTERRUPTED
    (folder,) = (run / "tune").glob("val_000003_whole_3_*")
    files = sorted(folder.glob("*.npz"))
    assert len(files) == IMAGES
    samples = [sensible(path, seed) for seed, path in enumerate(files)]
    written = {path.name: path.stat().st_mtime_ns for path in files}
    assert cli.main(command) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")} == written
    # Two points, then 1 and 3 beside the better one or 3 and 5: the one in the middle is new too.
    assert tried == [1, 2, 3, 4]
    output = capsys.readouterr().out
    assert "the best 10 of 4" in output and "without CRF" in output and "ground" in output

    best = json.loads((run / "crf.json").read_text())
    points = json.loads((folder / "points.json").read_text())
    assert max(points, key=lambda p: p["mean_iou"])["w1"] == best["w1"]
    config = open_run(run).config
    own = own_crfs(config, {}, run)
    assert own == {"tuned": crf.deeplab_kernels(best["w1"], 10.0, 10.0, 3.0, 3.0)}

    assert segjax.load(run).crfs == own

    # What it says is what the CRF does to the saved scores, and the search's own number is close.
    confusions = np.zeros((2, 7, 7), int)
    for scores, image, label in samples:
        refined = np.asarray(crf.mean_field(jnp.asarray(scores), image, own["tuned"]))
        for confusion, found in zip(confusions, (scores, refined), strict=True):
            np.add.at(confusion, (label[label < 7], found.argmax(-1)[label < 7]), 1)
    before, after = (metrics.Scores(confusion).mean_iou for confusion in confusions)
    assert best["mean_iou_without"] == pytest.approx(before, abs=1e-9)
    assert best["mean_iou"] == pytest.approx(after, abs=0.01) and after > before + 0.05
    assert max(p["mean_iou"] for p in points) == pytest.approx(after, abs=0.01)

    (run / "crf.json").write_text('{"w1": 3}')
    with pytest.raises(ValueError, match=r"crf\.json is no result of segjax tune-crf: KeyError"):
        own_crfs(config, {}, run)


def test_scores_of_other_data_or_of_another_network_are_not_taken(tmp_path):
    """Nor those of data that were mended in place."""

    def digest(value):
        prepared = datasets.prepare(data, ["val"], show=False)
        return tune._digest({"a": np.full(2, value)}, prepared.folders["val"])

    root = raw.folder(tmp_path / "raw", ids=(0, 1))
    data = Data(name="folder", dir=str(root), cache=str(tmp_path / "cache"))
    first = digest(0)
    assert digest(0) == first != digest(1)
    raw.write(root / "masks/009.png", raw.blocks(ids=(0, 1), seed=99))
    assert digest(0) != first


def test_rounds_halve_the_steps_round_the_best():
    grid = tune.Grid(w1=(3, 4), alpha=(30, 50), beta=(5,))
    coarse = grid.coarse()
    assert len(coarse) == 4 and coarse[0] == dict(w1=3, alpha=30, beta=5, w2=3, gamma=3)
    finer = grid.round(coarse[0], 1)
    assert sorted({p["w1"] for p in finer}) == [2.5, 3.0, 3.5]
    assert sorted({p["alpha"] for p in finer}) == [20.0, 30.0, 40.0]
    assert {p["beta"] for p in finer} == {5.0} and len(finer) == 9
    lowest = min(p["alpha"] for p in grid.round(finer[0], 2))
    assert lowest == grid.least("alpha") == 15.0
    assert len(tune.Grid().coarse()) == 4 * 8 * 4  # DeepLab v2's first round


@pytest.mark.parametrize(
    "grid, message",
    [
        (tune.Grid(w1=(0.0, 1.0)), "w1 is"),
        (tune.Grid(alpha=()), "alpha is"),
        (tune.Grid(gamma=0.0), "gamma=0.0"),
        (tune.Grid(finer=-1), "finer=-1"),
        (tune.Grid(w1=(float("nan"),)), "w1 is .* finite"),
        (tune.Grid(gamma=float("inf")), "gamma=inf"),
    ],
)
def test_numbers_that_cannot_be_tried(grid, message):
    with pytest.raises(ValueError, match=message):
        grid.check()


def test_a_crf_that_hurts_is_called_so():
    good, bad = (metrics.Scores(np.array([[9, n], [n, 9]])) for n in (1, 4))
    before = Evaluation(good, {}, None, None, 3)
    hurt = dataclasses.replace(before, refined=Evaluation(bad, {}, None, None, 3))
    helped = dataclasses.replace(hurt.refined, refined=before)
    assert "lowers mean IoU" in hurt.table(("a", "b"), "t").caption
    assert "lowers mean IoU" not in helped.table(("a", "b"), "t").caption
    values = hurt.to_dict(("a", "b"))["crf"]
    change = bad.mean_iou - good.mean_iou
    assert values["mean_iou_change"] == pytest.approx(change)
    assert values["per_class"]["b"]["iou_change"] == pytest.approx(change)
