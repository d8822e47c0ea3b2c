"""The files of the pictures that a report shows."""

import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from segjax.evaluate.result import Example
from segjax.files import write_bytes
from segjax.report import pictures

LONGEST = 640  # pixels of a picture's longer side
QUALITY = 85  # of the JPEG files


def write(
    examples: Sequence[Example], palette: Sequence[tuple[int, int, int]], folder: pathlib.Path
) -> list[dict[str, Any]]:
    """Writes what the gallery shows of each image.

    Those are `<kind>_<number>.image.jpg`, `.truth.png`, `.prediction.png` and `.errors.png`, and
    `.prediction_crf.png` and `.errors_crf.png` where there was a CRF. An image kept as the worst
    or the best is not shown again as a random one.

    Returns:
      For each image the JSON values that `segjax.report` finds it by.

    Raises:
      ValueError: a file cannot be written.
    """
    ranked = {example.id for example in examples if example.kind != "random"}
    shown = [e for e in examples if e.kind != "random" or e.id not in ranked]
    entries = []
    for number, example in enumerate(shown):
        name = f"{example.kind}_{number:02d}"
        entry = {"file": name, "kind": example.kind, "id": example.id}
        longest = min(LONGEST, max(example.label.shape))
        size = pictures.fit(example.label.shape, longest, longest)
        label = pictures.nearest(example.label, size)
        files = {
            "image.jpg": _photo(example.image, size),
            "truth.png": _png(pictures.colourize(label, palette)),
        }
        suffixes = ("", "_crf")
        for suffix, prediction, scores in zip(
            suffixes, example.predictions, example.scores, strict=False
        ):
            prediction = pictures.nearest(prediction, size)
            files[f"prediction{suffix}.png"] = _png(pictures.colourize(prediction, palette))
            files[f"errors{suffix}.png"] = _png(pictures.errors(label, prediction))
            for key, value in (
                ("mean_iou", scores.mean_iou),
                ("accuracy", scores.global_accuracy),
            ):
                entry[key + suffix] = None if np.isnan(value) else value
        for ending, content in files.items():
            write_bytes(folder / f"{name}.{ending}", content)
        entries.append(entry)
    return entries


def _photo(image: np.ndarray, size: tuple[int, int]) -> bytes:
    scaled = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    return _encode(".jpg", scaled[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def _png(picture: np.ndarray) -> bytes:
    to_file = cv2.COLOR_RGB2BGR if picture.shape[-1] == 3 else cv2.COLOR_RGBA2BGRA
    return _encode(".png", cv2.cvtColor(picture, to_file), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _encode(ending: str, picture: np.ndarray, options: list[int]) -> bytes:
    done, encoded = cv2.imencode(ending, picture, options)
    assert done
    return encoded.tobytes()
