"""Anyone's data: images and masks in folders.

    images/*.jpg masks/*.png    paired by name; every format that is read, one id per pixel
    classes.txt                 optional: a class a line, in the order of the ids

These are found by themselves; the options `images`, `masks` and `suffix` name others:

    images/ masks/, images/ labels/, JPEGImages/ SegmentationClass/     folders side by side
    train/images/ train/masks/ val/images/ val/masks/                   a folder a split
    images/train/ masks/train/ images/val/ masks/val/                   the same, the other way
    photo.jpg photo_mask.png                                            one folder, by a suffix

Splits are folders as above; or lists, `train.txt` and `val.txt` in the folder or in
ImageSets/Segmentation, an image a line (a name, a path, or the paths of image and mask); or
neither, and then every tenth image, by name, is the split `val` and the others are `train` (option
`val_every`).

With a class list (classes.txt, CVAT's labelmap.txt, labelme's class_names.txt and others) ids that
no line stands for are an error; without it the classes are 0..C-1 as the masks hold them, those of
the training split among them. Where each class has a colour masks may be RGB. Lines named `void`,
`ignore` or `__ignore__` give colours that are ignored.
"""

import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar

from segjax.data.builders.base import SegmentationBuilder
from segjax.data.examples import Pair
from segjax.data.folders import IMAGES, Walk, near_miss, printable, subfolders
from segjax.data.images import DataError
from segjax.data.labels import IGNORE_LABEL, MAP_EXAMPLE, Colour, colour_map, spans
from segjax.data.text import ClassLine, Line, columns, read_class_list

IMAGE_FOLDERS = ("images", "imgs", "img", "image", "JPEGImages")
MASK_FOLDERS = (
    *("masks", "labels", "mask", "label", "annotations", "SegmentationClassPNG"),
    *("SegmentationClass", "gt"),
)
SUFFIXES = ("_mask", "_label", "_labels", "_gt", "_seg", "_segmentation", "-mask", ".mask")
CLASS_FILES = (
    *("classes.txt", "labelmap.txt", "class_names.txt", "label_colors.txt", "classes.csv"),
    "classes.json",
)
LISTS = ("", "ImageSets/Segmentation")  # where the lists of splits may lie
VOID = {"void", "ignore", "__ignore__"}


class Folder(SegmentationBuilder):
    """Pairs images and masks by name; the module says how folders and splits are found.

    Options:
      images: folder of the images, below the folder of the data; "" looks for the usual names.
      masks: of the masks.
      suffix: what the name of a mask has more than that of its image, "_mask".
      val_every: which images are for validation where nothing else parts them.
    """

    IDS: ClassVar = {i: i for i in range(256)}
    LAYOUT = (
        "  images/*.jpg masks/*.png, with classes.txt, one name a line, if you like\n"
        "  or train/images train/masks val/images val/masks, or photo.jpg beside photo_mask.png\n"
        "  splits: images/train masks/train images/val masks/val, or train.txt and val.txt with "
        "names, or every tenth image is for validation"
    )

    def __init__(
        self,
        root: str = "",
        split: str = "train",
        *,
        images: str = "",
        masks: str = "",
        suffix: str = "",
        val_every: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, split, **kwargs)
        if not isinstance(val_every, int) or val_every < 2:
            raise ValueError(f"option val_every={val_every!r} of 'folder': at least 2 is needed")
        self.val_every, self._suffix = val_every, suffix
        self._names = (images,) if images else IMAGE_FOLDERS, (masks,) if masks else MASK_FOLDERS
        self.classes: tuple[str, ...] = ()
        self.palette: tuple[Colour, ...] = ()
        for name in CLASS_FILES:
            if (self.root / name).is_file():
                self.classes, colours = read_classes(self.root / name)
                self.palette = tuple(c for c, i in colours.items() if i != IGNORE_LABEL)
                self.ids = {i: i for i in (*range(len(self.classes)), IGNORE_LABEL)}
                self.colours = colours or None
                break

    @property
    def knows_classes(self) -> bool:
        return bool(self.classes)

    def fingerprint(self) -> list:
        return [*super().fingerprint(), self.classes, list((self.colours or {}).items())]

    def find_pairs(self) -> list[Pair]:
        for above, below in ((self.split, ""), ("", self.split)):
            images, masks = self._folders(self.root / above, below)
            if images is not None and masks is not None:
                return self._pair(images, masks)
        images, masks = self._folders(self.root, "")
        if images is None or masks is None:
            images = masks = self.root  # one folder, by a suffix
        if file := self._list(self.split):
            return self._listed(file, images, masks)
        lists = sorted({name for name in ("train", "val", "test") if self._list(name)})
        folders = sorted({p.name for p in subfolders(images) if images != masks})
        if self.split not in ("train", "val") or lists or folders:
            there = ", ".join(sorted({*lists, *folders})) or "train, val"
            raise DataError(f"{self.root} has no split {self.split!r}; there are {there}")
        pairs = self._pair(images, masks)
        every = slice(self.val_every - 1, None, self.val_every)
        if self.split == "val":
            if len(pairs) < self.val_every:
                fewer = max(min(len(pairs), 5), 2)
                raise DataError(
                    f"{images} has {len(pairs)} images, too few to keep every "
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
                f"the classes in {self.root / CLASS_FILES[0]}, one a line by id, or renumber: "
                + MAP_EXAMPLE
                % shift
            )
        return tuple(f"class {i}" for i in ids), colour_map(len(ids))

    def _folders(
        self, above: pathlib.Path, below: str
    ) -> tuple[pathlib.Path | None, pathlib.Path | None]:
        """Returns the folders of images and masks in `above`, each with a subfolder `below`."""
        if below == above.name == "":
            return None, None
        found = []
        for names in self._names:
            there = [above / name / below for name in names if (above / name / below).is_dir()]
            found.append(there[0] if there else None)
        return found[0], found[1]

    def _list(self, split: str) -> pathlib.Path | None:
        files = [self.root / folder / f"{split}.txt" for folder in LISTS]
        return next((file for file in files if file.is_file()), None)

    def _pair(self, images: pathlib.Path, masks: pathlib.Path) -> list[Pair]:
        """Pairs files by their path without suffix; one without a partner gets an expected one."""
        found = self.images_below(images)
        if images == masks:
            suffix = self._suffix or _suffix_of([p.stem for p in found.files])
            if not suffix:
                raise DataError(self._misplaced(f"{images} has no folders of images and masks"))
            image_of = {k: p for k, p in found.by_stem().items() if not k.endswith(suffix)}
            mask_of = {
                k.removesuffix(suffix): p for k, p in found.by_stem().items() if k.endswith(suffix)
            }
        else:
            image_of = found.by_stem()
            walk = Walk(masks, (*IMAGES, ".gif"))
            self.skipped += [line for line in walk.skipped if line not in self.skipped]
            suffix = self._suffix or (
                "" if walk.by_stem().keys() & image_of.keys() else _suffix_of(walk.by_stem())
            )
            mask_of = {k.removesuffix(suffix): p for k, p in walk.by_stem().items()}
        return [
            Pair(
                printable(key),
                image_of.get(key, images / f"{key}.jpg"),
                mask_of.get(key, masks / f"{key}{suffix}.png"),
            )
            for key in sorted({*image_of, *mask_of})
        ]

    def _listed(self, file: pathlib.Path, images: pathlib.Path, masks: pathlib.Path) -> list[Pair]:
        """Returns the pairs that the lines of a list name."""
        found = {pair.id: pair for pair in self._pair(images, masks)}
        return [
            self._of_line(line, file, found, images, masks)
            for line in self.read_list(file.parent, self.split)
        ]

    def _of_line(
        self,
        line: Line,
        file: pathlib.Path,
        found: dict[str, Pair],
        images: pathlib.Path,
        masks: pathlib.Path,
    ) -> Pair:
        if line.text in found:  # a name may hold blanks
            return found[line.text]
        words = columns(line.text)
        named = [self.inside(self.root / w.lstrip("/"), line, file) for w in words]
        if len(words) == 2 and named[0].is_file():
            return Pair(printable(named[0].stem), *named)
        for text in (line.text, words[0]):
            below = text.removeprefix(f"{images.name}/")
            path = pathlib.PurePath(below)
            for key in (below, path.with_suffix("").as_posix()):
                if key in found:
                    return found[key]
        wanted = images / line.text
        near = near_miss(wanted)
        raise DataError(
            f"{file}, line {line.number}: {line.text!r} names no image of {images}"
            + (f": {near}" if near else "")
            + ". Write a name, 'a', a path, 'images/a.png', or two, 'images/a.png masks/a.png'"
        )


def read_classes(file: pathlib.Path) -> tuple[tuple[str, ...], dict[Colour, int]]:
    """Returns the names of a class list, and which id each colour stands for.

    Raises:
        DataError: there are no or too many names, or only some of them have colours.
    """
    lines = read_class_list(file)
    classes = [line for line in lines if line.name.lower() not in VOID]
    void = [line for line in lines if line.name.lower() in VOID]
    _check_classes(file, lines, classes, void)
    colours = {line.colour: i for i, line in enumerate(classes) if line.colour}
    colours |= {line.colour: IGNORE_LABEL for line in void if line.colour}
    return tuple(line.name for line in classes), colours


def _check_classes(
    file: pathlib.Path, lines: list[ClassLine], classes: list[ClassLine], void: list[ClassLine]
) -> None:
    taken: dict[Colour, ClassLine] = {}
    names: dict[str, ClassLine] = {}
    for line in lines:
        at = f"{file}, line {line.number}: "
        if line.name == "void" and not line.colour:
            raise DataError(f"{at}void needs the colour that is ignored, 'void 0 0 0'")
        if line in classes and line.name in names:
            raise DataError(f"{at}the class {line.name!r} is there twice")
        if line in classes and void and line.number > void[0].number and void[0].colour:
            raise DataError(f"{at}the class {line.name!r} comes after void; void comes last")
        if line.colour in taken:
            other = taken[line.colour]
            raise DataError(f"{at}{line.name!r} has the colour {line.colour} of {other.name!r}")
        if line.colour:
            taken[line.colour] = line
        names[line.name] = line
    if len({bool(line.colour) for line in classes}) > 1:
        without = next(line for line in classes if not line.colour)
        raise DataError(
            f"{file}, line {without.number}: either every class has a colour or none, "
            "'road 128 64 128'"
        )
    if not 1 <= len(classes) <= IGNORE_LABEL:
        raise DataError(f"{file} names {len(classes)} classes; 1 to 255 are needed, one a line")


def _suffix_of(stems: Iterable[str]) -> str:
    """Returns the suffix that the names of masks have, where there are some with one."""
    stems = list(stems)
    counts = {suffix: sum(stem.endswith(suffix) for stem in stems) for suffix in SUFFIXES}
    best = max(counts, key=lambda suffix: counts[suffix])
    return best if counts[best] else ""
