"""segjax configs."""

import pathlib
import runpy

from segjax import config
from segjax.cli import configs
from segjax.cli import main as cli
from segjax.config import Config
from tests.cli.runs import said

FOLDER = pathlib.Path(__file__).parents[2] / "configs"


def test_every_configuration_is_shipped_and_has_its_line(capsys):
    assert cli.main(["configs"]) == 0
    lines = said(capsys)[0].splitlines()
    assert [line.split()[0] for line in lines] == sorted(p.stem for p in FOLDER.glob("*.py"))
    for line in lines:
        name, about = line.split(maxsplit=1)
        assert (FOLDER / f"{name}.py").read_text().startswith(f'"""{about}\n')


def test_one_is_printed_or_copied_for_editing(tmp_path, capsys):
    assert cli.main(["configs", "segnet_camvid"]) == 0
    text = (FOLDER / "segnet_camvid.py").read_text()
    assert capsys.readouterr().out == text
    file = tmp_path / "below" / "mine.py"
    assert cli.main(["configs", "segnet_camvid", str(file)]) == 0
    assert f"--config={file}" in said(capsys)[0]
    assert isinstance(runpy.run_path(str(file))["get_config"](), Config)
    file.write_text("edited")
    assert cli.main(["configs", "demo", str(file)]) == 2
    assert "exists and is left as it is" in said(capsys)[1]
    assert file.read_text() == "edited"
    assert cli.main(["configs", "segnet"]) == 2
    assert "no configuration 'segnet'; accepted are crf_rnn_shapes, " in said(capsys)[1]


def test_a_name_stands_for_its_file():
    from segjax.cli import overrides

    named, of_file = overrides.read("demo"), overrides.read(f"{configs.FOLDER}/demo.py")
    assert config.to_dict(named) == config.to_dict(of_file)
