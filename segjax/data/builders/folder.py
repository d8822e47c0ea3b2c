"""Anyone's data: images and masks in folders, with classes and splits as they are found.

    images/*.jpg masks/*.png              or labels, annotations, SegmentationClass, ...
    train/images train/masks val/images val/masks
    train train_masks val val_masks
    *.jpg *_mask.png                      in one folder, or in train and val
    images/*.jpg annotations.json         COCO: see data/coco.py

Image and mask are paired by their path without ending. Masks are files of one id per pixel, of any
format that loses nothing, or RGB where a list of classes says what colours mean. With a palette
they are what its colours mean, where the list has them all; else its indices are the ids, and must
have the same colours in all files.

Splits are, in this order: folders, `images/train` and `masks/train` or `train/images` and
`train/masks`; lists of images, `train.txt`, as `segjax.data.lists` reads them, in the folder or in
`ImageSets/Segmentation`; or neither, and then every tenth image, by name, is the split `val` and
the others are `train` (option `val_every`). The same holds for the images of a single list.

Classes are those of a list, `classes.txt`, CVAT's `labelmap.txt`, labelme's `class_names.txt`: see
`segjax.data.classes`. Then ids that it does not name are an error. Without a list the classes are
0..C-1 as the masks hold them, at most 32, those of the training split among them.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import classes as class_lists
from segjax.data import coco, folders, images
from segjax.data.builders.base import SegmentationBuilder
from segjax.data.classes import read_classes
from segjax.data.examples import Pair, same_colour
from segjax.data.images import DataError
from segjax.data.labels import MAP_EXAMPLE, Colour, colour_map, spans, to_train_ids
from segjax.data.lists import Index, read_list
from segjax.ops import IGNORE_LABEL

IMAGES = (
    *("images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "input", "inputs"),
    *("rgb", "img_dir", "frames"),
)
MASKS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "segmentationclass"),
    *("segmentationclasspng", "gt", "ground_truth", "groundtruth", "targets", "target"),
    *("segmentation", "segmentations", "ann_dir", "anno"),
)
SUFFIXES = ("_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt", "_L", "-mask")
IMAGE_SUFFIXES = ("_image", "_img", "_sat", "_rgb", "_leftImg8bit")  # only with one of the above
MOST_UNNAMED = 32  # classes without a list: more are hardly meant
SPLITS = {  # other names of a split's folder or list
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the files of a split are, or of all splits."""

    images: pathlib.Path
    masks: pathlib.Path
    image_suffix: str = ""
    mask_suffix: str = ""
    split: bool = False  # it holds the split alone


class Folder(SegmentationBuilder):
    """Pairs images and masks; the module says how they are found.

    Options:
      images: folder of the images, below the folder of the data; "" looks for the usual names.
      masks: of the masks.
      suffix: what the name of a mask has more than that of its image, "_mask".
      classes: name of the list of classes; "" looks for the usual ones.
      val_every: which images are for validation where nothing else parts them.
      drawn: what masks were drawn on where an EXIF orientation keeps the size of an image:
        "upright" ones, as annotation tools show them, or "stored" ones.
    """

    VERSION = tfds.core.Version("1.1.0")  # 1.0.0 did not compare palettes
    IDS: ClassVar = {i: i for i in range(256)}
    LISTS: ClassVar = ("", "ImageSets/Segmentation", "ImageSets", "splits", "lists")
    LAYOUT = (
        "  images/*.jpg masks/*.png, with classes.txt, one name a line, if you like\n"
        "  or images/ and labels/, train/images and train/masks, *.jpg and *_mask.png in one "
        "folder,\n"
        "  images/*.jpg and annotations.json (COCO); other names by\n"
        "  --config.data.options=\"images='photos',masks='ids',suffix='_id'\" (segjax check: "
        "--options)\n"
        "  splits: images/train masks/train images/val masks/val, or train.txt and val.txt with "
        "names, or every tenth image is for validation"
    )

    def __init__(
        self,
        root: str = "",
        split: str = "train",
        *,
        val_every: int = 10,
        images: str = "",
        masks: str = "",
        suffix: str = "",
        classes: str = "",
        drawn: str = "upright",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, split, **kwargs)
        if not isinstance(val_every, int) or val_every < 2:
            raise ValueError(f"option val_every={val_every!r} of 'folder': at least 2 is needed")
        for option, value in (("images", images), ("masks", masks), ("suffix", suffix)):
            if not isinstance(value, str):
                raise ValueError(f"option {option}={value!r} of 'folder': a text is needed, in ''")
        if drawn not in ("upright", "stored"):
            raise ValueError(f"option drawn={drawn!r} of 'folder': 'upright' or 'stored'")
        self.val_every, self.drawn = val_every, drawn
        self._images, self._masks, self._suffix = images, masks, suffix
        self.classes: tuple[str, ...] = ()
        self.palette: tuple[Colour, ...] = ()
        self._coco: coco.Annotations | None = None
        if file := self._class_list(classes):
            self._take_classes(*read_classes(file))
        elif self.root.is_dir() and (found := self._find_coco()):
            self._take_coco(found)

    def _take_classes(self, names: tuple[str, ...], codes: dict[int | Colour, int]) -> None:
        self.classes = names
        self.ids = {code: i for code, i in codes.items() if isinstance(code, int)}
        self.colours = {c: i for c, i in codes.items() if not isinstance(c, int)} or None
        of = {i: c for c, i in (self.colours or {}).items()}
        self.palette = tuple(of[i] for i in range(len(names)) if i in of)

    def _take_coco(self, annotations: coco.Annotations) -> None:
        self._coco = annotations
        self._take_classes(annotations.classes, {i: i for i in annotations.ids})

    def number_like(self, splits: Iterable[str]) -> None:
        if self._coco:
            first = next(filter(None, map(self._annotations, splits)), self._coco)
            self._take_coco(self._coco.numbered_like(first))

    @property
    def knows_classes(self) -> bool:
        return bool(self.classes)

    def fingerprint(self) -> list:
        colours = [[list(c), i] for c, i in (self.colours or {}).items()]
        return [*super().fingerprint(), self.classes, sorted(self.ids.items()), colours]

    def describe(
        self, ids: Iterable[int], ignored: float = 0.0
    ) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
        if self.classes:
            return self.classes, self.palette or colour_map(len(self.classes))
        ids = list(ids)
        text = f"the masks of {self.root} hold the ids {spans(ids)}"
        listed = f"{self.root / 'classes.txt'}, one a line by id"
        if len(ids) > MOST_UNNAMED:
            raise DataError(
                f"{text}. So many come from interpolation or JPEG: export the masks as PNG, and "
                f"resize them by the nearest neighbour. If all are classes, name them in {listed}"
            )
        if ids != list(range(len(ids))):
            shift = ",".join(f"{old}:{new}" for new, old in enumerate(ids))
            void = (
                f". {IGNORE_LABEL}, {ignored:.1%} of the pixels, is ignored; if it is a class, add "
                f"{IGNORE_LABEL}:{len(ids)} there"
            )
            raise DataError(
                f"{text}, which are not 0..C-1. Name the classes in {listed}, or renumber: "
                + MAP_EXAMPLE % shift
                + (void if ignored else "")
            )
        return tuple(f"class {i}" for i in ids), colour_map(len(ids))

    def read_label(self, pair: Pair) -> np.ndarray:
        if self._coco:
            label = self._coco.draw(pair.image)
            return to_train_ids(label, self.ids, label_map=self.label_map)
        mask, palette = images.read_mask_and_palette(pair.mask.read_bytes())
        if palette is not None and (table := self._of_palette(np.unique(mask), palette, pair)):
            numbers = np.zeros(256, np.uint8)
            numbers[list(table)] = list(table.values())
            ids = {i: i for i in (*self.ids.values(), IGNORE_LABEL)}
            return to_train_ids(numbers[mask], ids, label_map=self.label_map)
        return to_train_ids(mask, self.ids, label_map=self.label_map, colours=self.colours)

    def _of_palette(self, used: np.ndarray, palette: np.ndarray, pair: Pair) -> dict[int, int]:
        """Returns the train ids of the indices of a mask, where the list of classes has all their
        colours; else none, and the indices are ids.

        Raises:
            DataError: the colours contradict that; the message does not name the mask.
        """
        listed = self.colours or {}
        colours = {i: tuple(palette[i].tolist()) for i in used.tolist() if i < len(palette)}
        void = colours.pop(IGNORE_LABEL, None)  # unless it is the colour of a class, and no padding
        if void in listed and not (palette[:IGNORE_LABEL] == void).all(-1).any():
            colours[IGNORE_LABEL] = void
        unlisted = {i: colour for i, colour in colours.items() if colour not in listed}
        if colours and not unlisted:
            beyond = [i for i in used.tolist() if len(palette) <= i < IGNORE_LABEL]
            if beyond:
                raise DataError(
                    f"has the index {beyond[0]}, but its palette ends at {len(palette) - 1}; "
                    "export the mask again"
                )
            return {IGNORE_LABEL: IGNORE_LABEL} | {i: listed[c] for i, c in colours.items()}
        if len(palette) > 1 and (palette == np.arange(len(palette))[:, None]).all():
            return {}  # greys that are the indices, as programs write them that know no colours
        for i, colour in colours.items():
            if colour in listed and self.ids.get(self.label_map.get(i, i)) != listed[colour]:
                other = min(unlisted.values())
                raise DataError(
                    f"has the colours {colour} and {other} in its palette, and the list of classes "
                    f"names the first alone; add the other there, as "
                    f"'void {' '.join(map(str, other))}' if it is to be ignored"
                )
            name = folders.printable(pair.mask.relative_to(self.root).as_posix())
            same_colour(self.summary.palette, str(i), colour, name)
        return {}

    def find_pairs(self) -> list[Pair]:
        if self._coco:
            pairs, split = self._coco_pairs()
        else:
            place = self._find_place()
            if place is None:
                there = folders.some(folders.names(self.root)) if self.root.is_dir() else ""
                what = f"holds {there or 'nothing'}" if self.root.is_dir() else "does not exist"
                raise DataError(self.misplaced(f"{folders.printable(self.root)} {what}"))
            if not place.split and (found := self._list()):
                return self._listed(place, found)
            pairs, split = self._all_pairs(place), place.split
            others = [p.stem for p in self._lists() if p.stem.lower() not in ("default", "all")]
            others += [] if split else [p.name for p in folders.subfolders(place.images)]
            if not split and (self.split not in ("train", "val") or self._other_split(others)):
                there = ", ".join(sorted(others)) or "train, val"
                raise DataError(
                    f"{folders.printable(self.root)} has no split {self.split!r}; there are {there}"
                )
        return pairs if split else self._every(pairs)

    def _every(self, pairs: list[Pair]) -> list[Pair]:
        """Returns the part of the split, where nothing in the folder divides images."""
        every = slice(self.val_every - 1, None, self.val_every)
        if self.split == "val":
            if len(pairs) < self.val_every:
                fewer = max(min(len(pairs), 5), 2)
                raise DataError(
                    f"{self.root} has {len(pairs)} images, too few to keep every "
                    f"{self.val_every}th for validation: write "
                    f'--config.data.options="val_every={fewer}" (segjax check: --options), or '
                    "choose them yourself in images/val and masks/val"
                )
            return pairs[every]
        del pairs[every]
        return pairs

    def _all_pairs(self, place: Place) -> list[Pair]:
        """Pairs all files of a place; a mask without its image is there too."""
        pairs = self.pair(
            place.images,
            place.masks,
            image_suffix=place.image_suffix,
            mask_suffix=place.mask_suffix,
        )
        if place.images == place.masks:
            return [p for p in pairs if not p.image.stem.endswith(place.mask_suffix)]
        taken = {pair.mask for pair in pairs}
        for name, mask in folders.Walk(place.masks).by_stem(place.mask_suffix).items():
            if mask not in taken:
                pairs.append(
                    Pair(
                        folders.printable(name),
                        place.images / f"{name}{place.image_suffix}.jpg",
                        mask,
                    )
                )
        return sorted(pairs, key=lambda pair: pair.id)

    def _listed(self, place: Place, file: pathlib.Path) -> list[Pair]:
        files = self.images_below(place.images).by_stem(place.image_suffix).values()
        mask_of = folders.Walk(place.masks).by_stem(place.mask_suffix)
        masks = mask_of.values()
        if place.images == place.masks:
            files = [p for p in files if p not in set(masks)]
        pairs = read_list(
            file,
            Index(files, place.images, self.root, ".jpg", place.image_suffix),
            Index(masks, place.masks, self.root, f"{place.mask_suffix}.png", place.mask_suffix),
            mask_of,
        )
        if file.stem.lower() in ("default", "all"):
            return self._every(sorted(pairs, key=lambda pair: pair.id))
        return pairs

    def _lists(self) -> list[pathlib.Path]:
        """Returns the lists of images that there are."""
        found = []
        for place in (self.root / name for name in self.LISTS):
            if place.is_dir():
                files = folders.Walk(place, (".txt",), deep=False).files
                named = {*class_lists.FILES, "readme.txt", "license.txt", "licence.txt"}
                found += [
                    f
                    for f in files
                    if f.name.lower() not in named
                    and (place != self.root or f.stem.lower() in _known_lists(self.split))
                ]
        return found

    def _list(self) -> pathlib.Path | None:
        """Returns the list of the split, or the only one."""
        files = self._lists()
        wanted = SPLITS.get(self.split, (self.split,))
        found = [f for f in files if f.stem.lower() in {*wanted, self.split.lower()}]
        exact = [f for f in found if f.stem == self.split]
        if len(exact or found) > 1:
            both = " and ".join(map(folders.printable, exact or found))
            raise DataError(f"{both} may both be the list of {self.split!r}; remove one")
        if not found and [f.stem.lower() for f in files] in (["default"], ["all"]):
            return files[0]
        return next(iter(exact or found), None)

    def _other_split(self, names: list[str]) -> bool:
        """Whether names are those of splits, so that images are divided already."""
        known = {alias for aliases in SPLITS.values() for alias in aliases}
        return any(name.lower() in known for name in names)

    def _class_list(self, given: str) -> pathlib.Path | None:
        """Returns the list of classes.

        Raises:
            DataError: the one that is given is missing, or two differ.
        """
        if given:
            file = self.root / given
            if not file.is_file():
                near = folders.in_brackets(folders.near_miss(file))
                raise DataError(f"{folders.printable(file)} does not exist{near}")
            return file
        if not self.root.is_dir():
            return None
        endings = (".txt", ".csv", ".json")
        places = (self.root, *_named(self.root, SPLITS["train"]))
        there = [p for place in places for p in folders.Walk(place, endings, deep=False).files]
        found = [p for p in there if p.name.lower() in class_lists.FILES]
        found.sort(key=lambda p: class_lists.FILES.index(p.name.lower()))
        if len(found) > 1 and any(read_classes(p) != read_classes(found[0]) for p in found[1:]):
            both = " and ".join(folders.printable(p.relative_to(self.root)) for p in found)
            raise DataError(
                f"{both} in {folders.printable(self.root)} list different classes; remove one, or "
                f"write --config.data.options=\"classes='{found[0].name}'\" "
                "(segjax check: --options)"
            )
        return next(iter(found), None)

    # Where the files are

    def _find_place(self) -> Place | None:
        """Returns where images and masks of the split are, or of all splits.

        Raises:
            DataError: several folders may be meant, or one that is given is not there.
        """
        root, aliases = self.root, SPLITS.get(self.split, (self.split,))
        for option, name in (("images", self._images), ("masks", self._masks)):
            if name and not (root / name).is_dir():
                raise DataError(
                    f"option {option}={name!r}: {folders.printable(root / name)} is no folder"
                    f"{folders.in_brackets(folders.near_miss(root / name))}"
                )
        if not root.is_dir():
            return None
        if place := self._two_folders(root):
            inner = _named(place.images, aliases), _named(place.masks, aliases)
            if inner[0]:
                masks = inner[1][0] if inner[1] else place.masks / inner[0][0].name
                return dataclasses.replace(place, images=inner[0][0], masks=masks, split=True)
            return place
        for folder in _named(root, aliases):
            if place := self._two_folders(folder) or _one_folder(folder, self._suffix):
                return dataclasses.replace(place, split=True)
        for alias in aliases:
            pictures = _named(root, (alias, f"{alias}_images", f"{alias}_imgs"))
            endings = (*("_masks", "_mask", "_labels", "_label", "annot", "_annot", "_gt"),)
            masks = _named(root, [f"{alias}{ending}" for ending in endings])
            if pictures and masks:
                self._only(masks, "masks")
                return _with_suffix(pictures[0], masks[0], self._suffix, split=True)
        return _one_folder(root, self._suffix)

    def _two_folders(self, root: pathlib.Path) -> Place | None:
        """Returns the folders of images and of masks in a folder."""
        pictures = [root / self._images] if self._images else _named(root, IMAGES)
        masks = [root / self._masks] if self._masks else _named(root, MASKS)
        pictures = [p for p in pictures if p.is_dir()]
        if not self._masks:
            masks = [p for p in masks if _has_pictures(p)]
        if not pictures:
            return None
        if not masks:
            inside = _one_folder(pictures[0], self._suffix)
            # Without any masks the likely place is named, and each image without one.
            return inside or (
                None if self._coco_files(self.split) else Place(pictures[0], root / "masks")
            )
        self._only(pictures, "images")
        self._only(masks, "masks")
        return _with_suffix(pictures[0], masks[0], self._suffix)

    def _only(self, found: list[pathlib.Path], option: str) -> None:
        if len(found) > 1:
            both = " and ".join(folders.printable(p.relative_to(self.root)) for p in found)
            raise DataError(
                f"{both} in {folders.printable(self.root)} may both hold the {option}; write "
                f"--config.data.options=\"{option}='{found[0].relative_to(self.root)}'\" "
                "(segjax check: --options)"
            )

    # COCO

    def _coco_files(self, split: str) -> list[pathlib.Path]:
        """Returns the files of annotations, those of a split alone where there are such."""
        aliases = SPLITS.get(split, (split,))
        own, common = [], []
        for place in (self.root, self.root / "annotations", *_named(self.root, aliases)):
            if not place.is_dir():
                continue
            files = [p for p in folders.Walk(place, (".json",), deep=False).files]
            files = [p for p in files if p.name.lower() not in class_lists.FILES]
            files += [p for p in [place / "_annotations.coco.json"] if p.is_file()]
            for file in dict.fromkeys(files):
                words = file.stem.lower().replace("-", "_").replace(".", "_").split("_")
                words = [word.rstrip("0123456789") for word in words]
                if place.name.lower() in aliases or any(word in aliases for word in words):
                    own.append(file)
                elif not any(word in names for word in words for names in SPLITS.values()):
                    common.append(file)
        return own or common

    def _find_coco(self) -> coco.Annotations | None:
        if not self._coco_files(self.split):
            return None
        try:
            if self._find_place():
                return None  # masks are files
        except DataError:
            return None
        return self._annotations(self.split)

    def _annotations(self, split: str) -> coco.Annotations | None:
        found = [a for a in map(coco.read, self._coco_files(split)) if a]
        if len(found) > 1:
            both = " and ".join(folders.printable(a.file) for a in found)
            raise DataError(f"{both} may both hold the annotations; move one elsewhere")
        return found[0] if found else None

    def _coco_pairs(self) -> tuple[list[Pair], bool]:
        """Returns the images that the annotations name, and whether they are the split's alone."""
        assert self._coco is not None
        walked = folders.Walk(self.root)
        index = Index(walked.files, self.root, self.root, ".jpg")
        pairs, missing = self._coco.pairs(index, walked.files)
        if missing:
            self.skipped.append(
                f"{self.root}: {len(missing)} images are not in {self._coco.file.name} "
                f"({folders.some(p.relative_to(self.root) for p in missing)})"
            )
        aliases = SPLITS.get(self.split, (self.split,))
        words = self._coco.file.relative_to(self.root).as_posix().lower()
        return pairs, any(alias in words for alias in aliases)


def _known_lists(split: str) -> set[str]:
    known = {alias for aliases in SPLITS.values() for alias in aliases}
    return {*known, "trainval", "default", "all", split.lower()}


def _named(folder: pathlib.Path, names: Iterable[str]) -> list[pathlib.Path]:
    """Returns the folders in a folder that have one of some names, upper case or lower."""
    wanted = {name.lower() for name in names}
    if not folder.is_dir():
        return []
    return [p for p in folders.subfolders(folder) if p.name.lower() in wanted]


def _has_pictures(folder: pathlib.Path) -> bool:
    return bool(folders.Walk(folder).files)


def _with_suffix(
    pictures: pathlib.Path, masks: pathlib.Path, suffix: str, *, split: bool = False
) -> Place:
    """Returns two folders, and the suffix that all masks have and no image."""
    stems = [p.stem for p in folders.Walk(masks).files]
    taken = {p.stem for p in folders.Walk(pictures).files}
    for end in [suffix] if suffix else SUFFIXES:
        if stems and all(s.endswith(end) for s in stems) and not taken & set(stems):
            common = (e for e in IMAGE_SUFFIXES if taken and all(s.endswith(e) for s in taken))
            return Place(pictures, masks, next(common, ""), end, split)
    return Place(pictures, masks, split=split)


def _one_folder(folder: pathlib.Path, suffix: str) -> Place | None:
    """Returns a folder that holds images and masks, which a suffix of their names tells apart."""
    stems = {p.stem for p in folders.Walk(folder).files}
    found = []
    for end in [suffix] if suffix else SUFFIXES:
        masks = {s for s in stems if s.endswith(end)}
        for other in ("", *IMAGE_SUFFIXES):
            partners = {s.removesuffix(end) + other for s in masks} & (stems - masks)
            if masks and partners and 2 * len(partners) >= len(masks):
                found.append((len(partners), Place(folder, folder, other, end)))
    return max(found, key=lambda pair: pair[0])[1] if found else None
