"""What a network says about a picture."""

import dataclasses
import functools
import io
import os
import sys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segjax.data.labels import Colour
from segjax.predict.label_files import save_labels

BACKGROUND = "background"  # a class 0 of this name is not coloured in an overlay
SHOWN = 4  # classes in the repr


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a network says about a picture.

    A notebook shows it as the picture under the colours of its classes.

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
    palette: tuple[Colour, ...]
    variance: np.ndarray | None
    _probs: Callable[[], np.ndarray]

    @functools.cached_property
    def probs(self) -> np.ndarray:
        """Class probabilities, float32 [H, W, C]."""
        return self._probs()

    @functools.cached_property
    def entropy(self) -> np.ndarray:
        """The entropy of each pixel's probabilities in nats, float32 [H, W]: 0 is certain."""
        logs = np.log(np.maximum(self.probs, np.finfo(np.float32).tiny))
        return -(self.probs * logs).sum(-1)

    @functools.cached_property
    def shares(self) -> np.ndarray:
        """The share of each class in the pixels of the picture, float64 [C]."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        return counts / self.labels.size

    def overlay(
        self, alpha: float = 0.5, *, outlines: bool = True, legend: bool = False
    ) -> np.ndarray:
        """Returns the picture under the colours of its classes, RGB uint8 [H, W, 3].

        A class 0 called "background" is not coloured.

        Args:
          alpha: how much of the colours is seen, 0 to 1.
          outlines: show the border of each region in a stronger colour.
          legend: add the names of the classes that are there, and their shares, below the picture,
            which becomes higher, and wider where a name needs it.

        Raises:
          ValueError: `alpha` is not in 0..1.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; give a number from 0 to 1")
        opacity = np.full(self.labels.shape, alpha, np.float32)
        if outlines:
            opacity[_borders(self.labels)] = min(2 * alpha, 1)
        if self._has_background:
            opacity[self.labels == 0] = 0
        colours = np.asarray(self.palette, np.float32)[self.labels]
        opacity = opacity[..., None]
        picture = np.rint((1 - opacity) * self.image + opacity * colours).astype(np.uint8)
        return self._with_legend(picture) if legend else picture

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the label map as PNG: class ids that viewers show in the classes' colours.

        Beyond 255 classes it is a grey PNG of 16 bits.

        Raises:
          ValueError: the path has another ending, or cannot be written.
        """
        save_labels(path, self.labels, self.palette)

    def show(self, alpha: float = 0.5) -> None:
        """Shows the overlay with its legend, in a notebook or in the system's picture viewer.

        Args:
          alpha: as in `overlay`.
        """
        picture = Image.fromarray(self.overlay(alpha, legend=True))
        notebook = sys.modules.get("IPython")  # imported where this runs in one
        if notebook is not None and notebook.get_ipython() is not None:
            notebook.display.display(picture)
        else:
            picture.show()

    def __repr__(self) -> str:
        order = self._present()
        named = [f"{self.classes[i]} {self.shares[i]:.1%}" for i in order[:SHOWN]]
        more = [f"{len(order) - SHOWN} more"] if len(order) > SHOWN else []
        height, width = self.labels.shape
        return f"Prediction({height}x{width}: {', '.join(named + more)})"

    def _repr_png_(self) -> bytes:
        """The picture that a notebook shows."""
        buffer = io.BytesIO()
        Image.fromarray(self.overlay(legend=True)).save(buffer, format="PNG")
        return buffer.getvalue()

    @property
    def _has_background(self) -> bool:
        return self.classes[0].lower() == BACKGROUND

    def _present(self) -> list[int]:
        """The classes that are there, those of most pixels first."""
        return [int(i) for i in np.argsort(-self.shares, kind="stable") if self.shares[i]]

    def _with_legend(self, picture: np.ndarray) -> np.ndarray:
        """Returns the picture with rows of "[colour] name share" below it."""
        side = min(max(round(picture.shape[1] / 45), 12), 40)  # pixels, of the letters
        font = ImageFont.load_default(side)
        names = [" ".join(name.split()) for name in self.classes]
        texts = {i: f"{names[i]} {self.shares[i]:.1%}" for i in self._present()}
        cell = 3 * side + max(round(font.getlength(text)) for text in texts.values())
        width = max(picture.shape[1], cell)
        columns = min(width // cell, len(texts))
        rows = -(-len(texts) // columns)
        legend = Image.new("RGB", (width, rows * 2 * side + side), "white")
        draw = ImageDraw.Draw(legend)
        for place, (i, text) in enumerate(texts.items()):
            x = side + place % columns * cell
            y = side // 2 + place // columns * 2 * side + side // 2
            plain = self._has_background and i == 0
            colour = None if plain else tuple(map(int, self.palette[i]))
            draw.rectangle((x, y, x + side, y + side), fill=colour, outline="black")
            draw.text((x + 1.5 * side, y + side // 2), text, fill="black", font=font, anchor="lm")
        wider = [(0, 0), (0, width - picture.shape[1]), (0, 0)]
        return np.concatenate([np.pad(picture, wider, constant_values=255), np.asarray(legend)])


def _borders(labels: np.ndarray) -> np.ndarray:
    """Returns bool [H, W]: true at pixels near one of another class.

    Near is a pixel for each 400 pixels of the shorter side, at least one.
    """
    border = np.zeros(labels.shape, bool)
    for distance in range(1, max(round(min(labels.shape) / 400), 1) + 1):
        for axis in (0, 1):
            first, last = [slice(None)] * 2, [slice(None)] * 2
            first[axis], last[axis] = slice(None, -distance), slice(distance, None)
            differ = labels[tuple(first)] != labels[tuple(last)]
            border[tuple(first)] |= differ
            border[tuple(last)] |= differ
    return border
