"""Label maps: what a network says about a picture, and its files."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image

from segjax.data.labels import VOID_COLOUR
from segjax.files import whole_file


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says about a picture.

    Attributes:
      image: the picture, uint8 [H, W, 3].
      labels: class ids, uint8 [H, W]; uint16 beyond 255 classes.
      classes: names, by id.
      palette: RGB, by id.
      variance: of the probabilities over the samples of `monte_carlo`, averaged over the classes,
        float32 [H, W]; otherwise None.
    """

    image: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    variance: np.ndarray | None
    _probs: Callable[[], np.ndarray] = dataclasses.field(repr=False)

    @functools.cached_property
    def probs(self) -> np.ndarray:
        """Class probabilities, float32 [H, W, C]."""
        return self._probs()

    @functools.cached_property
    def entropy(self) -> np.ndarray:
        """The entropy of each pixel's probabilities in nats, float32 [H, W]: 0 is certain."""
        logs = np.log(np.maximum(self.probs, np.finfo(np.float32).tiny))
        return -(self.probs * logs).sum(-1)

    def overlay(self, alpha: float = 0.5) -> np.ndarray:
        """Returns the picture under the colours of its classes, RGB uint8 [H, W, 3].

        Args:
          alpha: how much of the colours is seen, 0 to 1.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; give a number from 0 to 1")
        colours = np.asarray(self.palette, np.float32)[self.labels]
        return np.rint((1 - alpha) * self.image + alpha * colours).astype(np.uint8)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the label map as PNG: class ids that viewers show in the classes' colours.

        Beyond 255 classes it is a grey PNG of 16 bits.

        Raises:
          ValueError: the path has another ending, or cannot be written.
        """
        save_labels(path, self.labels, self.palette)


def save_labels(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    palette: Sequence[tuple[int, int, int]] = (),
) -> None:
    """Writes a label map, uint8 or uint16 [H, W], as PNG of ids.

    Args:
      path: of the file; it appears when it is complete.
      labels: the ids.
      palette: RGB by id, for viewers to show; without it, or for uint16, the PNG is grey.

    Raises:
      ValueError: the path has another ending, or cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} does not end in .png, the format of label maps")
    picture = Image.fromarray(labels)
    if len(palette) and labels.dtype == np.uint8:
        table = np.full((256, 3), VOID_COLOUR, np.uint8)
        table[: len(palette)] = palette
        picture.putpalette(table.tobytes())
    with whole_file(path) as file:
        picture.save(file, format="PNG")


def label_type(num_classes: int) -> type[np.unsignedinteger]:
    """Returns the type of the ids of so many classes."""
    return np.uint8 if num_classes <= 255 else np.uint16


def write_npy(
    path: pathlib.Path,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int],
    kind: type[np.unsignedinteger],
) -> None:
    """Writes a label map that comes in strips from top to bottom, and is never held whole.

    Args:
      path: of the .npy file; it appears when it is complete.
      strips: of integers, [h, W].
      shape: of the whole, height and width.
      kind: of the integers.

    Raises:
      ValueError: the file cannot be written.
    """
    # Written through the file system and not through a memory map: a full disk is then an error
    # that can be caught.
    header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for strip in strips:
            file.write(np.ascontiguousarray(strip).data)
