"""ADE20K scene parsing (ADEChallengeData2016): 20,210 and 2,000 scenes, 150 classes."""

from typing import ClassVar

from segjax.data.builders.base import SegmentationBuilder
from segjax.data.examples import Pair
from segjax.data.labels import colour_map

CLASSES = (
    *("wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane"),
    *("grass", "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant"),
    *("curtain", "chair", "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror"),
    *("rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub"),
    *("railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter"),
    *("sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs"),
    *("runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge"),
    *("bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench"),
    *("countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar"),
    *("arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier"),
    *("awning", "streetlight", "booth", "television receiver", "airplane", "dirt track"),
    *("apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet"),
    *("poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer"),
    *("plaything", "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag"),
    *("minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name", "microwave"),
    *("pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood"),
    *("sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate"),
    *("monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag"),
)
PALETTE = colour_map(len(CLASSES) + 1)[1:]  # the masks carry none
FOLDERS = {"train": "training", "val": "validation"}


class Ade20k(SegmentationBuilder):
    """The challenge's folders; a mask counts from 1, and its 0, other, is ignored."""

    IDS: ClassVar = {0: 255, **{i: i - 1 for i in range(1, len(CLASSES) + 1)}, 255: 255}
    SPLITS = tuple(FOLDERS)
    LAYOUT = (
        "  images/training/*.jpg images/validation/*.jpg\n"
        "  annotations/training/*.png annotations/validation/*.png"
    )
    MARKS = ("images/training", "annotations/training")
    NESTED = ("ADEChallengeData2016",)

    def find_pairs(self) -> list[Pair]:
        folder = FOLDERS[self.split]
        return self.pair(self.root / "images" / folder, self.root / "annotations" / folder)
