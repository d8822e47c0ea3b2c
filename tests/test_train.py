"""The programs train.py and eval.py, as a user runs them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from segjax import checkpoint
from segjax.cli import main as cli
from tests.cli.runs import said

SMALL = (
    "--config=configs/demo.py",
    "--config.model.width=4",
    "--config.data.num_train=16",
    "--config.data.num_val=6",
    "--config.augment.crop=(32, 48)",
    "--config.train.batch_size=4",
    "--config.train.eval_every=0",
    "--config.train.log_every=2",
    "--config.train.checkpoint_every=2",
    "--config.train.recompute_batch_stats=0",
    "--config.eval.batch_size=4",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def start(program, workdir, cache, *flags):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    flags = [*flags, f"--config.data.cache={cache}"]
    return subprocess.Popen(
        [sys.executable, program, f"--workdir={workdir}", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return " ".join(output.split())


def variables(workdir):
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.latest(), checkpoints.variables(checkpoints.latest())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A run of eight steps that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "a"
    flags = (*SMALL, "--config.train.steps=8", "--config.train.recompute_batch_stats=-1")
    finish(start("train.py", workdir, cache, *flags))
    return workdir


def test_a_run_leaves_everything_that_is_promised(finished):
    assert {p.name for p in finished.iterdir()} >= {
        *("config.json", "env.json", "checkpoints", "metrics.csv", "tb", "images", "eval"),
    }
    rows = list(csv.DictReader((finished / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "4", "6", "8", "8"]
    assert all(float(row["loss"]) > 0 and float(row["lr"]) > 0 for row in rows[:4])
    assert 0 <= float(rows[-1]["mean_iou"]) <= 1
    scores = json.loads((finished / "eval" / "000008.json").read_text())
    assert scores["images"] == 6
    assert sum(map(sum, scores["confusion"])) > 0
    assert (finished / "images" / "000008.png").stat().st_size > 1000
    assert list((finished / "tb").glob("events*"))
    assert not list(finished.rglob("*.part"))


def test_the_same_command_again_says_that_nothing_is_left(finished, cache, capsys):
    flags = (*SMALL, "--config.train.steps=8", f"--config.data.cache={cache}")
    assert cli.main(["train", f"--workdir={finished}", *flags]) == 0
    assert "nothing is left to train" in said(capsys)[1]


def test_eval_gives_the_scores_of_the_run_for_another_batch(finished, cache):
    expected = json.loads((finished / "eval" / "000008.json").read_text())
    output = finish(start("eval.py", finished, cache, "--config.eval.batch_size=5"))
    assert "mean" in output and "IoU" in output
    found = json.loads((finished / "eval" / "val_000008.json").read_text())
    assert found["confusion"] == expected["confusion"]


def test_killed_run_goes_on_to_the_same_parameters(finished, tmp_path, cache):
    workdir = tmp_path / "killed"
    flags = (*SMALL, "--config.train.steps=8", "--config.train.recompute_batch_stats=-1")
    process = start("train.py", workdir, cache, *flags)
    while not (workdir / "checkpoints" / "2").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    reached = {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}
    assert reached and max(reached) < 8, "the run was to be killed on its way"
    assert "going on after step" in finish(start("train.py", workdir, cache, *flags))
    jax.tree.map(np.testing.assert_array_equal, variables(workdir), variables(finished))
    rows = [
        row["step"] for row in csv.DictReader((workdir / "metrics.csv").read_text().splitlines())
    ]
    assert rows == ["2", "4", "6", "8", "8"]


def test_terminated_run_saves_where_it_is(tmp_path, cache):
    workdir = tmp_path / "terminated"
    flags = (*SMALL, "--config.train.steps=100000", "--config.train.checkpoint_every=100000")
    process = start("train.py", workdir, cache, *flags)
    while process.poll() is None:
        if (workdir / "metrics.csv").exists() and "\n2," in (workdir / "metrics.csv").read_text():
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.05)
    output = finish(process, code=143)
    step = variables(workdir)[0]
    assert step >= 2 and f"step {step} of 100000 is saved, the same command goes on" in output
    assert output.index("SIGTERM: stopping after this step") < output.index("is saved")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, cache):
    flags = (*SMALL, "--config.train.steps=8", "--config.optim.lr=1e30")
    process = start("train.py", tmp_path / "nan", cache, *flags)
    output = " ".join(process.communicate(timeout=300)[0].split())
    assert process.returncode != 0
    assert "loss became" in output and "batch ids" in output and "optim.lr" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "flags, named",
    [
        ((), "required: --workdir"),
        (("--workdir=nowhere",), "nowhere does not exist; give the folder of a run"),
        (("--workdir={finished}", "--step=3"), "no checkpoint '3'; accepted are best, latest"),
        (("--workdir={finished}", "--split=night"), "night"),
        (("--workdir={finished}", "--config.eval.size=3"), "Eval has no field 'size'"),
    ],
)
def test_mistakes_of_eval_end_with_one_message(finished, flags, named, capsys):
    try:
        code = cli.main(["eval", *(flag.format(finished=finished) for flag in flags)])
    except SystemExit as error:  # of argparse
        code = error.code
    assert code == cli.MISTAKE and named in said(capsys)[1]
