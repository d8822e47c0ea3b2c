"""Pictures of label maps, as RGB arrays and PNG files.

Errors are orange with dark stripes on a grey image, so that they are seen without red and green.
"""

import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segjax.data.labels import VOID_COLOUR
from segjax.files import write_bytes
from segjax.ops import IGNORE_LABEL

WRONG, STRIPE, VOID = (230, 110, 0, 255), (120, 45, 0, 255), (128, 128, 128, 200)  # RGBA
PERIOD, DARK = 8, 3  # pixels from stripe to stripe along a row, and of a stripe
GAP = 4  # pixels around each picture of a sheet
_LETTERS = 12  # pixels, height of the text
_TEXT, _PAPER = (30, 30, 30), 255


def colourize(label: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Returns a label map int [H, W] as RGB uint8 [H, W, 3]; ids beyond the palette are void."""
    table = np.full((256, 3), VOID_COLOUR, np.uint8)
    table[: len(palette)] = palette
    return table[np.clip(label, 0, 255)]


def errors(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Returns RGBA uint8 [H, W, 4] to be laid over a faded image.

    Striped orange where the prediction is wrong, grey where the label is void, transparent where
    the prediction is right.
    """
    rows, columns = np.indices(label.shape)
    striped = np.where(((rows + columns) % PERIOD < DARK)[..., None], STRIPE, WRONG)
    picture = np.where((label != prediction)[..., None], striped, 0)
    return np.where((label == IGNORE_LABEL)[..., None], VOID, picture).astype(np.uint8)


def fit(shape: tuple[int, ...], width: int, height: int) -> tuple[int, int]:
    """Returns the height and width, 1 pixel or more, of a picture scaled to fit into a box."""
    scale = min(width / shape[1], height / shape[0])
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def nearest(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a picture or label map [H, W, ...] scaled to height and width without new values."""
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(size, picture.shape[:2], strict=True)
    )
    return picture[rows[:, None], columns]


def sheet(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    *,
    width: int = 320,
) -> np.ndarray:
    """Returns one picture, RGB uint8: image, label, prediction and errors in each row, a legend.

    Args:
      rows: caption, image uint8 [H, W, 3], label int [H, W] and prediction int [H, W].
      classes: names.
      palette: RGB by class.
      width: of one picture in pixels; its height is twice that at the most.
    """
    cell = width + 2 * GAP
    titles = ("image", "label", "prediction", "errors (striped), void (grey)")
    lines = [np.concatenate([_caption(title, cell) for title in titles], 1)]
    for caption, image, label, prediction in rows:
        size = fit(image.shape, width, 2 * width)
        valid = label != IGNORE_LABEL
        share = (label == prediction)[valid].mean() if valid.any() else float("nan")
        label, prediction = nearest(label, size), nearest(prediction, size)
        scaling = cv2.INTER_AREA if size[1] < image.shape[1] else cv2.INTER_NEAREST
        image = cv2.resize(image, size[::-1], interpolation=scaling)
        pictures = (
            image,
            colourize(label, palette),
            colourize(prediction, palette),
            over(faded(image), errors(label, prediction)),
        )
        border = ((GAP, GAP), (GAP, GAP + width - size[1]), (0, 0))
        lines.append(np.concatenate([np.pad(p, border, constant_values=255) for p in pictures], 1))
        lines.append(_caption(f"{caption}: {share:.1%} of pixels right", 4 * cell))
    return np.concatenate([*lines, _legend(classes, palette, 4 * cell)])


def write(path: pathlib.Path, picture: np.ndarray) -> None:
    """Writes RGB uint8 [H, W, 3] as PNG, atomically.

    Raises:
      ValueError: the file cannot be written.
    """
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    write_bytes(path, encoded.tobytes())


def faded(image: np.ndarray) -> np.ndarray:
    """Returns an RGB image, uint8 [H, W, 3], in light greys."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    return np.repeat(np.rint(153 + 0.4 * grey).astype(np.uint8), 3, -1)


def over(image: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Returns an RGB image, uint8 [H, W, 3], under an RGBA picture, uint8 [H, W, 4]."""
    opacity = layer[..., 3:] / 255
    return np.rint((1 - opacity) * image + opacity * layer[..., :3]).astype(np.uint8)


def _caption(text: str, width: int) -> np.ndarray:
    strip = Image.new("RGB", (width, _LETTERS + 8), (_PAPER,) * 3)
    _write_text(strip, (6, 4 + _LETTERS // 2), text, width - 12)
    return np.asarray(strip)


def _legend(
    classes: Sequence[str], palette: Sequence[tuple[int, int, int]], width: int
) -> np.ndarray:
    entries = [*zip(classes, palette, strict=True), ("void", VOID_COLOUR)]
    columns = max(width // 170, 1)
    legend = Image.new("RGB", (width, 22 * -(-len(entries) // columns) + 8), (_PAPER,) * 3)
    draw = ImageDraw.Draw(legend)
    for i, (name, colour) in enumerate(entries):
        x, y = i % columns * 170 + 6, i // columns * 22 + 6
        draw.rectangle((x, y, x + 14, y + 14), fill=tuple(map(int, colour)), outline=_TEXT)
        _write_text(legend, (x + 20, y + 7), name, 140)
    return np.asarray(legend)


def _write_text(picture: Image.Image, place: tuple[int, int], text: str, width: int) -> None:
    """Writes a line of text, x from the left and y in the middle, cut to a width in pixels."""
    font = ImageFont.load_default(_LETTERS)
    text = " ".join(text.split())
    while len(text) > 1 and font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    ImageDraw.Draw(picture).text(place, text, fill=_TEXT, font=font, anchor="lm")
