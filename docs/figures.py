"""What the figures of these pages have in common: a style, a photograph, arrows and boxes."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

# Okabe and Ito's colours, distinguishable without red and green.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)
WIDE = 7.0  # inches, the width of a figure: text of 10 points stays readable on a phone

plt.rcParams.update(
    {
        "figure.dpi": 130,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "image.interpolation": "nearest",
        "legend.frameon": False,
    }
)


def photograph(height: int = 120, width: int = 160) -> np.ndarray:
    """Returns scikit-image's picture of an astronaut, uint8 [height, width, 3]; in its domain."""
    import skimage

    image = skimage.data.astronaut()[:384]  # 384x512
    return (skimage.transform.resize(image, (height, width), anti_aliasing=True) * 255).astype(
        np.uint8
    )


def quoted(text: str) -> str:
    """Returns a sentence of a docstring as a quotation in Markdown."""
    text = " ".join(text.split())
    return f"> {text[0].upper()}{text[1:]}"


def panels(rows: int, columns: int, height: float, **options: object) -> tuple[Figure, np.ndarray]:
    """Returns a figure of the page's width and its axes, without ticks."""
    figure, axes = plt.subplots(rows, columns, figsize=(WIDE, height), squeeze=False, **options)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
    return figure, axes


def picture(ax: Axes, image: np.ndarray, title: str = "", **options: object) -> None:
    """Draws an image under a title."""
    ax.imshow(image, **options)
    ax.set_title(title)


def grid(ax: Axes, values: np.ndarray, title: str, *, colour: str = "Blues") -> None:
    """Draws a small matrix with its numbers; zeros stay empty."""
    ax.imshow(values, cmap=colour, vmin=0, vmax=1.6 * max(values.max(), 1))
    for (row, column), value in np.ndenumerate(values):
        if value:
            ax.text(column, row, f"{value:g}", ha="center", va="center")
    for edge in range(max(values.shape) + 1):
        ax.axhline(edge - 0.5, color="white", lw=1)
        ax.axvline(edge - 0.5, color="white", lw=1)
    ax.set_title(title)


def box(ax: Axes, x: float, y: float, text: str, colour: str, *, size: tuple[float, float]) -> None:
    """Draws a rounded box around its centre (x, y)."""
    width, height = size
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor=colour + "33",
            edgecolor=colour,
            lw=1.5,
        )
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=9)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draws an arrow."""
    ax.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": "#555"})
