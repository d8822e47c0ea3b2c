"""segjax configs: lists the shipped configurations, or copies one for editing."""

import argparse
import ast
import pathlib
from collections.abc import Sequence

from segjax import paths
from segjax.cli import arguments as shared

FOLDER = pathlib.Path(__file__).parents[1] / "configs"

EXAMPLES = """\
  segjax configs
  segjax configs segnet_camvid my_segnet.py
  segjax configs segnet_camvid > my_segnet.py
"""


def main(argv: Sequence[str]) -> None:
    """Prints a line about each configuration, prints one, or copies it."""
    arguments = parser().parse_args(argv)
    if arguments.name is None:
        for path in shipped().values():
            about = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()[0]
            print(f"{path.stem:26}{about}")
        return
    if arguments.name not in shipped():
        raise ValueError(
            f"no configuration {arguments.name!r}; accepted are {', '.join(shipped())}"
        )
    text = shipped()[arguments.name].read_text("utf-8")
    if arguments.file is None:
        print(text, end="")
        return
    file = paths.local(arguments.file, "FILE")
    if file.exists():
        raise ValueError(f"{file} exists and is left as it is; give another name")
    from segjax import files

    files.write_text(file, text)
    print(f"{file}: edit it, then write --config={file}")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = shared.parser("configs", EXAMPLES)
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this one [list all]")
    parser.add_argument("file", nargs="?", metavar="FILE", help="copy it into this file")
    return parser


def shipped() -> dict[str, pathlib.Path]:
    """Returns the files of the shipped configurations by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
