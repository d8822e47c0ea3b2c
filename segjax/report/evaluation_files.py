"""The files that an evaluation leaves in the folder of a run."""

import pathlib
from typing import Any

import jax
import numpy as np

from segjax import files, log, report
from segjax.config import Config, to_dict
from segjax.data import datasets
from segjax.evaluate.result import Evaluation
from segjax.report import gallery, pictures, trimap_chart


def write_evaluation(
    result: Evaluation,
    config: Config,
    prepared: datasets.Prepared,
    folder: pathlib.Path,
    name: str,
    **about: Any,
) -> np.ndarray | None:
    """Writes `folder/eval/<name>.json` and .csv, the trimap curve, and pictures in `folder/images`.

    Args:
      result: of `evaluator`.
      config: of the run.
      prepared: the data set.
      folder: of the run.
      name: of the evaluation.
      **about: what else the JSON file says: split, step, protocol.

    Returns:
      The picture sheet, RGB uint8, where there are pictures.
    """
    if jax.process_index() != 0:
        return None
    dataset = prepared.dataset
    values = {
        **about,
        "command": log.command(),
        **result.to_dict(dataset.classes),
        "config": to_dict(config),
        "palette": [list(colour) for colour in dataset.palette],
        "gallery": [],
    }
    with log.harmless(f"the pictures of {name}"):
        place = folder / "images" / name
        values["gallery"] = gallery.write(result.examples, dataset.palette, place)
    if config.data.train_split in prepared.summaries:
        pixels = np.asarray(prepared.summaries[config.data.train_split].pixels)
        pixels = pixels[: dataset.num_classes]
        values["train_share"] = (pixels / max(pixels.sum(), 1)).tolist()
    if about.get("split") in prepared.summaries:
        values["split_images"] = prepared.summaries[about["split"]].num_images
    files.write_json(folder / "eval" / f"{name}.json", values)
    files.write_text(folder / "eval" / f"{name}.csv", result.to_csv(dataset.classes))
    if chart := trimap_chart(values):
        files.write_text(folder / "eval" / f"{name}_trimap.svg", chart)
        files.write_text(folder / "eval" / f"{name}_trimap.csv", result.trimap_csv())
    if not result.rows:
        return None
    sheet = pictures.sheet(result.rows, dataset.classes, dataset.palette)
    pictures.write(folder / "images" / f"{name}.png", sheet)
    return sheet


def write_report(folder: pathlib.Path, name: str | None = None) -> None:
    """Writes `folder/report.html`, on the first process.

    Args:
      folder: of the run.
      name: of the evaluation to show; the newest when not given.
    """
    if jax.process_index() == 0:
        log.say(f"report: {report.write(folder, name)}")
