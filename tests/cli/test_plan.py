"""segjax plan."""

import pytest

from segjax import topologies
from segjax.cli import main as cli
from tests.cli.runs import said


def test_plan_prints_a_row_for_each_crop(capsys):
    arguments = ["--config=demo", "--config.model.width=2", "--memory=0.5"]
    assert cli.main(["plan", *arguments, "--crop", "32x48", "40x40", "--batch", "1"]) == 0
    printed, _ = said(capsys)
    rows = [line for line in printed.splitlines() if "32x48 │" in line or "40x40 │" in line]
    assert len(rows) == 2 and all("yes" in row for row in rows)
    assert "parameters; all numbers are those of one device" in printed


def test_plan_of_a_slice_says_what_fits_and_what_to_change(capsys, monkeypatch):
    def train_step(config, topology, crop, batch, quick):
        assert quick
        if batch > 8:
            raise topologies.TooLargeError("Ran out of memory on HBM")
        return topologies.Program(197e9 * batch, 1e6, 3 * 2**30, 18, 10**7)

    monkeypatch.setattr(topologies, "compile_only", lambda topology: [])
    monkeypatch.setattr(topologies, "train_step", train_step)
    arguments = ["--config=configs/demo.py", "--topology=v5e:4x4", "--crop=64x64"]
    assert cli.main(["plan", *arguments, "--batch", "8", "16", "--quick"]) == 0
    printed, _ = said(capsys)
    words = " ".join(printed.replace("│", " ").split())
    assert "16 chips TPU v5e" in words and "fits yes no" in words
    assert "memory, of 16 GiB 3.00 GiB" in words and "all-reduces 18" in words
    assert "on paper: operations 8.00 ms" in words
    assert "operations of all 16 chips 25,216.0 GFLOP" in words
    assert "batch 16 does not fit, write a smaller --batch or --config.model.dtype" in words
    assert "efficiency on 1,024 chips" in words and "nothing of it measured on a TPU" in words
    assert "Compiled with the least effort" in words and "may fit without --quick" in words


@pytest.mark.parametrize("topology", [[], ["--topology=v5e:2x2"]])
def test_plan_refuses_rows_that_no_run_could_have(capsys, monkeypatch, topology):
    monkeypatch.setattr(topologies, "compile_only", lambda topology: [])
    arguments = ["--config=demo", "--config.train.engine=shard_map", "--config.train.rows=2"]
    assert cli.main(["plan", *arguments, *topology, "--crop=33x48"]) == 2
    assert "does not divide the 33 rows" in said(capsys)[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config=nope.py"], "no such file; give a file, or one of crf_rnn_shapes, "),
        (["--config=configs/demo.py", "--config.train.batch_sise=3"], "batch_size"),
        (["--config=configs/demo.py", "--crop=12"], "write height x width"),
        (["--config=configs/demo.py", "--config.train.steps=0"], "train.steps is 0"),
        (["--config=configs/demo.py", "--topology=v5e:3x3"], "accepted are v5e and v6e with 2x2, "),
    ],
)
def test_plan_names_mistakes(capsys, arguments, named):
    assert cli.main(["plan", *arguments]) == 2
    assert named in said(capsys)[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--quick"], "--quick is for a --topology"),
        (["--topology=v5e:4x4", "--memory=16"], "--memory is for this machine"),
    ],
)
def test_plan_refuses_options_that_would_do_nothing(capsys, arguments, named):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--config=demo", *arguments])
    assert named in said(capsys)[1]
