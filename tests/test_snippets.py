"""Every snippet that a reader may copy runs: of the README, of docs/ and of docstrings.

Python snippets run one by one in a fresh process, each with a segjax that nothing has imported yet;
examples with >>> also give what they say. Of shell snippets, commands and options exist.
"""

import argparse
import ast
import configparser
import dataclasses
import doctest
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from PIL import Image

from segjax import config, models, pretrained, state
from segjax.cli import arguments, configs, main, overrides
from segjax.data.labels import colour_map
from tests.reference import fill

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("compiled_once")
PYTHON, SHELL = ("python", "py"), ("sh", "bash", "shell", "console")

# Names that a snippet takes as given, by the beginning of where it stands.
GIVEN = {
    "segjax/crf/": """
        import numpy as np
        import segjax
        logits, image = np.zeros((24, 32, 3), np.float32), np.zeros((24, 32, 3), np.uint8)
        """,
    "segjax/predict/": """
        import segjax
        seg = segjax.load("runs/segnet")
        image = "street.jpg"
        """,
    "segjax/predict/protocols.py": """
        import jax
        import segjax
        from segjax.predict import protocols
        seg = segjax.load("runs/segnet")
        config, variables, size = seg.config, seg.variables, jax.numpy.array([[48, 64]])
        image = jax.random.uniform(jax.random.key(0), (1, 48, 64, 3)) * 255
        """,
    "segjax/pretrained/": """
        import segjax
        from segjax import pretrained
        seg = segjax.load("runs/segnet")
        model, variables, others = seg.config.model, seg.variables, seg.variables
        """,
}
NOT_RUN: dict[str, str] = {}  # the same key: why its snippets are only compiled


@dataclasses.dataclass(frozen=True)
class Snippet:
    """A piece of code, and where it stands."""

    where: str  # "README.md:30", "segjax/ops/pool.py:max_unpool"
    code: str
    language: str  # "python", "doctest" or "shell"

    def of(self, table: dict[str, str]) -> str:
        """Returns what a table says of this snippet, by the longest key."""
        keys = [key for key in table if self.where.startswith(key)]
        return textwrap.dedent(table[max(keys, key=len)]) if keys else ""


def indented(text: str) -> Iterator[str]:
    """Yields the blocks of a text that are indented by four or more, after a blank line."""
    block: list[str] = []
    blank = True
    for line in [*text.splitlines(), "end"]:
        if block and (not line.strip() or line.startswith("    ")):
            block.append(line)
            continue
        if block:
            yield textwrap.dedent("\n".join(block)).strip("\n")
            block = []
        elif blank and line.startswith("    ") and line.strip():
            block = [line]
        blank = not line.strip()


def fenced(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields line, language and code of the fences of a Markdown text."""
    for match in re.finditer(r"^( *)```([^\n`]*)\n(.*?)^\1```", text, re.M | re.S):
        line = text.count("\n", 0, match.start()) + 2
        yield line, match[2].strip(), textwrap.dedent(match[3])


def of_pages() -> Iterator[Snippet]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in (p for p in pages if p.is_file() and "_build" not in p.parts):
        for line, language, code in fenced(page.read_text()):
            where = f"{page.relative_to(ROOT)}:{line}"
            if language in PYTHON:
                yield Snippet(where, code, "python")
            elif language in SHELL:
                yield Snippet(where, code, "shell")


def of_docstrings() -> Iterator[Snippet]:
    for path in sorted((ROOT / "segjax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            text = ast.get_docstring(node)
            name = getattr(node, "name", "")
            where = f"{path.relative_to(ROOT)}:{name}"
            if not text or re.match("_[^_]", name):
                continue
            if ">>>" in text:
                yield Snippet(where, text, "doctest")
            for block in indented(text):
                first = block.split()[0]
                if first in ("segjax", "python", "pip", "make"):
                    yield Snippet(where, block, "shell")
                elif ">>>" not in block and (is_python(block) or "segjax." in block):
                    yield Snippet(where, block, "python")


def is_python(text: str) -> bool:
    """Returns whether a text parses and does something: a diagram does not."""
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return False
    kinds = ast.Call | ast.Import | ast.ImportFrom | ast.Assign
    return any(isinstance(node, kinds) for statement in body for node in ast.walk(statement))


SNIPPETS = [*of_pages(), *of_docstrings()]
CODE = [s for s in SNIPPETS if s.language in ("python", "doctest")]


# --- Python --------------------------------------------------------------------------------------


def run_all(file: str) -> None:
    """Runs the snippets of a JSON file, each with no part of segjax imported; prints the errors."""
    errors = []
    for language, where, given, code in json.loads(pathlib.Path(file).read_text()):
        for name in [n for n in sys.modules if n.split(".")[0] == "segjax"]:
            del sys.modules[name]
        error = ""
        try:
            names: dict[str, object] = {"__name__": "snippet"}
            exec(compile(given, f"given for {where}", "exec"), names)
            if language == "doctest":
                path = where.split(":")[0].removesuffix(".py").removesuffix("/__init__")
                names.update(vars(importlib.import_module(path.replace("/", "."))))
                test = doctest.DocTestParser().get_doctest(code, names, where, where, 0)
                said: list[str] = []
                runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
                if runner.run(test, out=said.append).failed:
                    error = "".join(said)
            else:
                exec(compile(code, where, "exec"), names)
        except BaseException:
            error = traceback.format_exc()
        errors.append(error)
    print(json.dumps(errors))


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> dict[Snippet, str]:
    """Runs all snippets in one process, in a folder with a small run and a picture."""
    folder = tmp_path_factory.mktemp("snippets")
    model = models.SegNetBasic(num_classes=4, width=4)
    cfg = config.Config(model=model, data=config.Data(canvas=(48, 64)))
    metadata = {
        "config": config.to_dict(cfg),
        "dataset": "streets",
        "classes": ["sky", "road", "car", "tree"],
        "palette": [list(colour) for colour in colour_map(4)],
    }
    variables = state.init_variables(model, jax.random.key(0), (48, 64))
    for name in ("segnet", "a"):
        pretrained.save_weights(folder / "runs" / name, variables, metadata)
    weights = (folder / "runs" / "a" / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights)
    picture = Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 20).convert("RGB")
    for name in ("street.jpg", "photo.jpg"):
        picture.save(folder / name)
    np.save(folder / "scores.npy", np.zeros((48, 64, 3), np.float32))
    run = [s for s in CODE if not s.of(NOT_RUN)]
    tasks = [(s.language, s.where, s.of(GIVEN), s.code) for s in run]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    command = [sys.executable, __file__, str(folder / "tasks.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return dict(zip(run, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("snippet", CODE, ids=lambda s: s.where)
def test_snippet_runs(snippet: Snippet, errors):
    if why := snippet.of(NOT_RUN):
        compile(snippet.code, snippet.where, "exec")
        pytest.skip(f"compiled only: {why}")
    assert not errors[snippet], errors[snippet]


def test_snippets_are_found():
    names = {s.where.split(":")[0] for s in CODE}
    assert {"segjax/__init__.py", "segjax/crf/__init__.py", "segjax/models/atrous.py"} <= names
    text = "Says:\n\n    x = f(1)\n\n    y = 2\n\nArgs:\n  a: of\n    more.\n\n    z"
    assert list(indented(text)) == ["x = f(1)\n\ny = 2", "z"]
    assert list(fenced("a\n```python\nx\n```\n")) == [(3, "python", "x\n")]


def test_parts_of_the_package_need_no_import():
    code = "import sys, segjax; assert 'jax' not in sys.modules; print(*dir(segjax))"
    code += "\nsegjax.crf.PRESETS, segjax.ops.resize, segjax.models.SegNet, segjax.pretrained.load"
    code += "\nsegjax.load"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert {"crf", "load", "models", "ops", "pretrained"} <= set(done.stdout.split())


# --- Shell ---------------------------------------------------------------------------------------

COMMANDS = [s for s in SNIPPETS if s.language == "shell"]


@pytest.mark.parametrize("snippet", COMMANDS, ids=lambda s: s.where)
def test_commands_and_options_exist(snippet: Snippet):
    for line in snippet.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            check(words)


def check(words: list[str]) -> None:
    """Checks a command line of ours; of other programs, nothing."""
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {w for w in rest if "=" not in w} <= set(targets), words
    elif program == "pip":
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            assert set(extras.split(",")) <= set(setup["options.extras_require"]), words
    elif program.startswith("python") and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file(), words
    elif program.startswith("python") and rest[0] == "-m" and "segjax" in rest[1]:
        assert importlib.util.find_spec(rest[1]), words
    elif program == "segjax" and not rest[0].startswith("-"):
        assert rest[0] in arguments.COMMANDS, words
        command = importlib.import_module(f"segjax.cli.{rest[0].replace('-', '_')}")
        known = options(command)
        given = {w.split("=")[0] for w in rest[1:] if w.startswith("--")}
        assert {w for w in given if not w.startswith("--config.")} <= known | {"--config"}, words
    changes = [w for w in rest if w.startswith("--config.")]
    named = [w for w in rest if w.startswith("--config=")]
    if changes:
        # A configuration of the reader's own, mine.py, has the fields of any other.
        name = named[0].split("=")[1] if named else "demo"
        known = name in configs.shipped() or (ROOT / name).is_file()
        overrides.read(str(ROOT / name) if "/" in name else name if known else "demo", changes)


def options(command) -> set[str]:
    parser: argparse.ArgumentParser = command.parser()
    return {option for action in parser._actions for option in action.option_strings}


# --- The README's recipes --------------------------------------------------------------------


def recipe(number: int) -> list[list[str]]:
    """Returns the commands of a recipe of the README, as words."""
    section = (ROOT / "README.md").read_text().split("## Four recipes")[1].split("\n## ")[0]
    code = [code for _, language, code in fenced(section) if language == "sh"][number]
    assert len(code.splitlines()) <= 6
    return [shlex.split(line) for line in code.splitlines()]


def run_recipe(commands: list[list[str]], folder: pathlib.Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    for program, *words in commands:
        if program != "curl":
            assert program == "segjax"
            if words[0] == "train":
                words += ["--config.train.steps=2", "--config.data.cache=cache"]
            assert main.main(words) == 0, words


def test_recipe_street_scene_ends_in_a_picture(tmp_path, monkeypatch):
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 20).convert("RGB").save(
        tmp_path / "street.jpg"
    )
    run_recipe(recipe(0), tmp_path, monkeypatch)
    assert list((tmp_path / "predictions").rglob("*overlay*"))


def test_recipe_own_folder_ends_in_a_picture(tmp_path, monkeypatch):
    for name in ("images", "masks"):
        (tmp_path / "DATA" / name).mkdir(parents=True)
    for index in range(12):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (32, 48, 3), np.uint8)
        mask = np.repeat(np.arange(3, dtype=np.uint8), 16)[None].repeat(32, 0)
        Image.fromarray(image).save(tmp_path / "DATA" / "images" / f"{index}.png")
        Image.fromarray(mask).save(tmp_path / "DATA" / "masks" / f"{index}.png")
    run_recipe(recipe(1), tmp_path, monkeypatch)
    assert list((tmp_path / "predictions").rglob("*overlay*"))


def test_recipe_published_weights_end_in_a_picture(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="writes the published file")
    commands = recipe(2)
    file = commands[0][-1].split("/")[-1]
    with np.load(ROOT / "tests" / "golden" / "torchvision_deeplabv3.npz") as stored:
        shapes = json.loads(str(stored["shapes"]))
    weights = fill.weights({name: tuple(shape) for name, shape in shapes.items()}, "recipe")
    torch.save({name: torch.tensor(array) for name, array in weights.items()}, tmp_path / file)
    Image.effect_mandelbrot((65, 65), (-2, -1, 1, 1), 20).convert("RGB").save(
        tmp_path / "photo.jpg"
    )
    run_recipe(commands, tmp_path, monkeypatch)
    assert list((tmp_path / "predictions").rglob("*overlay*"))


if __name__ == "__main__":
    run_all(sys.argv[1])
