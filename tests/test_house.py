"""The import rules of the house, read from the syntax tree."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "segjax"
STANDARD = set(__import__("sys").stdlib_module_names)
NUMERIC = {"jax", "numpy", "chex"}

# Longest prefix of the module's path: what it may import beside the standard library.
RULES = {
    "ops": NUMERIC | {"segjax.ops"},
    "crf": NUMERIC | {"segjax.ops", "segjax.crf"},
    "models": NUMERIC | {"flax", "segjax.ops", "segjax.models"},
    "data": {
        *{"numpy", "grain", "tensorflow_datasets", "cv2", "jax", "absl"},
        *{"segjax.data", "segjax.config", "rich"},
    },
    "losses.py": NUMERIC | {"segjax.ops", "segjax.config", "optax"},
    "metrics.py": NUMERIC | {"segjax.ops", "scipy"},
    "augment.py": NUMERIC | {"segjax.ops", "segjax.config"},
    "optim.py": NUMERIC | {"optax", "segjax.config"},
    "refinement.py": NUMERIC | {"segjax.crf", "segjax.ops", "segjax.config"},
    "state.py": NUMERIC
    | {"flax", "optax"}
    | {f"segjax.{m}" for m in ("config", "optim", "refinement")},
    "steps.py": NUMERIC
    | {"optax"}
    | {
        f"segjax.{m}"
        for m in ("augment", "config", "losses", "metrics", "ops", "refinement", "state")
    },
    "config.py": {"ml_collections", "absl"},
    "checkpoint.py": NUMERIC | {"orbax", "segjax.config", "segjax.state"},
    "pretrained": NUMERIC
    | {"flax", "safetensors", "torch", "segjax"}
    | {f"segjax.{m}" for m in ("config", "data", "models", "pretrained")},
}


def imports(path: pathlib.Path) -> set[str]:
    """Returns the dotted names that a file imports, `segjax` modules at two levels."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "segjax":
                found |= {f"segjax.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return {".".join(n.split(".")[: 2 if n.startswith("segjax") else 1]) for n in found}


def files() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: pathlib.Path):
    relative = str(path.relative_to(PACKAGE))
    matching = [rule for rule in RULES if relative == rule or relative.startswith(rule + "/")]
    if not matching:
        return
    allowed = RULES[max(matching, key=len)] | STANDARD
    assert imports(path) <= allowed, f"{relative} imports {imports(path) - allowed}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_tensorflow_and_torch_only_in_importers(path: pathlib.Path):
    assert "tensorflow" not in imports(path)
    if path.parent.name != "pretrained":
        assert "torch" not in imports(path)


def test_pmap_is_called_in_one_place():
    assert [p.name for p in files() if "jax.pmap" in p.read_text()] == ["steps.py"]


def test_no_drawer_for_odds_and_ends():
    assert not [p for p in files() if p.stem in {"utils", "util", "helpers", "common", "misc"}]
