"""segjax check: what is in the folder of a data set, and what to write to train on it."""

import argparse
import pathlib
from collections.abc import Sequence

from segjax.cli import arguments as shared

# What is in the folder of a data set, in the order in which it is looked for.
LAYOUTS = {
    "cityscapes": ("leftImg8bit",),
    "voc_segmentation": ("JPEGImages",),
    "ade20k": ("annotations", "images"),
    "camvid": ("train", "trainannot"),
    "folder": ("images", "masks"),
}
NESTED = ("VOC2012", "VOCdevkit/VOC2012", "ADEChallengeData2016")

EXAMPLES = """\
  segjax check CamVid
  segjax check my_data --name folder --label-map "{0:0,255:1}"
"""


def main(argv: Sequence[str]) -> None:
    """Reads every file of a data set, prints what there is and what to write for training."""
    arguments = parser().parse_args(argv)
    from rich.console import Console

    from segjax import config as config_lib
    from segjax.data import datasets

    given = pathlib.Path(arguments.data).expanduser()
    name = arguments.name or layout(given)
    data = config_lib.Data(
        name=name,
        dir="" if name == arguments.data else str(given),
        label_map=arguments.label_map,
        options=arguments.options,
    )
    found = datasets.check(data, arguments.splits)
    console = Console()
    console.print(found.table())
    height, width = found.crop
    lines = [
        f"every file of {', '.join(found.summaries)} can be used; to train on it:",
        f"  --config.data.name={name}",
        *([f"  --config.data.dir={given}"] if data.dir else []),
        *([f'  --config.data.label_map="{data.label_map}"'] if data.label_map else []),
        *([f'  --config.data.options="{data.options}"'] if data.options else []),
        f"  --config.model.num_classes={found.dataset.num_classes}",
        f'  --config.augment.crop="({height}, {width})"',
        "  --config.loss.class_weights=median_frequency, which is "
        + ",".join(f"{weight:.4f}" for weight in found.class_weights),
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = shared.parser("check", EXAMPLES)
    parser.add_argument(
        "data", metavar="DATA", help="its folder; or shapes, the data set that is built in"
    )
    parser.add_argument(
        "--name", default="", choices=sorted(LAYOUTS), help="of its layout [told by its folders]"
    )
    parser.add_argument(
        "--splits", nargs="+", default=["train", "val"], metavar="SPLIT", help="[train val]"
    )
    parser.add_argument("--label-map", default="", help='changes ids, "{0:0,255:1}"')
    parser.add_argument("--options", default="", help='of the layout, "val_every=5"')
    return parser


def layout(folder: pathlib.Path) -> str:
    """Returns the name of the data set in a folder, told by its subfolders."""
    if folder.name == "shapes" and not folder.exists():
        return "shapes"
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give that of a data set, or shapes")
    roots = [folder, *(folder / nested for nested in NESTED)]
    for name, parts in LAYOUTS.items():
        if any(all((root / part).is_dir() for part in parts) for root in roots):
            return name
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    known = "; ".join(f"{name}: {', '.join(parts)}" for name, parts in LAYOUTS.items())
    raise ValueError(
        f"{folder} has the layout of no known data set; it holds {there}. Looked for are {known}; "
        "your own data needs images/ and masks/"
    )
