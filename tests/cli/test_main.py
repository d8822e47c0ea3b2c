"""The command segjax, as a user types it."""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import segjax
from segjax import checkpoint, state
from segjax.cli import main as cli
from segjax.config import Config, Data, Input, to_dict
from segjax.data import datasets
from segjax.models import SegNetBasic
from segjax.predict import crf_choice
from segjax.predict import label_files as submission
from segjax.predict import prediction as labelmaps


def save_run(folder, classes, palette):
    """A run of a small network with random weights."""
    model = SegNetBasic(num_classes=len(classes), width=4)
    config = Config(model=model, data=Data(canvas=(64, 96)), input=Input(mean=(9.0, 9.0, 9.0)))
    variables = state.init_variables(model, jax.random.key(0), (32, 32))
    tx = state.transformation(config, variables["params"])
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    metadata = {"config": to_dict(config), "classes": classes, "palette": palette}
    with checkpoint.Checkpoints(folder) as checkpoints:
        now = state.create(variables, tx)
        checkpoints.save(3, now, position={}, metadata=json.loads(json.dumps(metadata)))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    dataset = datasets.DATASETS["shapes"]
    return save_run(tmp_path_factory.mktemp("cli") / "run", dataset.classes, dataset.palette)


@pytest.fixture(scope="module")
def seg(run):
    return segjax.load(run)


def picture(path, size=(40, 60), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)
    return path


def said(capsys):
    captured = capsys.readouterr()
    return captured.out, " ".join(captured.err.split())


# predict


def test_predict_writes_the_label_map_of_every_picture(run, seg, tmp_path, capsys):
    folder = tmp_path / "photos"
    names = ("a.png", "below/b.PNG", "below/deeper/c.png")
    paths = [picture(folder / name, seed=i) for i, name in enumerate(names)]
    picture(folder / ".hidden" / "d.png")
    (folder / "notes.txt").write_text("no picture")
    alone = picture(tmp_path / "alone.png", size=(30, 50), seed=9)
    out = tmp_path / "out"
    assert cli.main(["predict", str(run), str(folder), str(alone), "--out", str(out)]) == 0
    written = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert written == ["a.png", "alone.png", "below/b.png", "below/deeper/c.png"]
    for path, name in zip([*paths, alone], [*names, "alone.png"], strict=True):
        with Image.open(out / name.replace("PNG", "png")) as label:
            np.testing.assert_array_equal(np.asarray(label), seg(path).labels)
            colours = np.asarray(label.convert("RGB"))
        np.testing.assert_array_equal(colours, np.asarray(seg.palette)[seg(path).labels])
    assert said(capsys)[0] == f"4 label maps in {out}\n"


def test_predict_writes_overlays(run, seg, tmp_path):
    path = picture(tmp_path / "a.png")
    assert cli.main(["predict", str(run), str(path), f"--out={tmp_path}/o", "--overlay"]) == 0
    with Image.open(tmp_path / "o" / "a_overlay.png") as overlay:
        np.testing.assert_array_equal(np.asarray(overlay), seg(path).overlay())


def animated(path):
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 99)]
    frames[0].save(path, save_all=True, append_images=frames[1:], format="PNG")


def bomb(path):
    # A header that says 30,000 x 30,000 pixels.
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, format="BMP")
    data = bytearray(buffer.getvalue())
    data[18:26] = (30_000).to_bytes(4, "little") * 2
    path.write_bytes(data)


BROKEN = {
    "empty.png": (lambda p: p.write_bytes(b""), "is empty"),
    "noise.jpg": (lambda p: p.write_bytes(b"no image" * 99), "no image of a known format"),
    "cut.png": (
        lambda p: p.write_bytes(picture(p.with_name("x.png")).read_bytes()[:2000]),
        "truncated or damaged",
    ),
    "animated.png": (animated, "has 2 frames"),
    "huge.bmp": (bomb, "larger than"),
}


def test_predict_skips_what_it_cannot_read_and_says_so_at_the_end(run, tmp_path, capsys):
    folder = tmp_path / "in"
    picture(folder / "a.png")
    for name, (make, _) in BROKEN.items():
        make(folder / name)
    (folder / "x.png").unlink()
    picture(folder / "z.png")
    out = tmp_path / "out"
    assert cli.main(["predict", str(run), str(folder), f"--out={out}"]) == 1
    assert {p.name for p in out.iterdir()} == {"a.png", "z.png"}
    printed, complaints = said(capsys)
    assert "2 label maps" in printed
    assert f"skipped {len(BROKEN)} of {len(BROKEN) + 2}" in complaints
    for name, (_, reason) in BROKEN.items():
        assert f"{name} " in complaints and reason in complaints


def test_predict_stops_where_it_cannot_write_and_keeps_what_is_finished(
    run, tmp_path, capsys, monkeypatch
):
    """A full disk, at the second picture."""
    folder = tmp_path / "in"
    for i in range(4):
        picture(folder / f"{i}.png", seed=i)
    whole, count = labelmaps.whole_file, iter(range(9))

    def full(path):
        if next(count) == 1:
            raise ValueError(f"{path} cannot be written: No space left on device")
        return whole(path)

    monkeypatch.setattr(labelmaps, "whole_file", full)
    out = tmp_path / "out"
    assert cli.main(["predict", str(run), str(folder), f"--out={out}"]) == 2
    assert [p.name for p in out.iterdir()] == ["0.png"]
    assert "1.png cannot be written: No space left" in said(capsys)[1]


def test_predict_says_where_it_may_not_write(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = picture(tmp_path / "a.png")
    assert cli.main(["predict", str(run), str(path), f"--out={tmp_path}/file/out"]) == 2
    assert "cannot be written: Not a directory" in said(capsys)[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["RUN", "missing.png"], "missing.png does not exist"),
        (["RUN", "EMPTY"], "holds no pictures"),
        (["RUN", "A", "COPY"], "would both become a.png"),
        (["RUN", "A", "--protocol=nope"], "protocol 'nope' is unknown; accepted are whole"),
        (["RUN", "A", "--step=7"], "no checkpoint '7'; accepted are best, latest, 3"),
        (["RUN", "A", "--submission=voc"], "the voc server takes 21 classes"),
        (["RUN", "A", "--crf=sharp"], "crf='sharp'; accepted are auto, none, learnt"),
        (["NOWHERE", "A"], "does not exist; give the folder of a run"),
        (["EMPTY", "A"], "holds no checkpoint"),
        (["A", "A"], "is a file; give the folder of a run"),
    ],
)
def test_predict_names_mistakes(run, tmp_path, capsys, arguments, named):
    places = {
        "RUN": run,
        "A": picture(tmp_path / "a.png"),
        "COPY": picture(tmp_path / "copy" / "a.png"),
        "EMPTY": tmp_path / "empty",
        "NOWHERE": tmp_path / "nowhere",
    }
    places["EMPTY"].mkdir()
    given = [str(places.get(word, word)) for word in arguments]
    out = tmp_path / "out"
    assert cli.main(["predict", *given, f"--out={out}"]) == 2
    printed, complaints = said(capsys)
    assert complaints.startswith("segjax predict: ") and named in complaints
    assert not printed and not out.exists()


@pytest.mark.parametrize(
    ("flags", "option"),
    [
        ([], None),
        (["--crf"], "auto"),
        (["--crf=none"], "none"),
    ],
)
def test_predict_passes_the_crf_on(run, tmp_path, monkeypatch, flags, option):
    asked = []
    monkeypatch.setattr(crf_choice, "choose", lambda choice, *_: asked.append(choice) or ())
    file = picture(tmp_path / "a.png")
    assert cli.main(["predict", *flags, str(run), str(file), f"--out={tmp_path}/out"]) == 0
    assert asked[0] == option


def test_predict_names_a_damaged_checkpoint(run, tmp_path, capsys):
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    files = [p for p in damaged.rglob("*") if p.is_file() and "state" in p.parts]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    path = picture(tmp_path / "a.png")
    assert cli.main(["predict", str(damaged), str(path), f"--out={tmp_path}/out"]) == 2
    assert "cannot be read" in said(capsys)[1]


# submission


@pytest.mark.parametrize(("layout", "count"), [("voc", 21), ("cityscapes", 19)])
def test_submission_layouts(tmp_path, layout, count):
    name = {"voc": "voc_segmentation"}.get(layout, layout)
    dataset = datasets.DATASETS[name]
    write = submission.writer(layout, tmp_path, dataset.classes, dataset.palette)
    labels = np.arange(count, dtype=np.uint8).reshape(1, -1)
    write("berlin/berlin_000000_000019", labels)
    [file] = [p for p in tmp_path.rglob("*") if p.is_file()]
    with Image.open(file) as picture:
        found = np.asarray(picture)
        if layout == "voc":
            folder = "results/VOC2012/Segmentation/comp6_test_cls"
            assert file == tmp_path / folder / "berlin_000000_000019.png"
            assert picture.mode == "P" and found.tolist() == labels.tolist()
            # The colours of VOC: 1 is dark red, 15 a light rose, 255 the cream of its void rim.
            palette = np.reshape(picture.getpalette(), (-1, 3))
            assert palette[[0, 1, 15, 255]].tolist() == [
                *([0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]),
            ]
        else:
            assert file == tmp_path / "berlin_000000_000019.png"
            assert picture.mode == "L"
            # Of cityscapesScripts/helpers/labels.py: road 7, sky 23, person 24, bicycle 33.
            assert found[0, [0, 10, 11, 18]].tolist() == [7, 23, 24, 33]


def test_submission_needs_the_classes_of_its_data_set(tmp_path):
    with pytest.raises(ValueError, match="takes 19 classes, this network predicts 2"):
        submission.writer("cityscapes", tmp_path, ("a", "b"), ((0, 0, 0),) * 2)
    with pytest.raises(ValueError, match="accepted are voc, cityscapes"):
        submission.writer("nope", tmp_path, ("a",), ((0, 0, 0),))


# check


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
    for text in ("class 0", "class 1", "largest image 40x60", "--config.data.name=folder"):
        assert text in printed
    assert f"--config.data.dir={root}" in printed and "num_classes=2" in printed
    assert '--config.augment.crop="(41, 65)"' in printed  # 8k + 1 pixels


def test_check_changes_ids(tmp_path, capsys):
    root = write_folder(tmp_path / "mine", ids=256)
    assert cli.main(["check", str(root), "--label-map", "{0:0,255:1}"]) == 0
    printed, _ = said(capsys)
    assert '--config.data.label_map="{0:0,255:1}"' in printed
    assert cli.main(["check", str(root)]) == 2  # objects of id 255 would be ignored


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        (("leftImg8bit", "gtFine"), "cityscapes"),
        (("VOCdevkit/VOC2012/JPEGImages",), "voc_segmentation"),
        (("JPEGImages", "SegmentationClass"), "voc_segmentation"),
        (("ADEChallengeData2016/images", "ADEChallengeData2016/annotations"), "ade20k"),
        (("train", "trainannot", "val", "valannot"), "camvid"),
        (("images", "masks"), "folder"),
    ],
)
def test_check_tells_a_data_set_by_its_folders(tmp_path, folders, name):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    assert cli.layout(tmp_path) == name
    assert name in datasets.DATASETS


def test_check_names_mistakes(tmp_path, capsys):
    assert cli.main(["check", str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in said(capsys)[1]
    (tmp_path / "pictures").mkdir()
    assert cli.main(["check", str(tmp_path)]) == 2
    assert "it holds pictures. Looked for are cityscapes: leftImg8bit" in said(capsys)[1]
    root = write_folder(tmp_path / "mine")
    (root / "images" / "3.png").write_bytes(b"")
    assert cli.main(["check", str(root)]) == 2
    assert "3.png" in said(capsys)[1]


# plan, report, export, convert

# ml_collections loads a configuration in a way that Python has deprecated.
LOADER = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@LOADER
def test_plan_prints_a_row_for_each_crop(capsys):
    arguments = ["--config=configs/demo.py", "--config.model.width=2", "--memory=0.5"]
    assert cli.main(["plan", *arguments, "--crop", "32x48", "40x40", "--batch", "1"]) == 0
    printed, _ = said(capsys)
    rows = [line for line in printed.splitlines() if "32x48 │" in line or "40x40 │" in line]
    assert len(rows) == 2 and all("yes" in row for row in rows)
    assert "parameters; all numbers are those of one device" in printed


@LOADER
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config=nope.py"], "no such file"),
        (["--config=configs/demo.py", "--config.train.batch_sise=3"], "batch_size"),
        (["--config=configs/demo.py", "--crop=12"], "write height x width"),
        (["--config=configs/demo.py", "--config.train.steps=0"], "train.steps is 0"),
    ],
)
def test_plan_names_mistakes(capsys, arguments, named):
    assert cli.main(["plan", *arguments]) == 2
    assert named in said(capsys)[1]


def test_report_is_written_and_mistakes_are_named(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert cli.main(["report", str(copy)]) == 0
    assert said(capsys)[0] == f"{copy}/report.html\n"
    assert (copy / "report.html").read_text().startswith("<!doctype html>")
    assert cli.main(["report", str(copy), "--evaluation=test"]) == 2
    assert "no evaluation 'test'" in said(capsys)[1]


def test_export_writes_a_program_that_predicts_the_same(run, seg, tmp_path, capsys):
    pytest.importorskip("flatbuffers", reason="the export extra serialises programs")
    file = tmp_path / "model.stablehlo"
    assert cli.main(["export", str(run), str(file), "--size=32x64", "--platforms=cpu"]) == 0
    assert f"{file} " in said(capsys)[0]
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 64, 3)).astype(np.uint8)
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    expected = seg(image[0], canvas=(32, 64)).labels
    np.testing.assert_array_equal(program.call(image)["labels"][0], expected)
    assert cli.main(["export", str(run), str(file), "--crf"]) == 2
    assert "the lattice of a CRF is of a fixed size" in said(capsys)[1]


def test_convert_has_its_own_arguments(tmp_path, capsys):
    (tmp_path / "weights.npz").write_bytes(b"")
    assert cli.main(["convert", str(tmp_path / "weights.npz"), str(tmp_path / "out")]) == 2
    assert "weights.npz" in said(capsys)[1]
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", "--help"])
    assert stop.value.code == 0
    assert "segjax convert" in capsys.readouterr().out


# The program as a whole.


@pytest.mark.parametrize("command", [[], *([name] for name in cli.EXAMPLES)])
def test_help_has_examples_and_imports_nothing_slow(command):
    code = (
        "import sys\n"
        "from segjax.cli import main as cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "slow = {'jax', 'numpy', 'tensorflow_datasets'} & set(sys.modules)\n"
        f"sys.exit(code or (3 if slow and {command} != ['convert'] else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: segjax {' '.join(command)}".strip() in done.stdout
    if command:
        assert f"  segjax {command[0]} " in done.stdout.replace("\n    segjax", "\n  segjax")


def test_unknown_arguments_are_refused(capsys):
    for arguments in (["predict", "a", "b", "--bogus"], ["report", "a", "--config.x=1"], ["fly"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert arguments[-1] in capsys.readouterr().err


def test_the_installed_command_runs(run, tmp_path):
    path = picture(tmp_path / "a.png")
    program = pathlib.Path(sys.executable).with_name("segjax")
    if not program.exists():
        pytest.skip("the package is not installed")
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [program, "predict", run, path, "--out", tmp_path / "out"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.png").exists()
