"""segjax check: what is in the folder of a data set, and what to write to train on it."""

import argparse
import functools
import pathlib
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segjax.cli import arguments as shared

if TYPE_CHECKING:
    from segjax import config as config_lib
    from segjax.data import datasets

NAMES = ("ade20k", "camvid", "cityscapes", "folder", "voc_segmentation")

EXAMPLES = """\
  segjax check CamVid
  segjax check my_data --name folder --label-map "{0:0,255:1}"
"""


def main(argv: Sequence[str]) -> None:
    """Reads every file of a data set, prints what there is and what to write for training."""
    arguments = parser().parse_args(argv)
    from rich.console import Console

    from segjax import config as config_lib
    from segjax import paths
    from segjax.data import datasets

    given = paths.of(arguments.data)
    name = arguments.name or layout(datasets.lists_of(given))
    data = config_lib.Data(
        name=name,
        dir="" if name == arguments.data else str(given),
        label_map=arguments.label_map,
        options=arguments.options,
    )
    found = datasets.check(data, arguments.splits)
    console = Console()
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    console.print(found.table())
    for line in found.skipped:
        say(line)
    weights = ",".join(f"{weight:.4f}" for weight in found.class_weights)
    say(f"median-frequency class weights: {weights}")
    say(f"every file of {', '.join(found.summaries)} can be used; to train on it, paste:\n")
    say(command(data, found))


def command(data: "config_lib.Data", found: "datasets.Checked") -> str:
    """Returns the command that trains on a data set as it was checked.

    It names what `own_folder` does not take from the data by itself.
    """
    values = {
        "name": data.name,
        "dir": data.dir,
        "label_map": data.label_map,
        "options": data.options,
        "train_split": next(iter(found.summaries)),
        "val_split": list(found.summaries)[-1],
    }
    usual = {"name": "folder", "train_split": "train", "val_split": "val"}
    changes = {name: value for name, value in values.items() if value != usual.get(name, "")}
    words = ["segjax train --config=own_folder"]
    words += [shlex.quote(f"--config.data.{name}={value}") for name, value in changes.items()]
    return " ".join([*words, "--workdir=runs/own"])


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = shared.parser("check", EXAMPLES)
    parser.add_argument(
        "data", metavar="DATA", help="its folder; or shapes, the data set that is built in"
    )
    parser.add_argument(
        "--name",
        default="",
        choices=NAMES,
        help="of its layout [told by its folders]",
    )
    parser.add_argument(
        "--splits", nargs="+", default=["train", "val"], metavar="SPLIT", help="[train val]"
    )
    parser.add_argument("--label-map", default="", help='changes ids, "{0:0,255:1}"')
    parser.add_argument("--options", default="", help='of the layout, "val_every=5"')
    return parser


def layout(folder: pathlib.Path) -> str:
    """Returns the name of the data set in a folder, told by what is in it."""
    if folder.name == "shapes" and not folder.exists():
        return "shapes"
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give that of a data set, or shapes")
    from segjax.data import datasets

    return datasets.recognise(folder)
