"""What all builders share: a layout of files in, checked ArrayRecord out."""

import contextlib
import functools
import io
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import track

from segjax.data import classes, folders, images
from segjax.data.examples import Example, Pair, Summary, read_pairs
from segjax.data.images import DataError
from segjax.data.labels import Colour, to_train_ids


class _Info(tfds.core.DatasetInfo):
    """What tfds knows of a split."""

    def initialize_from_bucket(self) -> None:
        """Does nothing; tfds looks for its own data sets, and leaves an empty folder in /tmp."""


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Prepares one split of a data set; its subclasses know where the files lie.

    A record holds `image` (an image file as it was), `label` (a PNG of train ids, 255 ignored) and
    `id`. TensorFlow is not needed to write or to read it, since only bytes pass through.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # no checksums of downloads; to look for them tfds wants importlib_resources
    IDS: ClassVar[Mapping[int, int]]  # allowed number in a mask file -> train id
    SPLITS: ClassVar[tuple[str, ...]] = ()  # names a user may ask for
    LAYOUT: ClassVar[str] = ""  # what the folder has to look like; "" where none is read
    MARKS: ClassVar[tuple[str, ...]] = ()  # folders that only this layout has, all of them
    NESTED: ClassVar[tuple[str, ...]] = ()  # folders that the layout may begin in
    # What masks were drawn on where an EXIF orientation keeps the size: published ones as stored.
    drawn: str = "stored"
    max_decode_errors: int = 0  # pairs left out at the most because a file cannot be decoded

    def __init_subclass__(cls, **kwargs: object) -> None:
        # Not in the registry of tfds, which has a cityscapes of its own.
        super().__init_subclass__(skip_registration=True, **kwargs)

    def __init__(
        self,
        root: str = "",
        split: str = "train",
        *,
        label_map: Mapping[int, int] | None = None,
        data_dir: str | None = None,
    ) -> None:
        if self.SPLITS and split not in self.SPLITS:
            raise ValueError(
                f"'{self.name}' has no split {split!r}; it has {', '.join(self.SPLITS)}"
            )
        if not re.fullmatch(r"[\w-]+", split) or split == "all":
            raise ValueError(
                f"a split cannot be called {split!r}: letters, digits, _ and - make its name, and "
                "'all' is taken by tfds; rename the list or folder"
            )
        self.root = self.find_root(pathlib.Path(root))
        self.split = split
        self.ids = self.IDS
        self.label_map = label_map or {}
        self.colours: Mapping[tuple[int, int, int], int] | None = None
        self.summary = Summary()
        self.skipped: list[str] = []  # sentences on files that were left out
        super().__init__(data_dir=data_dir, file_format="array_record")

    @classmethod
    def find_root(cls, folder: pathlib.Path) -> pathlib.Path:
        """Returns the folder that the layout begins in: this one, or one that archives make."""
        return next((folder / n for n in cls.NESTED if (folder / n).is_dir()), folder)

    @classmethod
    def recognises(cls, folder: pathlib.Path) -> bool:
        """Whether a folder has this layout, and no list of classes of its own."""
        root = cls.find_root(folder)
        marked = bool(cls.MARKS) and all((root / mark).is_dir() for mark in cls.MARKS)
        return marked and not any((root / name).is_file() for name in classes.FILES)

    def describe(
        self, ids: Iterable[int], ignored: float = 0.0
    ) -> tuple[tuple[str, ...], tuple[Colour, ...]] | None:
        """Returns classes and palette where the folder tells them, or None.

        Args:
            ids: train ids that occur, without 255.
            ignored: share of the pixels that have 255.

        Raises:
            DataError: the ids are not those of classes.
        """
        return None

    def find_pairs(self) -> list[Pair]:
        """Returns the files of the split, in the order of the records.

        Raises:
            DataError: the folder does not have the layout.
        """
        raise NotImplementedError

    @property
    def knows_classes(self) -> bool:
        """Whether the classes are known before a mask is read."""
        return True

    def number_like(self, splits: Iterable[str]) -> None:
        """Numbers the classes as the first of some splits that has classes of its own.

        Most layouts have one list for all splits; then there is nothing to do.

        Raises:
            DataError: this split has a class that the other lacks.
        """

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """The files of the split, in the order of the records."""
        return self.find_pairs()

    def fingerprint(self) -> list:
        """Returns what changes when a file does: names, sizes and times."""
        files = sorted({path for pair in self.pairs for path in (pair.image, pair.mask)})
        stats = [(path, path.stat()) for path in files if path.is_file()]
        return [
            (folders.printable(path.relative_to(self.root).as_posix()), s.st_size, s.st_mtime_ns)
            for path, s in stats
        ]

    def examples(self) -> Iterator[Example]:
        """Yields the checked examples of the split."""
        return read_pairs(
            self.pairs,
            self.root,
            self.read_label,
            drawn=self.drawn,
            allowed=self.max_decode_errors,
            undecoded=self.summary.undecoded,
        )

    def read_label(self, pair: Pair) -> np.ndarray:
        """Returns the train ids of a pair, uint8 [H, W].

        Raises:
            DataError: the mask is at fault; the message does not name it.
        """
        mask = images.read_mask(pair.mask.read_bytes())
        return to_train_ids(mask, self.ids, label_map=self.label_map, colours=self.colours)

    def summarize(self) -> Iterator[Example]:
        """Yields the examples and counts them in `summary`."""
        for example in self.examples():
            self.summary.add(example)
            yield example
        first = folders.printable(self.pairs[0].mask.relative_to(self.root).as_posix())
        self.summary.finish(f"the masks of {self.root}, split '{self.split}', {first} first,")

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes the split somewhere below `folder` and returns where."""
        self._data_dir_root, self._data_dir = self._build_data_dir(str(folder))
        noise = io.StringIO()  # of tfds: bars for every phase, and where the files went
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            self.download_and_prepare()
        return pathlib.Path(self.data_dir)

    def images_below(self, folder: pathlib.Path) -> folders.Walk:
        """Returns the image files below a folder, and remembers what was skipped.

        Raises:
            DataError: there is no such folder, or no image in it.
        """
        name = folders.printable(folder)
        if not folder.is_dir():
            near = folders.in_brackets(folders.near_miss(folder))
            raise DataError(self.misplaced(f"{name} does not exist{near}"))
        found = folders.Walk(folder)
        if not found.files:
            said = "".join(f"; {line}" for line in found.skipped)
            raise DataError(self.misplaced(f"{name} has no images{said}"))
        self.skipped += [line for line in found.skipped if line not in self.skipped]
        return found

    def pair(
        self,
        images_in: pathlib.Path,
        masks_in: pathlib.Path,
        *,
        image_suffix: str = "",
        mask_suffix: str = "",
    ) -> list[Pair]:
        """Pairs the images of a folder with masks by `folders.key`.

        Returns:
            A pair for each image, sorted; where there is no mask, with the one that is expected.
        """
        image_of = self.images_below(images_in).by_stem(image_suffix)
        masks = folders.Walk(masks_in)
        self.skipped += [line for line in masks.skipped if line not in self.skipped]
        mask_of = masks.by_stem(mask_suffix)
        return [
            Pair(
                folders.printable(name),
                image,
                mask_of.get(name, masks_in / f"{name}{mask_suffix}.png"),
            )
            for name, image in image_of.items()
        ]

    def misplaced(self, what: str) -> str:
        """Returns a message that a folder has not this layout, with the layout."""
        return (
            f"{what}. The data set '{self.name}' is laid out like this, below the folder named by "
            f"--config.data.dir:\n{self.LAYOUT}"
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "id": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,  # evaluation goes through the files in order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {self.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        bar = track(
            self.summarize(),
            f"preparing {self.name} {self.split}",
            total=len(self.pairs),
            console=Console(file=sys.__stderr__),
            transient=True,
            disable=not sys.__stderr__.isatty(),
        )
        for example in bar:
            yield example.id, {"image": example.image, "label": example.label, "id": example.id}
