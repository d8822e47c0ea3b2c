"""Cityscapes: 2,975, 500 and 1,525 street scenes with fine labels, 19 classes to train on."""

import dataclasses
from typing import Any, ClassVar

from segjax.data.builders.base import SegmentationBuilder
from segjax.data.examples import Pair
from segjax.data.images import DataError

CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
)
PALETTE = (
    *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
    *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
    *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100)),
    *((0, 80, 100), (0, 0, 230), (119, 11, 32)),
)
# Of the ids 0..33 of the annotation these are trained on, in the order of the train ids.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


class Cityscapes(SegmentationBuilder):
    """The official folders; masks are `labelIds`, or `labelTrainIds` where there are no others."""

    IDS: ClassVar = {
        **{i: 255 for i in (*range(34), 255)},
        **{label_id: train_id for train_id, label_id in enumerate(LABEL_IDS)},
    }
    SPLITS = ("train", "val", "test", "train_extra")
    LAYOUT = (
        "  leftImg8bit/train/*/*_leftImg8bit.png\n  gtFine/train/*/*_gtFine_labelIds.png\n"
        "  and the same with val, test; gtCoarse for train_extra and with the option coarse=True"
    )
    MARKS = ("leftImg8bit",)

    def __init__(
        self, root: str = "", split: str = "train", *, coarse: bool = False, **kwargs: Any
    ) -> None:
        # Of the further 19,998 images there are coarse annotations alone.
        self.annotation = "gtCoarse" if coarse or split == "train_extra" else "gtFine"
        super().__init__(root, split, **kwargs)

    def find_pairs(self) -> list[Pair]:
        pairs = self._pairs_of("labelIds")
        if not pairs[0].mask.exists():
            train_ids = self._pairs_of("labelTrainIds")
            if train_ids[0].mask.exists():
                self.ids = {i: i for i in (*range(len(CLASSES)), 255)}
                return train_ids
        return pairs

    def _pairs_of(self, kind: str) -> list[Pair]:
        """Pairs by the name below the folder of a city, which it begins with."""
        pairs = self.pair(
            self.root / "leftImg8bit" / self.split,
            self.root / self.annotation / self.split,
            image_suffix="_leftImg8bit",
            mask_suffix=f"_{self.annotation}_{kind}",
        )
        if not pairs:
            raise DataError(self.misplaced("no image is called *_leftImg8bit.png"))
        return [dataclasses.replace(pair, id=pair.id.rsplit("/", 1)[-1]) for pair in pairs]
