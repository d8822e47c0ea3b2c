import csv
import json
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.progress import TextColumn

from segjax import devices, log, optim
from segjax.config import Config, Train


def rows(path):
    return [
        {k: v for k, v in row.items() if v} for row in csv.DictReader(path.read_text().splitlines())
    ]


def test_rows_after_the_step_gone_on_from_are_dropped(tmp_path):
    with log.Log(tmp_path, step=0) as writer:
        for step in (2, 4, 6):
            writer.write(step, {"loss": step / 2})
        writer.write(6, {"mean_iou": 0.5, "unknown": 1.0})
        writer.picture(6, "val", np.zeros((4, 4, 3), np.uint8))
    with log.Log(tmp_path, step=4) as writer:
        assert writer.repeated == 2
        writer.write(6, {"loss": 9.0})
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "2", "loss": "1.0"},
        {"step": "4", "loss": "2.0"},
        {"step": "6", "loss": "9.0"},
    ]
    assert list((tmp_path / "tb").glob("events.out.tfevents*"))


@pytest.mark.parametrize("scored", [True, False])
def test_scores_that_are_made_again_are_not_there_twice(tmp_path, scored):
    """A kill came after the row of an evaluation, and before or after its scores were noted."""
    with log.Log(tmp_path, step=0) as writer:
        for step in (2, 4):
            writer.write(step, {"loss": step / 2})
            writer.write(step, {"mean_iou": step / 8})
    with log.Log(tmp_path, step=4, scored=scored):
        found = [(row["step"], "loss" in row) for row in rows(tmp_path / "metrics.csv")]
    kept = [("2", True), ("2", False), ("4", True), ("4", False)]
    assert found == (kept if scored else kept[:3])


def test_environment_names_versions_and_devices():
    found = log.environment()
    assert found["packages"]["jax"] and found["devices"] and found["processes"] == 1
    json.dumps(found)


@pytest.fixture
def reporter(tmp_path):
    config = Config(model=None, train=Train(steps=4, batch_size=2))
    with log.Log(tmp_path, step=0) as writer, log.Reporter(config, writer, 0) as reporter:
        yield reporter


def metrics(loss):
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1.0)}


def test_a_log_file_gets_a_line_and_metrics_csv_a_row_at_every_flush(tmp_path, reporter, capsys):
    for step, loss in ((1, 1.0), (2, 2.0), (3, 5.0)):
        reporter.add(step, metrics(loss), ["a"])
        if step > 1:
            reporter.flush(wait=0.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" lr ")[0] for line in lines] == [
        "step 2 of 4: loss 1.5000",
        "step 3 of 4: loss 5.0000",
    ]
    assert [(row["step"], row["loss"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("2", "1.5"),
        ("3", "5.0"),
    ]


def test_utilisation_is_written_where_the_device_is_known(tmp_path, reporter, monkeypatch, capsys):
    clock = iter([10.0, 14.0, 15.0, 16.0])
    monkeypatch.setattr(log.time, "perf_counter", lambda: next(clock))
    reporter.compiled(3e12, wait=7.0)  # at 10
    for step in (1, 2):
        reporter.add(step, metrics(1.0), ["a"])
    chip = devices.Chip("this one", 5e12, 0, 0.0, 0.0)
    with monkeypatch.context() as patch:
        patch.setitem(devices.PEAKS, jax.local_devices()[0].device_kind, chip)
        reporter.flush(wait=8.0)  # at 14: two steps in 4 s, one of them waiting for data
    reporter.add(3, metrics(1.0), ["a"])
    reporter.flush(wait=8.0)
    known, unknown = rows(tmp_path / "metrics.csv")
    assert float(known["mfu"]) == pytest.approx(2 * 3e12 / 4 / 5e12) and "mfu" not in unknown
    assert [float(row["input_wait"]) for row in (known, unknown)] == [0.25, 0.0]
    assert "mfu stays empty" not in capsys.readouterr().err
    monkeypatch.setitem(devices.PEAKS, jax.local_devices()[0].device_kind, chip)
    reporter.compiled(None, wait=8.0)  # as JAX without a CPU backend
    assert "mfu stays empty" in capsys.readouterr().err


def test_a_row_pays_for_no_compilation(tmp_path, caplog):
    config = Config(model=None, train=Train(steps=4, batch_size=2))
    jax.clear_caches()
    with log.Log(tmp_path, step=0) as writer, log.Reporter(config, writer, 0) as reporter:
        reporter.add(1, metrics(1.0), ["a"])
        with jax.log_compiles():
            reporter.flush(wait=0.0)
    assert "Compiling" not in caplog.text


def test_the_schedule_is_traced_once_for_all_rows(tmp_path, monkeypatch):
    traced = []
    monkeypatch.setattr(log.optim, "schedule", lambda *_: lambda t: traced.append(t) or t * 0.5)
    config = Config(model=None, train=Train(steps=4, batch_size=2))
    with log.Log(tmp_path, step=0) as writer, log.Reporter(config, writer, 0) as reporter:
        for step in (1, 2, 3):
            reporter.add(step, metrics(1.0), ["a"])
            reporter.flush(wait=0.0)
    assert len(traced) == 1
    assert [row["lr"] for row in rows(tmp_path / "metrics.csv")] == ["0.0", "0.5", "1.0"]


def test_a_failed_copy_of_the_events_leaves_nothing_open(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise ValueError("no such bucket")

    monkeypatch.setattr(log.files, "upload", fails)
    with log.Log(tmp_path / "run", step=0) as writer:
        writer._here = tempfile.TemporaryDirectory(dir=tmp_path)  # as of a run in a bucket
        (tmp_path / writer._here.name / "events").touch()
    assert "no such bucket" in capsys.readouterr().err
    assert writer._events.all_writers is None and os.listdir(tmp_path) == ["run"]


def test_a_file_of_fewer_columns_is_gone_on_with(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.4\n")
    with log.Log(tmp_path, step=1) as writer:
        writer.write(2, {"loss": 0.3, "mfu": 0.25})
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "1", "loss": "0.5"},
        {"step": "2", "loss": "0.3", "mfu": "0.25"},
    ]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_images(tmp_path, reporter, loss):
    reporter.add(1, metrics(1.0), ["a", "b"])
    reporter.add(2, metrics(loss), ["c", "[d]"])
    reporter.add(3, metrics(1.0), ["e", "f"])
    with pytest.raises(FloatingPointError, match=r"loss became .* at step 2; .* ids c, \[d\]"):
        reporter.flush(wait=0.0)
    assert rows(tmp_path / "metrics.csv") == []


def test_steps_left_out_are_counted_anew_after_a_finite_one(tmp_path):
    config = Config(model=None, train=Train(steps=9, batch_size=2, max_skipped=2))
    kept = []
    keep = lambda step, ago: kept.append((step, ago)) or "saved"
    with log.Log(tmp_path, step=0) as writer, log.Reporter(config, writer, 0, keep) as reporter:
        for step, loss in enumerate([1.0, np.nan, np.inf, 3.0, np.nan], 1):
            reporter.add(step, metrics(loss), ["a"])
        reporter.flush(wait=0.0)
        reporter.add(6, metrics(np.nan), ["a"])
        reporter.flush(wait=0.0)
        reporter.add(7, metrics(np.nan), ["a"])
        with pytest.raises(FloatingPointError, match=r"step 7; .*; saved"):
            reporter.flush(wait=0.0)
    with log.Log(tmp_path, step=6) as writer, log.Reporter(config, writer, 6) as reporter:
        reporter.add(7, metrics(4.0), ["a"])
        reporter.flush(wait=0.0)
        reporter.add(8, metrics(4.0), ["a"])
        reporter.flush(wait=0.0)
    found = rows(tmp_path / "metrics.csv")
    assert [(r["step"], r["loss"], r["skipped"]) for r in found] == [
        ("5", "2.0", "3"),
        ("6", "nan", "1"),
        ("7", "4.0", "0"),
        ("8", "4.0", "0"),
    ]
    assert kept == [(2, 3), (7, 0)]
    # The schedule counts the steps that were not left out: before each of these, the same two.
    rate = optim.schedule(config.optim, 9)
    assert [float(r["lr"]) for r in found] == pytest.approx([float(rate(t)) for t in (2, 2, 2, 3)])


def test_names_are_printed_as_they_are(capsys):
    log.say("runs [old]/[/bold] a")
    with log.harmless("[bold]report"):
        raise OSError("no [red] space")
    assert capsys.readouterr().err.splitlines() == [
        "runs [old]/[/bold] a",
        "[bold]report could not be written: OSError: no [red] space",
    ]


def test_a_terminal_that_hung_up_costs_nothing(monkeypatch):
    def gone(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(log.console, "print", gone)
    log.say("text")
    log.warn("text")


def test_progress_shows_names_as_they_are():
    assert [c.markup for c in log.progress().columns if isinstance(c, TextColumn)] == [False] * 2


def test_every_moment_counts_for_one_part(monkeypatch):
    clock = iter([0, 1, 3, 7, 15, 31, 63])
    monkeypatch.setattr(log.time, "perf_counter", lambda: next(clock))
    times = log.Times()  # at 0
    times.go_on("steps")  # at 1
    with times.spent("saving"), times.spent("input"):  # from 3, and from 7 to 15
        pass
    # until 31
    table = times.table(restarts=2, repeated=3)  # at 63
    assert table.caption == "restarts: 2, steps made again: 3"
    assert times.seconds == {"start": 1, "steps": 2 + 32, "saving": 4 + 16, "input": 8}
    cells = [list(column.cells) for column in table.columns]
    assert [cell[-1] for cell in cells] == ["total", "63.0", "100.0%"]
