"""Evaluations from files on disk to scores and label maps: the same for any batch and devices."""

import gzip
import json
import re
import shutil
import signal
import time
import types

import jax
import numpy as np
import pytest
from PIL import Image

from segjax import checkpoint, hosts, log, rows, signals, state, steps, training
from segjax import config as config_lib
from segjax.cli import main as cli
from segjax.config import Config, Data, Eval, Input, Train
from segjax.data import datasets, pipeline
from segjax.data.builders import cityscapes
from segjax.data.labels import colour_map
from segjax.evaluate import scoring, tune_crf
from segjax.evaluate.step import eval_step, out_axes
from segjax.models import DeepLabV3, SegNetBasic
from segjax.predict import label_files, protocols
from segjax.predict import segmenter as predict
from segjax.report import gallery
from segjax.report.reading import read_metrics
from segjax.workdir import open_run
from tests.data.files import blocks, folder, jpeg, picture, png, write

pytestmark = pytest.mark.usefixtures("compiled_once")

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
    variables = state.init_variables(config.model, jax.random.key(0), (32, 32))
    return *training.prepare(config, ["train", "val"]), variables


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return prepared_run(folder, "voc_segmentation", voc(folder / "raw"))


@pytest.mark.parametrize("name", ["deeplab_v2", "deeplab_v3", "pspnet"])
def test_protocols_score_alike_for_any_batch_and_devices(run, name):
    config, prepared, variables = run

    def scored(batch_size, devices):
        step = steps.parallel(
            eval_step,
            in_axes=(None, 0),
            out_axes=out_axes(refined=False),
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
            mesh=rows.mesh(devices),
            fill=config.input.mean,
        ) as batches:
            result = scoring.evaluate(
                step, variables, batches, num_classes=21, boundary=True, save=maps.setdefault
            )
        return result.to_dict(prepared.dataset.classes), maps

    expected, expected_maps = scored(3, jax.devices()[:1])
    assert expected["images"] == len(SIZES) and 0 < expected["mean_iou"] < 1
    assert np.sum(expected["confusion"]) == sum(height * width for height, width in SIZES)
    found, maps = scored(4, jax.devices())  # one image on each
    assert found.pop("val_loss") == pytest.approx(expected.pop("val_loss"), rel=1e-5)
    assert len(jax.devices()) == 4 and found == expected and list(maps) == list(expected_maps)
    for key, label in maps.items():
        np.testing.assert_array_equal(label, expected_maps[key])


def test_label_maps_for_the_server_of_voc(run, tmp_path):
    """The files are what the predictor says, with the colours of the challenge."""
    config, prepared, variables = run
    dataset = prepared.dataset
    save = label_files.writer("voc", tmp_path, dataset.classes, dataset.palette)
    scoring.evaluator(config, prepared, protocol=protocols.find("whole"), save=save)(
        variables, "val"
    )
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
    save = label_files.writer("cityscapes", tmp_path / "out", dataset.classes, dataset.palette)
    scoring.evaluator(config, prepared, protocol=protocols.find("whole"), save=save)(
        variables, "val"
    )
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
        training.initial_state(config)


@pytest.mark.parametrize("text", ["0,0,0", "1,nan,1", "1,-1,1", "1,1", "median"])
def test_wrong_class_weights_are_named(text):
    config = Config(model=SegNetBasic(num_classes=3))
    config.loss.class_weights = text
    with pytest.raises(ValueError, match=f"loss.class_weights is '{text}'; .* 3 numbers"):
        training.class_weights(config, None)


def settings(tmp_path, steps, **model):
    return Config(
        model=SegNetBasic(**({"num_classes": 7, "width": 4} | model)),
        data=Data(cache=str(tmp_path / "cache"), options="height=32,width=48,train=8,val=4"),
        eval=Eval(batch_size=4),
        train=Train(steps=steps, batch_size=4, checkpoint_every=1, log_every=1, images=2),
    )


def reached(workdir):
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.steps()


def content(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_does_not_fit_is_found_before_anything_is_trained(tmp_path):
    """Batches that are scored are filled up, and may be of any size."""
    config = settings(tmp_path, 1)
    training.prepare(config)
    config.train.batch_size = 3
    training.prepare(config, ["val"])
    with pytest.raises(ValueError, match=r"3, which 4 devices cannot share.*batch_size=4"):
        training.prepare(config)
    config.train.batch_size, config.data.num_val = 4, 5
    with pytest.raises(ValueError, match=r"data\.num_val=5, but the split has 4 images"):
        training.train(config, tmp_path / "run")
    config.data.num_val, config.data.num_train = 4, 9
    with pytest.raises(ValueError, match=r"data\.num_train=9, but the split has 8 images"):
        training.train(config, tmp_path / "run")
    config.data.num_train, config.data.canvas = 0, (32, 40)
    with pytest.raises(ValueError, match=r"too small for .* go up to 32x48"):
        training.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_network_or_optimiser_is_refused_and_left_as_it_was(tmp_path, monkeypatch):
    run = tmp_path / "run"
    training.train(settings(tmp_path, 1), run)
    before = content(run)
    with pytest.raises(ValueError, match=r"another network: model\.width: 4 -> 6 .*--workdir"):
        training.train(settings(tmp_path, 2, width=6), run)
    other = settings(tmp_path, 2)
    other.optim.ema_decay = 0.9
    with pytest.raises(ValueError, match=r"another optimiser: optim\.ema_decay: 0\.0 -> 0\.9"):
        training.train(other, run)
    other = settings(tmp_path, 2)
    other.optim.momentum = 0.0
    with pytest.raises(ValueError, match=r"another optimiser: optim\.momentum: 0\.9 -> 0\.0"):
        training.train(other, run)
    with monkeypatch.context() as patch:
        real = config_lib.to_dict
        named = lambda config: real(config) | {"data": real(config)["data"] | {"name": "camvid"}}
        patch.setattr(config_lib, "to_dict", named)
        with pytest.raises(ValueError, match=r"other data \(data\.name: shapes -> camvid\)"):
            training.train(settings(tmp_path, 2), run)
    assert content(run) == before
    other = settings(tmp_path, 2)
    other.optim.lr = 0.003  # what changes no array may change
    assert training.train(other, run) == 0
    assert reached(run) == [1, 2]


def test_weights_that_saw_other_images_are_told(tmp_path, capsys):
    config = settings(tmp_path, 1)
    config.input = Input(mean=(1.0, 2.0, 3.5), bgr=True)
    config.loss.align_corners = True
    training.train(config, tmp_path / "run")
    assert cli.main(["convert", f"{tmp_path / 'run'}", f"{tmp_path / 'shared'}"]) == 0
    other = settings(tmp_path, 1)
    for start in ("run", "run/checkpoints/1", "shared", "shared/weights.safetensors"):
        for settled in (config, other):
            settled.train.init_from = str(tmp_path / start)
        capsys.readouterr()
        training.initial_state(config)
        assert "in another way" not in capsys.readouterr().err
        state = training.initial_state(other)[0]
        assert (
            f"{start} was trained on images that were fed in another way; what it has learnt fits "
            'with --config.input.mean="(1.0, 2.0, 3.5)" --config.input.bgr=True '
            "--config.loss.align_corners=True"
        ) in capsys.readouterr().err
        expected = open_run(tmp_path / "run").variables["params"]
        jax.tree.map(np.testing.assert_array_equal, state.params, expected)
    classifier = {"input": {"bgr": True}, "loss": {"align_corners": False}}
    training._warn_of_another_input("body", {"config": classifier}, config)
    training._warn_of_another_input("body", {}, config)
    assert "in another way" not in capsys.readouterr().err
    # What a file of its publisher would be told of is told of a converted one.
    resnet = {"provenance": {"source": "torchvision_resnet"}}
    other.model = DeepLabV3(num_classes=3, stride_in="1x1")
    training._warn_of_another_input("body", resnet, other)
    assert "train.init_from: body: " in capsys.readouterr().err
    other = settings(tmp_path, 1, width=6)
    other.train.init_from = str(tmp_path / "shared")
    training.initial_state(other)  # the classifier's biases fit, of which there are as many
    assert "shared fits with --config.model.width=4; most of the" in capsys.readouterr().err
    other.model = SegNetBasic(num_classes=8, width=6)
    with pytest.raises(ValueError, match=r"shared fits with --config\.model\.width=4; nothing of"):
        training.initial_state(other)
    other.model = DeepLabV3(num_classes=21, depth=14, width=4, features=8)
    with pytest.raises(ValueError, match="holds weights of SegNetBasic, and this is DeepLabV3; "):
        training.initial_state(other)


def test_float16_is_not_trained_in(tmp_path):
    with pytest.raises(ValueError, match=r"small gradients become 0.*bfloat16 or float32"):
        training.train(settings(tmp_path, 1, dtype="float16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def own(tmp_path, *classes):
    """A configuration for pictures with a list of classes."""
    root = tmp_path / "raw"
    if not root.exists():
        folder(root, count=10, ids=(0, 1, 2))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    config = settings(tmp_path, 1, num_classes=0)
    config.data = Data(name="folder", dir=str(root), cache=str(tmp_path / "cache"))
    config.train.images = 0
    return config


def test_classes_in_another_order_are_refused(tmp_path, capsys):
    run = tmp_path / "run"
    training.train(own(tmp_path, "sky", "road", "tree"), run)
    config = own(tmp_path, "road", "sky", "tree")
    config.train.steps = 2
    commands = {
        "train": lambda: training.train(config, run),
        "eval": lambda: cli.main(["eval", f"--workdir={run}"]),
        "tune-crf": lambda: tune_crf.tune(run),
    }
    told = "another order: class 0 is 'sky' in the checkpoint and 'road' in the data"
    before = content(run)
    for name in ("train", "tune-crf"):
        with pytest.raises(ValueError, match=told):
            commands[name]()
    capsys.readouterr()
    assert commands["eval"]() == 2 and told in " ".join(capsys.readouterr().err.split())
    assert content(run) == before
    config = own(tmp_path, "heaven", "road", "tree")
    config.train.steps = 2
    assert training.train(config, run) == 0
    assert "class 0 is 'sky' in the checkpoint and 'heaven' in" in capsys.readouterr().err
    assert open_run(run, "2").classes[0] == "heaven"


def test_processes_compare_what_is_in_the_data(tmp_path):
    told = []
    link = types.SimpleNamespace(same=told.append)
    for classes in (("sky", "road", "tree"), ("road", "sky", "tree")):
        config, prepared = training.prepare(own(tmp_path, *classes))
        training.compare(config, link, prepared)
    one, other = told
    assert [name for name in one if one[name] != other[name]] == [
        f"name, pixels and weight of class {i} of {split}"
        for split in ("train", "val")
        for i in (0, 1)
    ]
    name, pixels, weight = one["name, pixels and weight of class 2 of train"]
    assert (name, pixels) == ("tree", prepared.summaries["train"].pixels[2])
    assert weight == pytest.approx(prepared.class_weights[2])


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path, capsys):
    run = tmp_path / "run"
    training.train(settings(tmp_path, 3), run)
    expected = open_run(run, "3").variables
    folder = run / "checkpoints"
    [largest] = sorted((folder / "3/state/d").glob("*"), key=lambda p: p.stat().st_size)[-1:]
    largest.write_bytes(largest.read_bytes()[::-1])
    training.train(settings(tmp_path, 3), run)
    said = " ".join(capsys.readouterr().err.split())
    assert "checkpoints/3 is damaged: " in said and "going on after step 2" in said
    assert "restarts: 0 " in said and "restarts: 1, steps made again: 1" in said
    assert (folder / "3.damaged").is_dir() and reached(run) == [1, 2, 3]
    jax.tree.map(np.testing.assert_array_equal, open_run(run, "3").variables, expected)
    for metadata in folder.glob("*/metadata"):
        shutil.rmtree(metadata)
    before = content(run)
    with pytest.raises(ValueError, match=r"no checkpoint that can be read: .*metadata is missing"):
        training.train(settings(tmp_path, 4), run)
    assert content(run) == before


def test_a_fault_of_reporting_is_a_warning(tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no [bold] picture")

    monkeypatch.setattr(training, "write_evaluation", broken)
    monkeypatch.setattr(training, "write_report", broken)
    run = tmp_path / "runs [old]/[/bold] a"
    assert training.train(settings(tmp_path, 2), run) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "evaluation of step 2 could not be written: RuntimeError: no [bold] picture" in said
    with checkpoint.Checkpoints(run, read_only=True) as checkpoints:
        assert checkpoints.latest() == 2 and checkpoints.scores()[2]["mean_iou"] >= 0


def test_an_evaluation_that_was_stopped_is_made_after_the_next_start(tmp_path, monkeypatch):
    run, real = tmp_path / "run", training.Scorer.__call__

    def stopped(self, step, state):
        self.stop.signal = signal.SIGTERM
        raise signals.StoppedError

    monkeypatch.setattr(training.Scorer, "__call__", stopped)
    assert training.train(settings(tmp_path, 2), run) == signal.SIGTERM
    assert reached(run) == [1, 2]
    monkeypatch.setattr(training.Scorer, "__call__", real)
    assert training.train(settings(tmp_path, 2), run) == 0
    with checkpoint.Checkpoints(run, read_only=True) as checkpoints:
        assert 2 in checkpoints.scores()
    # Cut off between the scores and their file, and with pictures that cannot be drawn.
    file = run / "eval/000002.json"
    before = json.loads(file.read_text())
    file.unlink()
    monkeypatch.setattr(gallery, "write", None)
    assert training.train(settings(tmp_path, 2), run) == 0
    after = json.loads(file.read_text())
    assert before["gallery"] and after["gallery"] == []
    assert after["mean_iou"] == before["mean_iou"]


def test_a_score_that_is_no_number_leaves_the_best_one(tmp_path, monkeypatch):
    config = settings(tmp_path, 3)
    config.train.eval_every, config.train.keep = 1, 1
    scores = iter([0.5, float("nan"), 0.25])
    real = training.evaluator

    def evaluator(*args, **kwargs):
        run = real(*args, **kwargs)

        def scored(*args):
            result, mean_iou = run(*args), next(scores)
            monkeypatch.setattr(type(result), "summary", lambda self: {"mean_iou": mean_iou})
            return result

        return scored

    monkeypatch.setattr(training, "evaluator", evaluator)
    training.train(config, tmp_path / "run")
    assert reached(tmp_path / "run") == [1, 3]
    assert open_run(tmp_path / "run").step == 1


def test_parameters_that_are_not_finite_end_the_run_and_keep_the_good_ones(tmp_path, monkeypatch):
    config, seal, written = settings(tmp_path, 4), checkpoint.Checkpoints._seal, []
    training.train(settings(tmp_path, 1), tmp_path / "run")
    config.optim.lr = 1e30

    def slow(checkpoints):
        time.sleep(2)
        seal(checkpoints)

    def left(checkpoints, *_):
        written.extend(checkpoint.saved(tmp_path / "run"))
        checkpoints._manager.close()

    monkeypatch.setattr(checkpoint.Checkpoints, "_seal", slow)
    monkeypatch.setattr(checkpoint.Checkpoints, "__exit__", left)
    with pytest.raises(FloatingPointError, match=r"\. .*lower --config\.opt") as error:
        training.train(config, tmp_path / "run")
    assert f"last good checkpoint {max(written)}. " in str(error.value)
    monkeypatch.undo()
    for leaf in jax.tree.leaves(open_run(tmp_path / "run", "latest").variables):
        assert np.isfinite(leaf).all()


def test_the_batch_of_a_loss_that_is_not_finite_is_saved(tmp_path, monkeypatch):
    seen = []
    real = log.Reporter.add
    monkeypatch.setattr(log.Reporter, "add", lambda *a: seen.append(a[3]) or real(*a))
    config = settings(tmp_path, 6)
    config.optim.lr, config.train.checkpoint_every, config.train.log_every = 1e30, 6, 3
    with pytest.raises(FloatingPointError, match=r"batch ids .*; its images are in .*\.npz;.*good"):
        training.train(config, tmp_path / "run")
    [file] = (tmp_path / "run/not_finite").iterdir()
    with np.load(file) as saved:  # refuses pickles
        assert saved["ids"].tolist() == seen[int(file.stem) - 1]
        assert saved["image"].shape == (4, 32, 48, 3) and saved["label"].shape == (4, 32, 48)
        assert saved["image"].dtype == np.uint8


def test_steps_that_are_not_finite_are_left_out_as_configured(tmp_path, monkeypatch, capsys):
    real = steps._loss
    monkeypatch.setattr(steps, "_loss", lambda *args: real(*args) * np.nan)
    config = settings(tmp_path, 2)
    config.train.max_skipped = 2
    assert training.train(config, tmp_path / "run") == 0
    rows = read_metrics(tmp_path / "run/metrics.csv")
    assert [row["skipped"] for row in rows] == ["1", "1", ""]  # the last one has the scores
    before, after = training.initial_state(config)[0], open_run(tmp_path / "run").variables
    for name in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), after[name])
    assert [p.name for p in (tmp_path / "run/not_finite").iterdir()] == ["000001.npz"]
    assert "left out, 2 in a row of at most 2: loss became nan" in capsys.readouterr().err
    config.train.steps, config.train.max_skipped = 4, 1
    with pytest.raises(FloatingPointError, match=r"at step 4; .*000004\.npz"):
        training.train(config, tmp_path / "run")


def test_all_processes_go_on_after_the_same_step(tmp_path, monkeypatch):
    told = []

    def same(values):
        told.append(values)
        if "goes on after step" in values:
            raise InterruptedError

    link = types.SimpleNamespace(session="session", same=same)
    monkeypatch.setattr(hosts, "link", lambda: link)
    with pytest.raises(InterruptedError):
        training.train(settings(tmp_path, 1), tmp_path / "run")
    assert told[-1] == {"goes on after step": 0, "scored": False}
    assert told[-2] == {f"--workdir={tmp_path / 'run'}": "the run's", "last step": 0}


def test_processes_are_compared_before_they_wait_for_data(tmp_path, monkeypatch):
    def same(values):
        raise InterruptedError(values["config.data.options"])

    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(hosts, "link", lambda: types.SimpleNamespace(same=same))
    monkeypatch.setattr(datasets, "prepare", never)
    config = settings(tmp_path, 1)
    with pytest.raises(InterruptedError, match=config.data.options):
        training.train(config, tmp_path / "run")


def test_a_step_copies_nothing_and_the_run_tells_where_its_time_went(
    tmp_path, monkeypatch, capsys, caplog
):
    """Step and evaluation are compiled once each, and nothing after the first evaluation."""
    config, real, score = settings(tmp_path, 2), steps.parallel, training.Scorer.__call__
    config.train.eval_every = 1
    compiled = lambda: [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    after = []

    def scored(*arguments):
        score(*arguments)
        after.append(compiled())

    monkeypatch.setattr(training.Scorer, "__call__", scored)

    def parallel(*args, **kwargs):
        step = real(*args, **kwargs)

        def guarded(*arguments):
            with jax.transfer_guard("disallow"):
                return step(*arguments)

        guarded.lower = step.lower
        return guarded

    monkeypatch.setattr(steps, "parallel", parallel)
    with jax.log_compiles():
        training.train(config, tmp_path / "run", profile=(2, 2))
    first, second = after
    assert second == first == compiled()
    assert sum("uint8[4,1,32,48,3]" in text for text in first) == 2  # a batch on four devices
    said = capsys.readouterr().err
    [trace] = (tmp_path / "run/profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert [e["args"]["step_num"] for e in events if e.get("name") == "train"] == ["2"]
    parts = ("start", "steps", "input", "compilation", "saving", "evaluation", "total")
    seconds = [float(re.search(rf"^│ {part} *│ *([\d.]+) ", said, re.M)[1]) for part in parts]
    assert seconds[-1] == pytest.approx(sum(seconds[:-1]), abs=0.5)
    assert seconds[parts.index("compilation")] > 0
    for first, last in ((2, 3), (2, 1), (0, 1)):
        told = rf"--profile is {first}:{last}, but train.steps is 2; write FIRST"
        with pytest.raises(ValueError, match=told):
            training.train(settings(tmp_path, 2), tmp_path / "run", profile=(first, last))


def test_a_damaged_log_does_not_stop_a_run(tmp_path):
    training.train(settings(tmp_path, 2), tmp_path / "run")
    with (tmp_path / "run/metrics.csv").open("ab") as file:
        file.write(b"3,0.1,\0\0\0")
    training.train(settings(tmp_path, 3), tmp_path / "run")
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "1", "2", "2", "3", "3"]


def test_images_that_shift_aligned_corners_are_named(tmp_path, capsys):
    config = settings(tmp_path, 1)
    config.model = DeepLabV3(num_classes=7)
    config.data.canvas, config.augment.crop = (64, 65), (33, 33)
    training.warn(config)
    assert "align_corners" not in capsys.readouterr().err
    config.loss.align_corners = True
    training.warn(config)
    said = " ".join(capsys.readouterr().err.split())
    assert "up to 15 pixels" in said and '--config.data.canvas="(65,65)"' in said
    assert "--config.augment.crop" not in said
    _, prepared = training.prepare(config)
    assert prepared.filled_up("val", (0, 0)) == (33, 49)  # of 32x48


def test_the_advice_on_batch_norm_leaves_out_what_the_run_does(tmp_path, capsys):
    config = settings(tmp_path, 1)
    training.warn(config)
    assert "--config.train.recompute_batch_stats=-1" in capsys.readouterr().err
    config.train.recompute_batch_stats = -1
    training.warn(config)
    said = capsys.readouterr().err
    assert "global batch 4" in said and "recompute_batch_stats" not in said
