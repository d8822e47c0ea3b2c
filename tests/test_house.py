"""The walls of the house: who may import whom, and what stands in one place only.

Everything is read from the syntax tree, imports inside functions too. A file without a rule fails,
and so does a permission that no file uses. The faults planted below prove that the walls stand.
"""

import ast
import collections
import functools
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("segjax", "configs", "benchmarks", "docs", "experiments")  # and the scripts of the root

# Of the standard library, what imports by name or can run the code of a file needs a permission.
FREE = set(sys.stdlib_module_names) - {"imp", "importlib", "marshal", "pickle", "runpy", "shelve"}


def allow(outside: str = "", inside: str = "") -> set[str]:
    """Returns permissions: for other packages, and for names of segjax; separated by blanks."""
    return {*outside.split(), *(f"segjax.{name}" for name in inside.split())}


# A file may import what the rules of its path and of the folders above it allow, and nothing else.
# A permission is a module or a name in it, and covers everything inside.
RULES: dict[str, set[str]] = {
    "segjax/ops": allow("jax numpy", "ops"),
    "segjax/crf": allow("jax numpy", "crf"),
    "segjax/models": allow("jax flax", "compiling models ops"),
    "segjax/models/atrous.py": allow("numpy"),
    "segjax/config.py": allow(),
    "segjax/compiling.py": allow("jax"),
    "segjax/devices.py": allow(),
    "segjax/paths.py": allow("etils fsspec gcsfs"),
    "segjax/files.py": allow(inside="paths"),
    "segjax/augment.py": allow("jax", "config ops"),
    "segjax/losses.py": allow("jax chex", "ops"),
    "segjax/metrics.py": allow("jax numpy chex scipy", "ops"),
    "segjax/optim.py": allow("jax optax", "config"),
    "segjax/crf_rnn.py": allow("jax", "config crf ops"),
    "segjax/state.py": allow("jax flax optax", "config crf_rnn optim"),
    "segjax/rows.py": allow("jax flax numpy", "models.atrous.AtrousConv"),
    "segjax/steps.py": allow("jax optax", "augment compiling config crf_rnn losses rows state"),
    "segjax/log.py": allow(
        "jax numpy importlib.metadata rich tensorboardX segjax", "config devices files optim paths"
    ),
    "segjax/profiling.py": allow("jax", "log"),
    "segjax/signals.py": allow("jax", "hosts"),
    "segjax/hosts.py": allow("jax", "log"),
    "segjax/plan.py": allow("jax optax rich", "config state steps"),
    "segjax/topologies.py": allow("jax importlib.util", "config devices plan"),
    "segjax/checkpoint.py": allow("jax numpy orbax", "files log paths state"),
    "segjax/workdir.py": allow(
        "jax numpy",
        "checkpoint config crf crf_rnn data.labels.colour_map files log models paths pretrained "
        "state",
    ),
    "segjax/training.py": allow(
        "jax numpy optax",
        "checkpoint config data evaluate files hosts log paths pretrained profiling report rows "
        "signals state steps workdir",
    ),
    "segjax/data": allow(
        "numpy cv2 PIL pycocotools rich tensorflow_datasets",
        "config data files ops.IGNORE_LABEL paths",
    ),
    "segjax/data/pipeline.py": allow("jax absl grain", "log"),
    "segjax/pretrained": allow("jax numpy flax", "config.Input models pretrained"),
    "segjax/pretrained/files.py": allow("pickle safetensors torch", "files paths"),
    "segjax/predict": allow(
        "jax numpy PIL safetensors",
        "compiling config crf crf_rnn data.builders.cityscapes data.folders data.images "
        "data.labels.Colour data.labels.VOID_COLOUR files models ops paths predict pretrained "
        "state workdir",
    ),
    "segjax/evaluate": allow(
        "jax numpy rich",
        "config crf crf_rnn data evaluate files log losses metrics ops paths predict "
        "rows steps training workdir",
    ),
    "segjax/report": allow(
        "numpy cv2 jinja2 PIL",
        "data.labels.VOID_COLOUR evaluate.result files ops paths report",
    ),
    "segjax/report/evaluation_files.py": allow("jax", "config data.datasets log"),
    "segjax/cli": allow("jax rich segjax"),
    "segjax/cli/main.py": allow("importlib"),
    "segjax/cli/overrides.py": allow("absl ml_collections runpy traceback"),
    "segjax/__main__.py": allow(inside="cli.main"),
    "segjax/__init__.py": allow("importlib", "crf models ops predict.segmenter.load pretrained"),
    "train.py": allow(inside="cli.main"),
    "eval.py": allow(inside="cli.main"),
    "configs": allow(inside="config models"),
    "docs": allow("numpy"),
    "docs/conf.py": allow("docutils latex2mathml segjax sphinx"),
    "docs/figures.py": allow("matplotlib skimage"),
    "docs/make_picture.py": allow("figures matplotlib segjax"),
    "docs/shell.py": allow("IPython subprocess"),
    "experiments": allow("jax numpy flax experiments", "models"),
    "experiments/trial.py": allow(
        "cv2 matplotlib",
        "config crf_rnn data.builders.camvid data.images evaluate files log "
        "models.pspnet predict.protocols state training workdir",
    ),
    "experiments/accelerator.py": allow("importlib", "files pretrained.files training workdir"),
    "experiments/crf_sharpens.py": allow(inside="config crf evaluate workdir"),
    "experiments/decoders.py": allow(inside="ops"),
    "experiments/imagenet_start.py": allow(inside="config"),
    "experiments/large_rates.py": allow(inside="workdir.read"),
    "experiments/output_stride.py": allow(inside="predict.protocols"),
    "experiments/pyramid_bins.py": allow(inside="ops"),
    "benchmarks": allow(
        "crf faults jax numpy flax cv2 importlib models PIL pydensecrf rich safetensors segjax "
        "skimage sklearn torch torchvision",
    ),
}

# What stands in one place, and the places that have a reason to be another.
MAPS = {
    "segjax/config.py": 4,
    "segjax/steps.py": 3,
}  # how often they are named: field, choices, check; calls
WRITERS = {
    "segjax/files.py": "the one atomic writer",
    "segjax/log.py": "adds lines to metrics.csv",
    "segjax/workdir.py": "the lock of a run",
    "docs/architecture.py": "the list of files in a page",
    "segjax/checkpoint.py": "renames a damaged checkpoint",
    "segjax/data/datasets.py": "the lock of a data set; its folder is renamed when complete",
}
WALKS = {
    "docs/architecture.py": "the files of the package",
    "segjax/checkpoint.py": "the steps of a run",
    "segjax/log.py": "the events of a run in a bucket",
    "segjax/cli/compilation_cache.py": "its own folder",
    "segjax/cli/configs.py": "the shipped configurations",
    "segjax/report/__init__.py": "the evaluations and pictures of a run",
    "segjax/files.py": "the copy of a folder in a bucket",
    "segjax/data/folders.py": "the one walk of a folder of data",
}
DRAWERS = {"utils", "util", "helpers", "common", "misc"}


@functools.cache
def tree() -> dict[str, str]:
    """Returns the text of every file that the walls hold, by its path from the root."""
    paths = [*ROOT.glob("*.py"), *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))]
    linked = ROOT / "segjax" / "configs"
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for path in sorted(paths)
        if linked not in path.parents and "_build" not in path.parts
    }


@functools.cache
def references(source: str) -> frozenset[str]:
    """Returns the dotted names that a file takes from its imports.

    `from segjax import steps` and then `steps.parallel(...)` gives "segjax.steps.parallel"; an
    import that is used as it is, or not at all, gives its own name.
    """
    module = ast.parse(source)
    bound: dict[str, set[str]] = {}  # a file may bind a name twice, in two functions
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    bound.setdefault(alias.asname, set()).add(alias.name)
                else:
                    names.add(alias.name)
                    root = alias.name.split(".")[0]
                    bound.setdefault(root, set()).add(root)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            for alias in node.names:
                whole = (
                    origin if alias.name == "*" else f"{origin}.{alias.name}".replace("...", "..")
                )
                bound.setdefault(alias.asname or alias.name, set()).add(whole)
        elif isinstance(node, ast.Call) and _last(node.func) in ("__import__", "import_module"):
            names.add("importlib")
            if node.args and isinstance(node.args[0], ast.Constant):
                names.add(str(node.args[0].value))
    used: set[str] = set()
    for node in ast.walk(module):
        for child in ast.iter_child_nodes(node):
            if isinstance(node, ast.Attribute) and isinstance(child, ast.Name | ast.Attribute):
                continue  # a part of a longer chain
            root, dotted = _chain(child)
            for origin in bound.get(root, ()):
                used.add(root)
                names.add(origin + dotted)
    return frozenset(names.union(*(bound[name] for name in bound.keys() - used)))


def _chain(node: ast.AST) -> tuple[str, str]:
    """Returns ("a", ".b.c") of the expression a.b.c, ("", "") of what is no such chain."""
    dotted = ""
    while isinstance(node, ast.Attribute):
        node, dotted = node.value, f".{node.attr}{dotted}"
    return (node.id, dotted) if isinstance(node, ast.Name) else ("", "")


def _last(node: ast.AST) -> str:
    """Returns "c" of a.b.c and of (...).c."""
    return getattr(node, "attr", getattr(node, "id", ""))


def covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def governs(rule: str, path: str) -> bool:
    return path == rule or path.startswith(rule + "/")


def faults(sources: dict[str, str]) -> Iterator[str]:
    """Yields what is wrong with a tree of files, a line each."""
    needed: dict[str, set[str]] = {rule: set() for rule in RULES}
    for path, source in sources.items():
        rules = [rule for rule in RULES if governs(rule, path)]
        if not rules:
            yield f"{path} has no rule"
        allowed = set().union(*(RULES[rule] for rule in rules))
        for name in sorted(references(source)):
            if any(covers(p, name) for p in allowed):
                for rule in rules:
                    needed[rule] |= {p for p in RULES[rule] if covers(p, name)}
            elif name.split(".")[0] not in FREE | {"__future__"}:
                yield f"{path} imports {name}"
        if pathlib.PurePath(path).stem in DRAWERS:
            yield f"{path} is a drawer for odds and ends"
        if not path.startswith("benchmarks/"):
            yield from (f"{path} {what}" for what in sorted(alone(source, path)))
    for rule, permissions in RULES.items():
        if not any(governs(rule, path) for path in sources):
            yield f"the rule of {rule} is for no file"
        for name in sorted(permissions - needed[rule]):
            yield f"the rule of {rule} allows {name}, which no file imports"
    maps = [path for path, source in sources.items() for _ in range(count_maps(source))]
    if collections.Counter(maps) != MAPS:
        yield f"a function is mapped over devices in {maps}"
    for place in sorted({*WRITERS, *WALKS} - sources.keys()):
        yield f"{place} has an exception and does not exist"


@functools.cache
def count_maps(source: str) -> int:
    """Returns how often code names pmap or shard_map, imported, as an attribute or as a text."""
    count = 0
    for node in ast.walk(ast.parse(source)):
        names = [getattr(node, field, None) for field in ("id", "attr", "name", "value")]
        count += any(isinstance(n, str) and n in ("pmap", "shard_map") for n in names)
    return count


@functools.cache
def alone(source: str, path: str) -> set[str]:
    """Returns what a file does that one place of the house does for all."""
    found = set()
    module = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(module)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        name, (root, _) = _last(node.func), _chain(node.func)
        method = isinstance(node.func, ast.Attribute) and root not in imported
        mode = node.args[0 if isinstance(node.func, ast.Attribute) else 1 :][:1]
        mode += [k.value for k in node.keywords if k.arg == "mode"]
        texts = [str(m.value) for m in mode if isinstance(m, ast.Constant)]
        opens = name == "open" and any(set(t) & set("wax+") and len(t) < 4 for t in texts)
        moves = name in ("rename", "replace") and len(node.args) == 1 and not node.keywords
        if opens or (method and (moves or name in ("write_text", "write_bytes"))):
            found.add("writes")
        if method and name in ("glob", "rglob", "iterdir", "walk"):
            found.add("walks")
    for name in references(source):
        if covers("tempfile", name) or name in (
            *(
                "os.replace",
                "os.rename",
                "os.open",
                "shutil.move",
                "shutil.copy",
                "shutil.copyfile",
            ),
            *("cv2.imwrite", "jax.numpy.save", "numpy.ndarray.tofile"),
        ):
            found.add("writes")
        if covers("glob", name) or name in ("os.walk", "os.scandir", "os.listdir"):
            found.add("walks")
    return {
        f"{what} by itself"
        for what in found
        if path not in {"writes": WRITERS, "walks": WALKS}[what]
    }


def test_the_walls_stand():
    assert list(faults(tree())) == []


PLANTED = {
    # path: (lines added to the file, what the fault says)
    "orbax": ("segjax/log.py", "import orbax.checkpoint as ocp", "imports orbax.checkpoint"),
    "grain": ("segjax/augment.py", "from grain import python", "imports grain.python"),
    "flax": ("segjax/losses.py", "import flax", "imports flax"),
    "cli": ("segjax/training.py", "from segjax.cli import main", "imports segjax.cli.main"),
    "cli in predict": ("segjax/predict/tiles.py", "import segjax.cli", "imports segjax.cli"),
    "tensorflow": ("segjax/data/images.py", "import tensorflow as tf", "imports tensorflow"),
    "torch": ("segjax/pretrained/sources.py", "from torch import nn", "imports torch.nn"),
    "in a function": (
        "segjax/ops/pool.py",
        "def f():\n    from segjax import state\n    return state.forward",
        "imports segjax.state.forward",
    ),
    "under another name": (
        "segjax/metrics.py",
        "import segjax as s\ns.cli.main",
        "segjax.cli.main",
    ),
    "for types": (
        "segjax/config.py",
        "import typing\nif typing.TYPE_CHECKING:\n    from segjax import models",
        "imports segjax.models",
    ),
    "__import__": ("segjax/optim.py", "x = __import__('tensorflow').io", "imports tensorflow"),
    "import_module": (
        "segjax/steps.py",
        "import importlib as i\nx = i.import_module('segjax.cli.main')",
        "imports segjax.cli.main",
    ),
    "import_module of a variable": (
        "segjax/steps.py",
        "from importlib import import_module as load\nx = load(chr(97))",
        "imports importlib.import_module",
    ),
    "relative": ("segjax/crf/exact.py", "from .. import cli", "imports ..cli"),
    "star": ("segjax/losses.py", "from optax import *", "imports optax"),
    "pickle": ("segjax/files.py", "import pickle", "imports pickle"),
    "second pmap": ("train.py", "import jax\nx = jax.pmap(len)", "mapped over devices in"),
    "pmap by its name": ("segjax/plan.py", "from jax import pmap", "mapped over devices in"),
    "pmap renamed": ("segjax/plan.py", "from jax import pmap as p\np(len)", "mapped over devices"),
    "pmap by getattr": ("eval.py", "x = getattr(jax, 'pmap')", "mapped over devices in"),
    "pmap in a benchmark": ("benchmarks/crf.py", "jax.pmap(len)", "mapped over devices in"),
    "shard_map": ("segjax/steps.py", "y = jax.shard_map", "mapped over devices in"),
    "experiments in segjax": (
        "segjax/training.py",
        "from experiments import trial",
        "imports experiments.trial",
    ),
    "no rule": ("segjax/new.py", "", "segjax/new.py has no rule"),
    "no rule in the root": ("new.py", "", "new.py has no rule"),
    "a drawer": ("segjax/ops/utils.py", "", "segjax/ops/utils.py is a drawer"),
    "writes by open": ("segjax/optim.py", "open('a', 'w').write('b')", "writes by itself"),
    "writes by Path.open": ("segjax/optim.py", "x.open(mode='ab')", "writes by itself"),
    "writes by write_text": ("segjax/report/charts.py", "x.write_text('b')", "writes by itself"),
    "writes by replace": ("segjax/report/charts.py", "x.replace(y)", "writes by itself"),
    "writes by os": ("segjax/optim.py", "import os\nos.replace('a', 'b')", "writes by itself"),
    "writes by tempfile": ("segjax/plan.py", "import tempfile", "writes by itself"),
    "walks by rglob": ("segjax/predict/images.py", "x.rglob('*')", "walks by itself"),
    "walks by os.walk": ("segjax/predict/images.py", "import os\nos.walk('.')", "walks by itself"),
    "walks by glob": ("segjax/predict/images.py", "from glob import glob", "walks by itself"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_caught(fault: str):
    path, lines, said = PLANTED[fault]
    planted = {**tree(), path: tree().get(path, "") + "\n" + lines + "\n"}
    new = set(faults(planted)) - set(faults(tree()))
    assert any(said in line for line in new), new


def test_what_is_not_needed_is_a_fault():
    without = {p: text for p, text in tree().items() if p != "segjax/checkpoint.py"}
    found = list(faults(without))
    assert "the rule of segjax/checkpoint.py is for no file" in found
    assert "segjax/checkpoint.py has an exception and does not exist" in found
    bare = {**tree(), "segjax/checkpoint.py": ""}
    stale = "the rule of segjax/checkpoint.py allows orbax, which no file imports"
    assert stale in set(faults(bare))


def test_ordinary_code_is_no_fault():
    lines = (
        "import dataclasses\n'a-b'.replace('-', '+')\ndataclasses.replace(1, a=2)\n"
        "open('a')\nopen('a', 'rb')\nimport ast\nast.walk(1)\n'''jax.pmap in a docstring'''\n"
    )
    path = "segjax/optim.py"
    planted = {**tree(), path: tree()[path] + "\n" + lines}
    assert set(faults(planted)) == set(faults(tree()))
