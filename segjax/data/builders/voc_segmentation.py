"""PASCAL VOC 2012 segmentation, and the 10,582 training masks merged from SBD."""

from typing import Any, ClassVar

from segjax.data.builders.base import SegmentationBuilder
from segjax.data.examples import Pair
from segjax.data.labels import colour_map

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
        for line in self.read_list(self.root / "ImageSets/Segmentation", self.split):
            image, *mask = line.split()
            if mask:
                paths = self.root / image.lstrip("/"), self.root / mask[0].lstrip("/")
            else:
                paths = self.root / f"JPEGImages/{image}.jpg", self.root / f"{masks}/{image}.png"
            pairs.append(Pair(paths[0].stem, *paths))
        return pairs
