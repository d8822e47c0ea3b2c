"""The pages that speak of files: what they list is there, and what is there is listed."""

import ast
import importlib.util
import pathlib
import re

import pytest

import segjax

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    *(p for p in ROOT.glob("*.md")),
    *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
]


def architecture():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs/architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_architecture_lists_every_file_with_its_first_sentence():
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    assert architecture().rewritten(page) == page, "run python docs/architecture.py"
    listed = re.findall(r"^\| \[.*?\]\(\.\./(.*?)\)", page, re.M)
    there = {str(p.relative_to(ROOT)) for p in (ROOT / "segjax").rglob("*.py")}
    assert set(listed) == {p for p in there if not p.startswith("segjax/configs/")}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: pathlib.Path):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file = target.split("#")[0]
        if file and not re.match(r"[a-z]+:", file):
            assert (page.parent / file).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_are_named_exist(page: pathlib.Path):
    folders = "segjax|configs|tests|docs|benchmarks|experiments"
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.\w+)`", page.read_text()):
        assert "NAME" in name or (ROOT / name).exists(), f"{page.name}: {name}"


def test_addresses_of_torchvision_are_its_own():
    if not all(map(importlib.util.find_spec, ("torch", "torchvision"))):
        pytest.skip("torchvision knows its addresses")
    from tests.reference import torchvision_import

    models = torchvision_import.torchvision().models
    weights = [w for name in models.list_models() for w in models.get_model_weights(name)]
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"https://download\.pytorch\.org/models/[\w.-]+\.pth", text))
    assert named and named <= {w.url for w in weights}


def test_the_list_of_fast_tests_exists():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    for name in re.search(r"^FAST := (.*)$", makefile, re.M)[1].split():
        assert (ROOT / name).exists(), name


def test_the_version_is_written_once():
    changes = (ROOT / "CHANGELOG.md").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {segjax.__version__}" in citation
    assert f"## {segjax.__version__}" in changes


def test_messages_of_the_page_of_troubles_are_in_the_code():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "segjax").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    code = "\n".join(node.value for node in nodes if isinstance(node.value, str))
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| `(.*?)`", page, re.M)
    assert messages
    for message in messages:
        # Words with digits, braces or a path are values; what is between them is the code's.
        for words in re.split(r"\S*[\d{}/]\S*|\.\.\.|\(host\)", message):
            if len(words.split()) > 1:
                assert words.strip() in code, f"{message!r}: {words.strip()!r} is no longer said"
