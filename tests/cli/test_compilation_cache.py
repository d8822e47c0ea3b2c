"""The cache of compiled programs."""

import os
import pathlib
import subprocess
import sys

import pytest

from segjax.cli import compilation_cache

COMMAND = """
import sys, types
from segjax.cli import main as cli

def command(words):
    import jax
    print(len(words), jax.jit(lambda x: (x @ x.T).sum())(jax.numpy.ones((3, 4))))

sys.modules["segjax.cli.configs"] = types.SimpleNamespace(main=command)
sys.exit(cli.main(["configs", *sys.argv[1:]]))
"""


def compiled(tmp_path, words=(), **variables):
    """The programs that a command left in the user's cache."""
    unset = {"JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"}
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment |= {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMAND, *words],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "0 36.0\n"), done.stderr
    return sorted(p for p in tmp_path.rglob("*-cache"))


def test_programs_are_kept_for_the_next_command(tmp_path):
    first = compiled(tmp_path)
    assert first and all(p.is_relative_to(tmp_path / "segjax" / "compiled") for p in first)
    times = [p.stat().st_mtime_ns for p in first]
    assert compiled(tmp_path) == first  # found again, not written again
    assert [p.stat().st_mtime_ns for p in first] == times


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (["--no-compilation-cache"], {}),
        ([], {"JAX_ENABLE_COMPILATION_CACHE": "false"}),
        ([], {"XDG_CACHE_HOME": "/dev/null/none"}),
    ],
)
def test_nothing_is_kept_where_it_is_turned_off_or_cannot_be_written(tmp_path, words, variables):
    assert not compiled(tmp_path, words, **variables)


def test_each_processor_model_has_its_folder(monkeypatch):
    here = compilation_cache.folder_of({"XDG_CACHE_HOME": "/cache"})
    assert here.parent == pathlib.Path("/cache/segjax/compiled")
    monkeypatch.setattr("platform.machine", lambda: "other")
    assert compilation_cache.folder_of({"XDG_CACHE_HOME": "/cache"}) != here
    assert compilation_cache.folder_of({}).is_relative_to(pathlib.Path.home() / ".cache")


def test_the_oldest_programs_go_first(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    compilation_cache.drop_oldest(tmp_path, largest=25)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
