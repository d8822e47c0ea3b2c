"""segjax convert."""

import pytest

from segjax import pretrained
from segjax.cli import main as cli
from tests.cli.runs import said


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
