"""segjax plan."""

import pytest

from segjax.cli import main as cli
from tests.cli.runs import said

# ml_collections loads a configuration in a way that Python has deprecated.
LOADER = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@LOADER
@pytest.mark.parametrize("config", ["configs/demo.py", "demo"])
def test_plan_prints_a_row_for_each_crop(capsys, config):
    arguments = [f"--config={config}", "--config.model.width=2", "--memory=0.5"]
    assert cli.main(["plan", *arguments, "--crop", "32x48", "40x40", "--batch", "1"]) == 0
    printed, _ = said(capsys)
    rows = [line for line in printed.splitlines() if "32x48 │" in line or "40x40 │" in line]
    assert len(rows) == 2 and all("yes" in row for row in rows)
    assert "parameters; all numbers are those of one device" in printed


@LOADER
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config=nope.py"], "no such file; give a file, or one of crf_rnn_shapes, "),
        (["--config=configs/demo.py", "--config.train.batch_sise=3"], "batch_size"),
        (["--config=configs/demo.py", "--crop=12"], "write height x width"),
        (["--config=configs/demo.py", "--config.train.steps=0"], "train.steps is 0"),
    ],
)
def test_plan_names_mistakes(capsys, arguments, named):
    assert cli.main(["plan", *arguments]) == 2
    assert named in said(capsys)[1]
