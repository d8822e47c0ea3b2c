"""What all builders share: a layout of files in, checked ArrayRecord out."""

import contextlib
import functools
import io
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import track

from segjax.data.examples import Example, Pair, Summary, read_pairs
from segjax.data.folders import Walk
from segjax.data.images import DataError
from segjax.data.labels import to_train_ids
from segjax.data.text import Line, read_lines


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
        self.root = pathlib.Path(root).expanduser()
        self.split = split
        self.ids = self.IDS
        self.label_map = label_map or {}
        self.colours: Mapping[tuple[int, int, int], int] | None = None
        self.summary = Summary()
        self.skipped: list[str] = []  # sentences on files that were left out
        super().__init__(data_dir=data_dir, file_format="array_record")

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

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """The files of the split, in the order of the records."""
        return self.find_pairs()

    def fingerprint(self) -> list:
        """Returns what changes when a file does: names, sizes and times."""
        files = [path for pair in self.pairs for path in (pair.image, pair.mask) if path.exists()]
        stats = [(path.relative_to(self.root).as_posix(), path.stat()) for path in files]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def examples(self) -> Iterator[Example]:
        """Yields the checked examples of the split."""
        return read_pairs(self.pairs, self.root, self.to_label)

    def to_label(self, mask: np.ndarray) -> np.ndarray:
        """Returns the train ids of a decoded mask."""
        return to_train_ids(mask, self.ids, label_map=self.label_map, colours=self.colours)

    def summarize(self) -> Iterator[Example]:
        """Yields the examples and counts them in `summary`."""
        for example in self.examples():
            self.summary.add(example)
            yield example
        first = self.pairs[0].mask.relative_to(self.root).as_posix()
        self.summary.finish(f"the masks of {self.root}, split '{self.split}', {first} first,")

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes the split somewhere below `folder` and returns where."""
        self._data_dir_root, self._data_dir = self._build_data_dir(str(folder))
        noise = io.StringIO()  # of tfds: bars for every phase, and where the files went
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            self.download_and_prepare()
        return pathlib.Path(self.data_dir)

    def images_below(self, folder: pathlib.Path) -> Walk:
        """Returns the image files below a folder, and remembers what was skipped.

        Raises:
            DataError: there is no such folder, or no image in it.
        """
        found = Walk(folder)
        if not found.files:
            what = "has no images" if folder.is_dir() else "does not exist"
            said = "".join(f"; {line}" for line in found.skipped)
            raise DataError(self._misplaced(f"{folder} {what}{said}"))
        self.skipped += [line for line in found.skipped if line not in self.skipped]
        return found

    def read_list(self, folder: pathlib.Path, split: str) -> list[Line]:
        """Returns the lines of the list `split` in a folder of lists.

        Raises:
            DataError: there is no such list, or nothing in it.
        """
        file = folder / f"{split}.txt"
        if not folder.is_dir():
            raise DataError(self._misplaced(f"{folder} does not exist"))
        if not file.exists():
            there = ", ".join(sorted(p.stem for p in Walk(folder, (".txt",)).files)) or "none"
            raise DataError(f"{file} does not exist; the lists there are: {there}")
        lines = read_lines(file)
        if not lines:
            raise DataError(f"{file} is empty; it has to name an image a line")
        return lines

    def inside(self, path: pathlib.Path, line: Line, file: pathlib.Path) -> pathlib.Path:
        """Returns a path that a list names; raises DataError where it leaves the data set."""
        plain = pathlib.Path(os.path.normpath(path))
        if not plain.is_relative_to(self.root):
            raise DataError(
                f"{file}, line {line.number}: {line.text!r} leaves {self.root}; paths of a list "
                "are below the folder of the data set"
            )
        return plain

    def _misplaced(self, what: str) -> str:
        return (
            f"{what}. The data set '{self.name}' is laid out like this, below the folder named by "
            f"--config.data.dir:\n{self.LAYOUT}"
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
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
