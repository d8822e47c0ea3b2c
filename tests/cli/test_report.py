"""segjax report."""

import shutil

from segjax.cli import main as cli
from tests.cli.runs import said


def test_report_is_written_and_mistakes_are_named(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert cli.main(["report", str(copy)]) == 0
    assert said(capsys)[0] == f"{copy}/report.html\n"
    assert (copy / "report.html").read_text().startswith("<!doctype html>")
    assert cli.main(["report", str(copy), "--evaluation=test"]) == 2
    assert "no evaluation 'test'" in said(capsys)[1]
