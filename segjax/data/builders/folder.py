"""Anyone's data: a folder of images and a folder of masks.

    images/*.jpg masks/*.png    paired by name; PNG, BMP and TIFF masks of one id per pixel
    classes.txt                 optional: a class a line, in the order of the ids

Splits are, in this order: subfolders, `images/train` beside `masks/train`; lists of image names,
`train.txt`; or neither, and then every tenth image, by name, is the split `val` and the others are
`train` (option `val_every`).

With `classes.txt` ids that no line stands for are an error; without it the classes are 0..C-1 as
the masks hold them, those of the training split among them. Where each line ends in a colour,
`road 128 64 128`, masks may be RGB. Lines named `void` come last and give colours that are ignored.
"""

import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar

from segjax.data.builders.base import SegmentationBuilder
from segjax.data.examples import Pair
from segjax.data.images import DataError
from segjax.data.labels import MAP_EXAMPLE, Colour, colour_map, spans
from segjax.ops import IGNORE_LABEL

MASKS = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")  # JPEG to be refused with the reason
CLASSES_FILE = "classes.txt"


class Folder(SegmentationBuilder):
    """Pairs `images/NAME.*` with `masks/NAME.*`; the module says how splits are found."""

    IDS: ClassVar = {i: i for i in range(256)}
    LAYOUT = (
        "  images/*.jpg masks/*.png, with classes.txt, one name a line, if you like\n"
        "  splits: images/train masks/train images/val masks/val, or train.txt and val.txt with "
        "names, or every tenth image is for validation"
    )

    def __init__(
        self, root: str = "", split: str = "train", *, val_every: int = 10, **kwargs: Any
    ) -> None:
        super().__init__(root, split, **kwargs)
        if val_every < 2:
            raise ValueError(f"option val_every={val_every} of 'folder': at least 2 is needed")
        self.val_every = val_every
        self.classes: tuple[str, ...] = ()
        self.palette: tuple[Colour, ...] = ()
        file = self.root / CLASSES_FILE
        if file.exists():
            self.classes, colours = read_classes(file)
            self.palette = tuple(colour for colour, i in colours.items() if i != IGNORE_LABEL)
            self.ids = {i: i for i in (*range(len(self.classes)), IGNORE_LABEL)}
            self.colours = colours or None

    @property
    def knows_classes(self) -> bool:
        return bool(self.classes)

    def fingerprint(self) -> list:
        return [*super().fingerprint(), self.classes, list((self.colours or {}).items())]

    def find_pairs(self) -> list[Pair]:
        images, masks = self.root / "images", self.root / "masks"
        if (images / self.split).is_dir():
            return self._pair(images / self.split, masks / self.split)
        if (self.root / f"{self.split}.txt").exists():
            found = {pair.id: pair for pair in self._pair(images, masks)}
            names = [
                name.removesuffix(pathlib.PurePath(name).suffix) if name not in found else name
                for name in self.read_list(self.root, self.split)
            ]
            return [
                found.get(name, Pair(name, images / f"{name}.jpg", masks / f"{name}.png"))
                for name in names
            ]
        lists = [p.stem for p in self.root.glob("*.txt") if p.name != CLASSES_FILE]
        folders = [p.name for p in images.glob("*/")]
        if self.split not in ("train", "val") or lists or folders:
            there = ", ".join(sorted({*lists, *folders})) or "train, val"
            raise DataError(f"{self.root} has no split {self.split!r}; there are {there}")
        pairs = self._pair(images, masks)
        every = slice(self.val_every - 1, None, self.val_every)
        if self.split == "val":
            if len(pairs) < self.val_every:
                fewer = max(min(len(pairs), 5), 2)
                raise DataError(
                    f"{self.root}/images has {len(pairs)} images, too few to keep every "
                    f"{self.val_every}th for validation: write "
                    f'--config.data.options="val_every={fewer}" (segjax check: --options), or '
                    "choose them yourself in images/val and masks/val"
                )
            return pairs[every]
        del pairs[every]
        return pairs

    def describe(self, ids: Iterable[int]) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
        if self.classes:
            return self.classes, self.palette or colour_map(len(self.classes))
        ids = list(ids)
        if ids != list(range(len(ids))):
            shift = ",".join(f"{old}:{new}" for new, old in enumerate(ids))
            raise DataError(
                f"the masks of {self.root} hold the ids {spans(ids)}, which are not 0..C-1. Name "
                f"the classes in {self.root / CLASSES_FILE}, one a line by id, or renumber: "
                + MAP_EXAMPLE
                % shift
            )
        return tuple(f"class {i}" for i in ids), colour_map(len(ids))

    def _pair(self, images: pathlib.Path, masks: pathlib.Path) -> list[Pair]:
        """Pairs files by their path without suffix; one without a partner gets an expected one."""
        image_of = {_key(p, images): p for p in self.list_images(images, "**/*")}
        mask_of = {_key(p, masks): p for p in masks.glob("**/*") if p.suffix.lower() in MASKS}
        return [
            Pair(
                key,
                image_of.get(key, images / f"{key}.jpg"),
                mask_of.get(key, masks / f"{key}.png"),
            )
            for key in sorted({*image_of, *mask_of})
        ]


def read_classes(file: pathlib.Path) -> tuple[tuple[str, ...], dict[Colour, int]]:
    """Returns the names in classes.txt, and which id each colour stands for.

    Raises:
        DataError: there are no or too many names, or only some of them have colours.
    """
    names: list[str] = []
    colours: dict[Colour, int] = {}
    void = False
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        colour = words[-3:] if len(words) > 3 and all(w.isdigit() for w in words[-3:]) else []
        name = " ".join(words[: len(words) - len(colour)])
        at = f"{file}, line {number}: "
        if name == "void" and not colour:
            raise DataError(f"{at}void needs the colour that is ignored, 'void 0 0 0'")
        if void and name != "void":
            raise DataError(f"{at}the class {name!r} comes after void; lines named void come last")
        void = name == "void"
        if not void:
            if name in names:
                raise DataError(f"{at}the class {name!r} is there twice")
            if names and bool(colour) != bool(colours):
                raise DataError(f"{at}either every class has a colour or none, 'road 128 64 128'")
            names.append(name)
        if colour:
            rgb = tuple(map(int, colour))
            if max(rgb) > 255 or rgb in colours:
                raise DataError(f"{at}the colour {rgb} is above 255 or taken by another line")
            colours[rgb] = IGNORE_LABEL if void else len(names) - 1
    if not 1 <= len(names) <= IGNORE_LABEL:
        raise DataError(f"{file} names {len(names)} classes; 1 to 255 are needed, one a line")
    return tuple(names), colours


def _key(path: pathlib.Path, folder: pathlib.Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()
