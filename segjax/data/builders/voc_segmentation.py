"""PASCAL VOC 2012 segmentation, and the 10,582 training masks merged from SBD."""

import pathlib
from typing import Any, ClassVar

from segjax.data import folders
from segjax.data.builders.folder import Folder, Place
from segjax.data.examples import Pair
from segjax.data.images import DataError
from segjax.data.labels import Colour, colour_map

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
PALETTE = colour_map(len(CLASSES))


class VocSegmentation(Folder):
    """A VOC folder: any list in ImageSets/Segmentation is a split.

    Masks are read by palette index. The split `trainaug` takes its masks from SegmentationClassAug;
    a line of its list is an image's name, or the two paths of DeepLab's list, below the root.

    An export of an annotation tool has a list of its classes, CVAT's labelmap.txt or labelme's
    class_names.txt, which takes the place of the twenty classes of VOC.
    """

    IDS: ClassVar = {i: i for i in (*range(len(CLASSES)), 255)}
    LAYOUT = (
        "  ImageSets/Segmentation/train.txt val.txt\n  JPEGImages/*.jpg\n"
        "  SegmentationClass/*.png\n"
        "  and for the split trainaug: ImageSets/Segmentation/trainaug.txt, SegmentationClassAug"
    )
    MARKS = ("JPEGImages", "ImageSets/Segmentation")
    NESTED = ("VOC2012", "VOCdevkit/VOC2012")
    LISTS = ("ImageSets/Segmentation",)

    def __init__(
        self, root: str = "", split: str = "train", *, year: int = 2012, **kwargs: Any
    ) -> None:
        folder = pathlib.Path(root)
        for name in (f"VOC{year}", f"VOCdevkit/VOC{year}"):
            if (folder / name).is_dir():
                folder /= name
        super().__init__(str(folder), split, drawn="stored", **kwargs)

    @property
    def knows_classes(self) -> bool:
        return True

    def describe(
        self, ids: object, ignored: float = 0.0
    ) -> tuple[tuple[str, ...], tuple[Colour, ...]] | None:
        return super().describe([]) if self.classes else None

    def find_pairs(self) -> list[Pair]:
        lists = self.root / self.LISTS[0]
        if not lists.is_dir():
            raise DataError(self.misplaced(f"{folders.printable(lists)} does not exist"))
        file = self._list()
        if file is None:
            there = ", ".join(folders.printable(p.stem) for p in self._lists()) or "none"
            raise DataError(
                f"{folders.printable(lists)}/{self.split}.txt does not exist; the lists there are: "
                f"{there}"
            )
        aug = "Aug" * (self.split == "trainaug")
        place = Place(self.root / "JPEGImages", self.root / f"SegmentationClass{aug}")
        return self._listed(place, file)
