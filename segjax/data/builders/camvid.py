"""CamVid in the version of SegNet: 367, 101 and 233 road scenes, 11 classes."""

from typing import ClassVar

from segjax.data.builders.base import SegmentationBuilder
from segjax.data.examples import Pair

CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
)
PALETTE = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222)),
    *((128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
# Weights of the published training nets. The released labels do not give them by any formula:
# most of all sign symbol, 3.8467 by median frequency.
OFFICIAL_CLASS_WEIGHTS = (
    *(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826),
    *(9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
)


class Camvid(SegmentationBuilder):
    """The folder of the SegNet tutorial; images may be PNG, as there, or JPEG."""

    IDS: ClassVar = {**{i: i for i in range(len(CLASSES))}, 11: 255, 255: 255}
    SPLITS = ("train", "val", "test")
    LAYOUT = "  train/*.png trainannot/*.png val/*.png valannot/*.png test/*.png testannot/*.png"
    MARKS = ("train", "trainannot")

    def find_pairs(self) -> list[Pair]:
        return self.pair(self.root / self.split, self.root / f"{self.split}annot")
