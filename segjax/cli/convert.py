"""segjax convert: a published file of weights, or a run of one's own, in segjax's own form.

The folder holds weights.safetensors and config.json: the network with its fields, the
normalisation its images need, how its logits are upsampled, the classes, and where the weights are
from. Of a run that is all that predicting takes, a small part of its checkpoint.
"""

import argparse
import datetime
import hashlib
from collections.abc import Sequence
from typing import Any

import segjax
from segjax.cli import arguments as shared

EXAMPLES = """\
  segjax convert pspnet50_ade20k.pth weights/pspnet50_ade20k --dataset=ade20k
  segjax convert runs/a weights/a --dtype=bfloat16
  segjax convert --sources
"""


def main(argv: Sequence[str]) -> None:
    """Writes the folder and prints what went into it."""
    command = parser()
    given = command.parse_args(argv)
    from segjax import paths, workdir

    is_run = workdir.holds_checkpoints(paths.absolute(given.file))
    for name in ("source", "dataset", "seed") if is_run else ("step",):
        if getattr(given, name) != command.get_default(name):
            command.error(f"--{name} is for a {'published file' if is_run else 'run'}")
    if workdir.holds_checkpoints(paths.absolute(given.folder)):
        raise ValueError(
            f"{given.folder} is a run, which would be read as weights from then on; give another "
            "folder"
        )
    if is_run:
        share(given.file, given.folder, given.step, given.dtype)
    else:
        convert(given.file, given.folder, given.source, given.dataset, given.seed, given.dtype)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = shared.parser("convert", EXAMPLES)
    parser.add_argument(
        "file", help=".pth, .pt, .safetensors, .npz or .caffemodel; or the folder of a run"
    )
    parser.add_argument("folder", help="is made when missing")
    parser.add_argument(
        "--source",
        default="auto",
        metavar="NAME",
        help="whose weights they are, one of --sources; auto: told by the names in them [auto]",
    )
    parser.add_argument("--sources", action=_Sources, help="list whose weights can be read")
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="whose classes and colours they predict: ade20k, camvid, cityscapes, "
        "voc_segmentation; they are written into the folder",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the filters drawn from VGG16's fc6 and fc7 [0]"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="in which kernels are written; bfloat16 takes half the space [float32]",
    )
    shared.step(parser)
    return parser


class _Sources(argparse.Action):
    """Prints the sources and ends; they are slow to import."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from segjax import pretrained

        for key, source in pretrained.SOURCES.items():
            print(f"{key:24}{source.about}")
        parser.exit()


def share(run: str, folder: str, step: str, dtype: str) -> None:
    """Writes all of a run that predicting takes, and where it comes from.

    Args:
      run: its folder.
      folder: to be written.
      step: "best", "latest" or a number.
      dtype: of the kernels in the file.

    Raises:
      ValueError: there is no such checkpoint, it is damaged or no network of segjax, or the folder
        holds a tuned CRF of other weights.
    """
    from segjax import checkpoint, files, paths, pretrained, workdir
    from segjax import config as config_lib

    found = workdir.open_run(run, step)
    if found.step is None:
        raise ValueError(f"{run} is in segjax's own form already")
    tuned = found.folder / workdir.TUNED
    if not tuned.exists():
        _refuse_tuned(folder)
    with checkpoint.Checkpoints(found.folder, read_only=True) as checkpoints:
        scores = checkpoints.scores().get(found.step, {})
    config = config_lib.to_dict(found.config)
    config["data"]["dir"] = config["train"]["init_from"] = ""  # of the machine it was trained on
    weights = found.class_weights
    metadata = {
        "provenance": {
            "run": found.folder.resolve().name,
            "step": found.step,
            "scores": scores,
            "dtype": dtype,
            **_written(),
        },
        "config": config,
        "dataset": found.config.data.name,
        "classes": found.classes,
        "palette": found.palette,
        "class_weights": None if weights is None else weights.tolist(),
    }
    pretrained.save_weights(folder, found.variables, metadata, dtype=dtype)
    if tuned.exists():
        files.write_text(paths.of(folder) / workdir.TUNED, tuned.read_text())
    print(f"{run}: step {found.step}\nwritten to {folder}")


def convert(
    file: str, folder: str, source: str, dataset: str | None, seed: int, dtype: str
) -> None:
    """Writes the folder and prints what went into it.

    Args:
      file: of the published weights.
      folder: to be written.
      source: a key of `pretrained.SOURCES`, or "auto".
      dataset: whose classes they predict, a key of `datasets.DATASETS`; None: not told.
      seed: of filters that are drawn.
      dtype: of the kernels in the file.

    Raises:
      ValueError: the file is none that is known, the data set has other classes, or the folder
        holds a tuned CRF of other weights.
    """
    from segjax import config as config_lib
    from segjax import paths, pretrained
    from segjax.data.datasets import DATASETS

    if dataset is not None and dataset not in DATASETS:
        raise ValueError(f"--dataset={dataset}; accepted are {', '.join(sorted(DATASETS))}")
    _refuse_tuned(folder)
    model, variables, chosen, report = pretrained.convert(file, source, seed=seed)
    metadata: dict[str, Any] = {
        "provenance": {
            "file": file.rsplit("/", 1)[-1],
            "sha256": hashlib.sha256(paths.of(file).read_bytes()).hexdigest(),
            "source": next(key for key, s in pretrained.SOURCES.items() if s is chosen),
            "about": chosen.about,
            "seed": seed,
            **_written(),
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
    pretrained.save_weights(folder, variables, metadata, dtype=dtype)
    print(f"{file}: {chosen.about}\n{report}\nwritten to {folder}")


def _refuse_tuned(folder: str) -> None:
    from segjax import paths, workdir

    tuned = paths.of(folder) / workdir.TUNED
    if tuned.exists():
        raise ValueError(f"{tuned} was tuned for other weights; remove it or give another folder")


def _written() -> dict[str, str]:
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": date, "segjax": segjax.__version__}
