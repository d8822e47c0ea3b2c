"""Makes the README's picture: python docs/make_picture.py RUN

RUN is a run of configs/demo.py. The scenes are the first three of the validation split of the
generated shapes, not chosen. The CRF's parameters were set by hand on that split.
"""

import pathlib
import sys

import figures
import matplotlib.pyplot as plt
import numpy as np

import segjax
from segjax.data.builders import shapes

FILE = pathlib.Path(__file__).parent / "pictures" / "shapes.png"
HEIGHT, WIDTH = 64, 96
KERNELS = (segjax.crf.Bilateral(sigma_xy=20, sigma_rgb=15, weight=8.0),)
KERNELS += (segjax.crf.Spatial(sigma=1, weight=2.0),)
VAL = 1  # index of the split, part of the seed of its scenes


def main(run: str) -> None:
    """Writes docs/pictures/shapes.png."""
    seg = segjax.load(run)
    colours = np.array(seg.palette, np.uint8)
    figure, axes = figures.panels(3, 4, 3.9)
    for row, scene in enumerate(axes):
        rng = np.random.default_rng((0, VAL, row))
        image, label = shapes.scene(rng, HEIGHT, WIDTH)
        shown = np.where((label == 255)[..., None], 255, colours[np.where(label == 255, 0, label)])
        network, with_crf = seg(image, crf="none"), seg(image, crf=KERNELS)
        titles = ("image", "label", "SegNet-Basic", "+ DenseCRF") if row == 0 else ("",) * 4
        for ax, picture, title in zip(
            scene,
            (image, shown, colours[network.labels], colours[with_crf.labels]),
            titles,
            strict=True,
        ):
            figures.picture(ax, picture, title)
    FILE.parent.mkdir(exist_ok=True)
    figure.savefig(FILE, dpi=140)
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1])
