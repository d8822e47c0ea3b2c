"""Converts a published file of weights to a folder of segjax's own form.

    python -m segjax.pretrained pspnet50_ade20k.pth weights/pspnet50_ade20k --dataset=ade20k

The folder holds weights.safetensors and config.json: the network with its fields, the
normalisation its images need, how its logits are upsampled, the classes, and where the weights are
from.
"""

import argparse
import datetime
import hashlib
import pathlib
import sys
from typing import Any

import segjax
from segjax import config as config_lib
from segjax import pretrained
from segjax.data.datasets import DATASETS


def main(argv: list[str] | None = None) -> None:
    """Converts; a mistake by the user ends the program with one line."""
    try:
        convert(**vars(parser("python -m segjax.pretrained").parse_args(argv)))
    except ValueError as error:
        sys.exit(f"python -m segjax.pretrained: {error}")


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the parser of the arguments of `convert`; `program` is what the user types."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=(__doc__ or "").replace("python -m segjax.pretrained", program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="sources:\n"
        + "\n".join(f"  {key:24}{source.about}" for key, source in pretrained.SOURCES.items()),
    )
    parser.add_argument("file", help=".pth, .pt, .safetensors, .npz or .caffemodel")
    parser.add_argument("folder", help="is made when missing")
    parser.add_argument(
        "--source", default="auto", help="whose weights they are; auto: told by the names in them"
    )
    parser.add_argument(
        "--dataset",
        choices=sorted(DATASETS),
        help="whose classes and colours they predict, to be written beside them",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the filters drawn from VGG16's fc6 and fc7"
    )
    return parser


def convert(file: str, folder: str, source: str, dataset: str | None, seed: int) -> None:
    """Writes the folder and prints what went into it."""
    model, variables, chosen, report = pretrained.convert(file, source, seed=seed)
    metadata: dict[str, Any] = {
        "provenance": {
            "file": pathlib.Path(file).name,
            "sha256": hashlib.sha256(pathlib.Path(file).expanduser().read_bytes()).hexdigest(),
            "source": next(key for key, s in pretrained.SOURCES.items() if s is chosen),
            "about": chosen.about,
            "seed": seed,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "segjax": segjax.__version__,
        },
        "config": {
            "input": config_lib.to_dict(chosen.input),
            "loss": {"align_corners": chosen.align_corners},
        },
    }
    if report.new:
        metadata["partial"] = "a start for training: the rest of the network is new"
    else:
        metadata["config"]["model"] = config_lib.to_dict(model)
    if dataset is not None:
        known = DATASETS[dataset]
        classes = getattr(model, "num_classes", 0)
        if report.new or classes != len(known.classes):
            raise ValueError(
                f"--dataset={dataset} has {len(known.classes)} classes, the weights predict "
                f"{0 if report.new else classes}; leave it out or name the data set of the weights"
            )
        metadata |= {
            "dataset": known.name,
            "classes": list(known.classes),
            "palette": [list(colour) for colour in known.palette],
        }
    pretrained.save_weights(folder, variables, metadata)
    print(f"{file}: {chosen.about}\n{report}\nwritten to {folder}")


if __name__ == "__main__":
    main()
