"""PASCAL VOC 2012 segmentation, and the 10,582 training masks merged from SBD."""

from typing import Any, ClassVar

from segjax.data.builders.base import SegmentationBuilder
from segjax.data.examples import Pair
from segjax.data.folders import printable
from segjax.data.images import DataError
from segjax.data.labels import colour_map
from segjax.data.text import columns

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
PALETTE = colour_map(len(CLASSES))


class VocSegmentation(SegmentationBuilder):
    """A VOC folder: any list in ImageSets/Segmentation is a split.

    Masks are read by palette index. The split `trainaug` takes its masks from SegmentationClassAug;
    a line of its list is an image's name, or the two paths of DeepLab's list, below the root.
    """

    IDS: ClassVar = {i: i for i in (*range(len(CLASSES)), 255)}
    LAYOUT = (
        "  ImageSets/Segmentation/train.txt val.txt\n  JPEGImages/*.jpg\n"
        "  SegmentationClass/*.png\n"
        "  and for the split trainaug: ImageSets/Segmentation/trainaug.txt, SegmentationClassAug"
    )

    def __init__(
        self, root: str = "", split: str = "train", *, year: int = 2012, **kwargs: Any
    ) -> None:
        super().__init__(root, split, **kwargs)
        for folder in (f"VOC{year}", f"VOCdevkit/VOC{year}"):
            if (self.root / folder).is_dir():
                self.root /= folder

    def find_pairs(self) -> list[Pair]:
        masks = "SegmentationClassAug" if self.split == "trainaug" else "SegmentationClass"
        pairs = []
        lists = self.root / "ImageSets/Segmentation"
        own = [name for name in ("labelmap.txt", "class_names.txt") if (self.root / name).is_file()]
        if own:
            raise DataError(
                f"{self.root / own[0]} lists classes of its own, so this is no PASCAL VOC but an "
                "export in its layout; write --config.data.name=folder"
            )
        for line in self.read_list(lists, self.split):
            name = line.text
            for ending in (".jpg", ".png"):  # lists of names, as VOC has them, know no endings
                name = name.removesuffix(ending)
            image, mask = f"JPEGImages/{name}.jpg", f"{masks}/{name}.png"
            words = columns(line.text)
            if not (self.root / image).exists() and len(words) == 2:
                image, mask = (word.lstrip("/") for word in words)
            file = lists / f"{self.split}.txt"
            paths = [self.inside(self.root / path, line, file) for path in (image, mask)]
            pairs.append(Pair(printable(paths[0].stem), *paths))
        return pairs
