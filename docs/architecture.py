"""Writes the list of files in ARCHITECTURE.md anew: python docs/architecture.py

Each line is the first sentence of a module's docstring. A test compares the two.
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
START, END = "<!-- files: by docs/architecture.py -->\n", "<!-- end of files -->"
ORDER = ("", "ops", "models", "crf", "data", "data/builders", "pretrained", "predict")
ORDER += ("evaluate", "report", "cli")


def first_sentence(path: pathlib.Path) -> str:
    """Returns the first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    line = " ".join(text.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[\w`)])\.(?= |$)", line)[0]
    return sentence.replace("|", r"\|")


def listing() -> str:
    """Returns a table of files for each folder of the package."""
    package = ROOT / "segjax"
    folders: dict[str, list[pathlib.Path]] = {}
    for path in sorted(package.rglob("*.py")):
        if package / "configs" not in path.parents:
            folders.setdefault(str(path.parent.relative_to(package)).strip("."), []).append(path)
    unknown = folders.keys() - set(ORDER)
    text = ""
    for folder in (*(f for f in ORDER if f in folders), *sorted(unknown)):
        text += f"\n### segjax/{folder}\n\n| file | what it is |\n|---|---|\n".replace("/\n", "\n")
        for path in folders[folder]:
            text += f"| [{path.name}](../{path.relative_to(ROOT)}) | {first_sentence(path)} |\n"
    return text + "\n"


def rewritten(page: str) -> str:
    """Returns the page with the list of the files as they are now."""
    before, rest = page.split(START)
    return before + START + listing() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
