"""Pictures of label maps, as RGB arrays and PNG files."""

import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from segjax.data.labels import VOID_COLOUR
from segjax.files import write_bytes
from segjax.ops import IGNORE_LABEL

RIGHT, WRONG = (40, 160, 70), (220, 40, 40)
_FONT, _TEXT, _PAPER = cv2.FONT_HERSHEY_SIMPLEX, (30, 30, 30), 255


def colourize(label: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Returns a label map int [H, W] as RGB uint8 [H, W, 3]; ids beyond the palette are void."""
    table = np.full((256, 3), VOID_COLOUR, np.uint8)
    table[: len(palette)] = palette
    return table[np.clip(label, 0, 255)]


def errors(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Returns RGB uint8 [H, W, 3]: green where a prediction is right, red where it is wrong."""
    picture = np.where((label == prediction)[..., None], RIGHT, WRONG)
    return np.where((label == IGNORE_LABEL)[..., None], VOID_COLOUR, picture).astype(np.uint8)


def sheet(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    *,
    width: int = 320,
) -> np.ndarray:
    """Returns one picture, RGB uint8: image, label, prediction and error in each row, a legend.

    Args:
      rows: caption, image uint8 [H, W, 3], label int [H, W] and prediction int [H, W].
      classes: names.
      palette: RGB by class.
      width: of one picture, in pixels.
    """
    lines = [_captions(("image", "label", "prediction", "error"), width)]
    for caption, image, label, prediction in rows:
        pictures = (
            image,
            colourize(label, palette),
            colourize(prediction, palette),
            errors(label, prediction),
        )
        height = max(round(width * image.shape[0] / image.shape[1]), 1)
        scaled = [cv2.resize(p, (width, height), interpolation=_fit(p, width)) for p in pictures]
        line = np.concatenate([np.pad(p, _margin(4), constant_values=_PAPER) for p in scaled], 1)
        valid = label != IGNORE_LABEL
        share = (label == prediction)[valid].mean() if valid.any() else float("nan")
        lines += [line, _captions((f"{caption}: {share:.1%} of pixels right",), width * 4 + 24)]
    return np.concatenate([*lines, _legend(classes, palette, 4 * (width + 8))])


def write(path: pathlib.Path, picture: np.ndarray) -> None:
    """Writes RGB uint8 [H, W, 3] as PNG, atomically.

    Raises:
      ValueError: the file cannot be written.
    """
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    write_bytes(path, encoded.tobytes())


def _fit(picture: np.ndarray, width: int) -> int:
    return cv2.INTER_AREA if picture.shape[1] > width else cv2.INTER_NEAREST


def _margin(pixels: int) -> tuple[tuple[int, int], ...]:
    return ((pixels, pixels), (pixels, pixels), (0, 0))


def _captions(texts: Sequence[str], width: int) -> np.ndarray:
    strips = []
    for text in texts:
        strip = np.full((20, width + 8, 3), _PAPER, np.uint8)
        strips.append(cv2.putText(strip, text, (6, 14), _FONT, 0.42, _TEXT, 1, cv2.LINE_AA))
    return np.concatenate(strips, 1)


def _legend(
    classes: Sequence[str], palette: Sequence[tuple[int, int, int]], width: int
) -> np.ndarray:
    entries = [*zip(classes, palette, strict=True), ("void", VOID_COLOUR)]
    columns = max(width // 170, 1)
    legend = np.full((22 * -(-len(entries) // columns) + 8, width, 3), _PAPER, np.uint8)
    for i, (name, colour) in enumerate(entries):
        x, y = i % columns * 170 + 6, i // columns * 22 + 6
        cv2.rectangle(legend, (x, y), (x + 14, y + 14), tuple(map(int, colour)), -1)
        cv2.rectangle(legend, (x, y), (x + 14, y + 14), _TEXT, 1)
        cv2.putText(legend, name, (x + 20, y + 12), _FONT, 0.42, _TEXT, 1, cv2.LINE_AA)
    return legend
