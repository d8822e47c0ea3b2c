"""The command segjax as a whole: its commands, their help, how they end."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import jax
import pytest

import segjax
from segjax.cli import arguments
from segjax.cli import main as cli
from tests.cli.runs import picture, said

WAITING = """
import sys, time, types
from segjax.cli import main as cli

def wait(_):
    print("ready", flush=True)
    time.sleep(60)

sys.modules["segjax.cli.configs"] = types.SimpleNamespace(main=wait)
sys.exit(cli.main(["configs"]))
"""

ENVIRONMENT = os.environ | {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PLATFORMS": "cpu",
}


FULL = "RESOURCE_EXHAUSTED"


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} ", printed, re.M)
    assert cli.main([]) == 2
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError(f"{FULL}: 9 GB")])
@pytest.mark.parametrize("name", ["train", "eval", "predict"])
def test_want_of_memory_is_one_message(name, error, monkeypatch, capsys):
    def main(_):
        raise error

    monkeypatch.setitem(sys.modules, f"segjax.cli.{name}", types.SimpleNamespace(main=main))
    assert cli.main([name]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"segjax {name}: out of memory: {str(error) or 'this machine'}")
    assert ("batch_size" in said) == (name != "predict")


def test_other_faults_of_a_device_are_not_hidden(monkeypatch):
    def main(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: lost")

    monkeypatch.setitem(sys.modules, "segjax.cli.eval", types.SimpleNamespace(main=main))
    with pytest.raises(jax.errors.JaxRuntimeError, match="lost"):
        cli.main(["eval"])


@pytest.mark.parametrize("steps", ["5", "0:5", "7:5", "a:b", ":", "1:2:3", "-1:2"])
def test_a_wrong_range_of_steps_is_one_message(steps, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--config=demo", "--workdir=run", f"--profile={steps}"])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{steps} is no range of steps; write the first and the last, --profile=101:105" in last


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)])
def test_help_has_examples_and_imports_nothing_slow(command):
    code = (
        "import sys\n"
        "from segjax.cli import main as cli\n"
        "try: code = cli.main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "slow = {'jax', 'numpy', 'tensorflow_datasets'} & set(sys.modules)\n"
        "sys.exit(code or (3 if slow else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: segjax {' '.join(command)}".strip() in done.stdout
    if command:
        assert f"examples:\n  segjax {command[0]}" in done.stdout


def test_version_and_the_module(capsys):
    assert cli.main(["--version"]) == 0
    printed = said(capsys)[0]
    assert re.fullmatch(rf"segjax {segjax.__version__}, jax [\d.]+\S*, Python 3\S+\n", printed)
    done = subprocess.run(
        [sys.executable, "-m", "segjax", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, printed)


def test_a_place_among_hosts_without_hosts_is_refused():
    parser = arguments.parser("train", "")
    arguments.hosts(parser)
    with arguments.joined(parser.parse_args([])):
        pass
    with pytest.raises(ValueError, match="--process is for several hosts; write --distributed"):
        arguments.joined(parser.parse_args(["--process=0"]))


def test_unknown_words_are_refused(capsys):
    assert cli.main(["fly"]) == 2
    assert "no command 'fly'; accepted are " in said(capsys)[1]
    for words in (
        *(["predict", "a", "b", "--bogus"], ["plan", "--config=a", "--bogus"]),
        ["report", "a", "--config.x=1"],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 2
        assert words[-1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, cli.INTERRUPTED), (signal.SIGTERM, cli.TERMINATED)]
)
def test_a_signal_ends_with_its_exit_code(number, code):
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(60) == code


def test_the_installed_command_runs(run, tmp_path):
    path = picture(tmp_path / "a.png")
    program = pathlib.Path(sys.executable).with_name("segjax")
    if not program.exists():
        pytest.skip("the package is not installed")
    done = subprocess.run(
        [program, "predict", run, path, "--out", tmp_path / "out"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.png").exists()


def test_a_field_without_its_equals_sign_is_explained(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--config=demo", "--workdir=w", "--config.optim.lr", "0.02"])
    expected = "unrecognized arguments: 0.02; write --config.optim.lr=0.02"
    assert expected in " ".join(capsys.readouterr().err.split())


def test_a_device_that_is_missing_is_no_fault_of_the_weights(run, tmp_path):
    """In a process of its own: JAX looks for its devices once."""
    command = [
        sys.executable,
        "-m",
        "segjax",
        "predict",
        str(run),
        str(picture(tmp_path / "a.png")),
    ]
    environment = os.environ | {"JAX_PLATFORMS": "rocm"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == cli.MISTAKE, done.stderr
    assert "segjax predict: JAX finds no device: " in done.stderr
    assert "JAX_PLATFORMS is 'rocm'; leave it out" in done.stderr
    assert "Traceback" not in done.stderr and "describes" not in done.stderr
