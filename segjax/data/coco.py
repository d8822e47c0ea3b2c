"""Annotations in COCO's JSON as semantic masks.

Class 0 is the background, which no annotation covers; the categories follow by their ids. Where
each split has a file of its own, that of the training split numbers the classes, and the others
follow by name. Where annotations overlap, the smaller one lies on top, and of two of one size the
later one. A crowd (`iscrowd` 1) is ignored, 255, except where another annotation lies on it. A
category called background is class 0 itself, and one called void or ignore is ignored.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as rle

from segjax.data import text
from segjax.data.classes import VOID
from segjax.data.examples import Pair
from segjax.data.folders import key, printable
from segjax.data.images import DataError
from segjax.data.lists import Index
from segjax.ops import IGNORE_LABEL

BACKGROUND = ("background", "_background_")
PARTS = ("images", "annotations", "categories")


@dataclasses.dataclass(frozen=True)
class Annotations:
    """A file of annotations."""

    file: pathlib.Path
    classes: tuple[str, ...]  # by train id
    train_ids: Mapping[int, int]  # category: train id
    images: tuple[Mapping[str, Any], ...]
    of_image: Mapping[Any, tuple[Mapping[str, Any], ...]]  # id of an image: its annotations
    of_path: dict[pathlib.Path, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def ids(self) -> list[int]:
        """Train ids that a mask may hold."""
        return [*range(len(self.classes)), IGNORE_LABEL]

    def pairs(
        self, index: Index, files: Iterable[pathlib.Path]
    ) -> tuple[list[Pair], list[pathlib.Path]]:
        """Returns the images that are annotated, and the files that are not.

        Args:
            index: finds a file by its path below the data set.
            files: all images of the data set.

        Raises:
            DataError: an image is named twice.
        """
        files = list(files)
        by_tail: dict[str, list[pathlib.Path]] = {}
        for path in files:
            by_tail.setdefault(path.name, []).append(path)
        pairs = []
        for image in self.images:
            name = str(image["file_name"])
            path = index.find(name)
            if path is None:  # named from another folder
                same = [p for p in by_tail.get(pathlib.PurePath(name.replace("\\", "/")).name, [])]
                ending = [p for p in same if p.as_posix().endswith(f"/{name.lstrip('./')}")]
                same = ending or same
                if len(same) > 1:
                    raise DataError(
                        f"{printable(self.file)} names {name}, which {printable(same[0])} and "
                        f"{printable(same[1])} may be; write its path below the data set"
                    )
                path = same[0] if same else index.expect(name)
            if ".." in path.parts or not path.is_relative_to(index.root):
                raise DataError(
                    f"{printable(self.file)} names the image {name!r}, which is no path below "
                    f"{printable(index.root)}"
                )
            if path in self.of_path and self.of_path[path] is not image:
                raise DataError(f"{printable(self.file)} has the image {name} twice; remove one")
            self.of_path[path] = image
            pairs.append(
                Pair(printable(key(path, index.root)), path, self.file, f"{self.file.name}")
            )
        pairs.sort(key=lambda pair: pair.id)
        return pairs, [path for path in files if path not in self.of_path]

    def numbered_like(self, other: "Annotations") -> "Annotations":
        """Returns the annotations with the train ids that another file gives to the same names.

        Raises:
            DataError: the other file lacks one of the names.
        """
        names = {c: self.classes[i] for c, i in self.train_ids.items() if i != IGNORE_LABEL}
        for category, name in names.items():
            if name not in other.classes:
                raise DataError(
                    f"{printable(self.file)} has the category {category} {name!r}, which "
                    f"{printable(other.file)} lacks, by which the classes are numbered; write the "
                    "same categories in both"
                )
        named = {category: other.classes.index(name) for category, name in names.items()}
        return dataclasses.replace(
            self, classes=other.classes, train_ids={**self.train_ids, **named}
        )

    def draw(self, path: pathlib.Path) -> np.ndarray:
        """Draws the train ids of an image, uint8 [H, W].

        Raises:
            DataError: an annotation cannot be drawn; the message names it.
        """
        image = self.of_path[path]
        height, width = (self._size(image, side) for side in ("height", "width"))
        label = np.zeros((height, width), np.uint8)
        drawn = []
        for place, annotation in enumerate(self.of_image.get(image["id"], ())):
            at = (
                f"has the annotation {annotation.get('id', place)} of {printable(path.name)}, whose"
            )
            category = annotation.get("category_id")
            if category not in list(self.train_ids):  # a list or dictionary has no hash
                raise DataError(f"{at} category {category!r} is none of its categories")
            mask = _mask(annotation.get("segmentation"), height, width, at)
            crowd = bool(annotation.get("iscrowd"))
            train_id = IGNORE_LABEL if crowd else self.train_ids[category]
            drawn.append((not crowd, -int(mask.sum()), place, mask, train_id))
        for *_, mask, train_id in sorted(drawn, key=lambda d: d[:3]):
            label[mask] = train_id
        return label

    def _size(self, image: Mapping[str, Any], side: str) -> int:
        value = image.get(side)
        if type(value) is not int or not 0 < value < 2**16:
            raise DataError(f"gives the image {image['file_name']} the {side} {value!r}")
        return value


@functools.lru_cache(maxsize=8)
def _read(file: pathlib.Path, changed: int) -> Annotations | None:
    try:
        values = json.loads(text.read_text(file))
    except (ValueError, RecursionError) as error:
        raise (
            error
            if isinstance(error, DataError)
            else DataError(f"{printable(file)} is no JSON: {error}")
        ) from error
    if not isinstance(values, dict) or "annotations" not in values or "images" not in values:
        return None
    for part in PARTS:
        if not isinstance(values.get(part), list) or not all(
            isinstance(item, dict) for item in values[part]
        ):
            raise DataError(
                f"{printable(file)}: {part!r} is no list of dictionaries, as COCO has them"
            )
    try:
        categories = sorted((int(c["id"]), str(c["name"])) for c in values["categories"])
        images = tuple(values["images"])
        for image in images:
            hash(image["id"]), str(image["file_name"]).encode()
        for _, name in categories:
            name.encode()  # half a character is no text
        of_image: dict[Any, list] = {}
        for annotation in values["annotations"]:
            of_image.setdefault(annotation["image_id"], []).append(annotation)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{printable(file)} lacks a part of COCO's annotations: {error}") from error
    names = ["background"]
    train_ids = {}
    for category, name in categories:
        if category in train_ids or (name in names and name.casefold() not in BACKGROUND):
            raise DataError(f"{printable(file)} has the category {category} {name!r} twice")
        if name.casefold() in BACKGROUND:
            train_ids[category] = 0
        elif name.casefold() in VOID:
            train_ids[category] = IGNORE_LABEL
        else:
            train_ids[category] = len(names)
            names.append(name)
    if len(names) > IGNORE_LABEL:
        raise DataError(f"{printable(file)} has {len(names)} categories; up to 254 are possible")
    grouped = {image: tuple(items) for image, items in of_image.items()}
    return Annotations(file, tuple(names), train_ids, images, grouped)


def read(file: pathlib.Path) -> Annotations | None:
    """Reads a file of annotations; None where it is JSON of another kind.

    Raises:
        DataError: the file is damaged, or lacks a part of what COCO's annotations have.
    """
    return _read(file, file.stat().st_mtime_ns)


def _mask(segmentation: Any, height: int, width: int, at: str) -> np.ndarray:
    """Rasterises polygons, or run lengths down the columns, to bool [H, W]."""
    try:
        if isinstance(segmentation, dict):
            size, counts = segmentation["size"], segmentation["counts"]
            if list(size) != [height, width]:
                raise ValueError(f"size {size} is not that of the image, [{height}, {width}]")
            return _of_runs(counts, height, width)
        polygons = segmentation or []
        if polygons and not isinstance(polygons[0], list):
            polygons = [polygons]
        if any(len(p) < 6 or len(p) % 2 or not np.isfinite(p).all() for p in polygons):
            raise ValueError("polygon needs three corners or more, x and y each")
        if any(np.abs(p).max() > 2**20 for p in polygons):
            raise ValueError("polygon lies far outside the image")
        if not polygons:
            return np.zeros((height, width), bool)
        merged = rle.merge(rle.frPyObjects(polygons, height, width))
        return _of_runs(merged["counts"], height, width)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{at} {error}") from error


def _of_runs(counts: list[int] | str | bytes, height: int, width: int) -> np.ndarray:
    """Decodes run lengths of zeros and ones in turn, down the columns, to bool [H, W]."""
    runs = counts if isinstance(counts, list) else _run_lengths(counts)
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError("run lengths do not add up to the size of the image")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _run_lengths(counts: str | bytes) -> list[int]:
    """Decodes COCO's compressed run lengths, which hold differences in 5 bits a letter."""
    letters = counts.encode("ascii") if isinstance(counts, str) else counts
    runs: list[int] = []
    value = shift = 0
    for letter in letters:
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("run lengths are damaged")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value |= -1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            if runs[-1] < 0:
                raise ValueError("run lengths are damaged")
            value = shift = 0
    if shift:
        raise ValueError("run lengths are cut off")
    return runs
