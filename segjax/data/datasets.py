"""The data sets, and how a raw folder becomes records on disk."""

import ast
import dataclasses
import errno
import fcntl
import hashlib
import inspect
import json
import os
import pathlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import rich.markup
import tensorflow_datasets as tfds
from rich.console import Console
from rich.table import Table

from segjax import config, files, paths
from segjax.data.builders import ade20k, camvid, cityscapes, folder, shapes, voc_segmentation
from segjax.data.builders.base import SegmentationBuilder
from segjax.data.examples import Summary, same_colour
from segjax.data.folders import some, subfiles
from segjax.data.images import DataError
from segjax.data.labels import MAP_EXAMPLE, Colour, colour_map, parse_label_map, spans
from segjax.files import write_json
from segjax.ops import IGNORE_LABEL

LISTS = (".txt", ".csv", ".json")  # endings of what tells the pictures of a data set
FORMAT = 3  # of the prepared folder; another number prepares again
SUMMARY = "summary.json"
POLL = 2.0  # seconds between two looks for what another process prepares in a bucket


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What there is to know about a data set before reading it."""

    name: str
    builder: type[SegmentationBuilder]
    classes: tuple[str, ...]  # by train id; () where the folder tells
    palette: tuple[Colour, ...]  # RGB, by train id
    ignore: str  # which pixels become 255, in words
    splits: dict[str, int]  # published number of images
    mean: tuple[float, float, float]  # RGB, 0..255; the folder's own are measured
    std: tuple[float, float, float]  # RGB, 0..255
    class_weights: tuple[float, ...] = ()  # published ones, by train id

    @property
    def num_classes(self) -> int:
        return len(self.classes)


DATASETS = {
    "shapes": Dataset(
        name="shapes",
        builder=shapes.Shapes,
        classes=shapes.CLASSES,
        palette=shapes.PALETTE,
        ignore="a rim of one pixel around every object",
        splits={"train": 600, "val": 100},
        mean=(121.2, 115.6, 118.4),
        std=(43.0, 50.4, 65.9),
    ),
    "camvid": Dataset(
        name="camvid",
        builder=camvid.Camvid,
        classes=camvid.CLASSES,
        palette=camvid.PALETTE,
        ignore="id 11, void",
        splits={"train": 367, "val": 101, "test": 233},
        mean=(105.0, 108.3, 110.2),
        std=(78.2, 79.4, 78.2),
        class_weights=camvid.OFFICIAL_CLASS_WEIGHTS,
    ),
    "voc_segmentation": Dataset(
        name="voc_segmentation",
        builder=voc_segmentation.VocSegmentation,
        classes=voc_segmentation.CLASSES,
        palette=voc_segmentation.PALETTE,
        ignore="255: a rim of about five pixels around every object, and what is too hard",
        splits={"train": 1464, "val": 1449, "trainval": 2913, "trainaug": 10582},
        mean=config.IMAGENET_MEAN,
        std=config.IMAGENET_STD,
    ),
    "cityscapes": Dataset(
        name="cityscapes",
        builder=cityscapes.Cityscapes,
        classes=cityscapes.CLASSES,
        palette=cityscapes.PALETTE,
        ignore="the fifteen of the ids 0..33 that are not trained on, the car's own bonnet too",
        splits={"train": 2975, "val": 500, "test": 1525, "train_extra": 19998},
        mean=config.IMAGENET_MEAN,
        std=config.IMAGENET_STD,
    ),
    "ade20k": Dataset(
        name="ade20k",
        builder=ade20k.Ade20k,
        classes=ade20k.CLASSES,
        palette=ade20k.PALETTE,
        ignore="id 0, other; the ids 1..150 become 0..149",
        splits={"train": 20210, "val": 2000},
        mean=config.IMAGENET_MEAN,
        std=config.IMAGENET_STD,
    ),
    "folder": Dataset(
        name="folder",
        builder=folder.Folder,
        classes=(),
        palette=(),
        ignore="255, and the colours that classes.txt calls void",
        splits={},
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
}


@dataclasses.dataclass(frozen=True)
class Checked:
    """A data set whose every file was read."""

    dataset: Dataset
    summaries: dict[str, Summary]  # split: what it holds; the first one is to train on
    skipped: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)  # files left out
    # Sides that are chosen here are a multiple of it and one more, see `config.alignment`.
    aligned: int = dataclasses.field(default=1, kw_only=True)

    @property
    def class_weights(self) -> np.ndarray:
        """Median-frequency weights of the training split, float32 [C]."""
        summary = next(iter(self.summaries.values()))
        return np.array(summary.class_weights[: self.dataset.num_classes], np.float32)

    def canvas(self, *splits: str) -> tuple[int, int]:
        """Returns the largest height and width of the images of some splits."""
        summaries = [self.summaries[split] for split in splits]
        return max(s.height for s in summaries), max(s.width for s in summaries)

    def filled_up(self, split: str, canvas: tuple[int, int]) -> tuple[int, int]:
        """Returns a canvas for a split: its largest height and width where `canvas` has a 0."""
        own = (-(-(side - 1) // self.aligned) * self.aligned + 1 for side in self.canvas(split))
        return tuple(given or side for given, side in zip(canvas, own, strict=True))

    def crop(self, largest: int) -> tuple[int, int]:
        """Returns a crop to train with: the largest image, at most `largest` pixels a side.

        Sides of images are rounded up to multiples of 8, or as `aligned` asks.
        """
        multiple, more = (self.aligned, 1) if self.aligned > 1 else (8, 0)
        own = self.canvas(*self.summaries)
        height, width = (-(-(side - more) // multiple) * multiple + more for side in own)
        largest -= (largest - 1) % self.aligned
        return min(height, largest), min(width, largest)

    def table(self) -> Table:
        """Returns the share of each class, the images that hold it, and its weight."""
        table = Table(title=f"{self.dataset.name}: share of pixels, images with the class")
        table.add_column("id", justify="right")
        table.add_column("class")
        for split, s in self.summaries.items():
            table.add_column(f"{rich.markup.escape(split)} ({s.num_images})", justify="right")
        table.add_column("weight", justify="right")
        rows = [*enumerate(self.dataset.classes), (IGNORE_LABEL, "ignored")]
        for i, name in rows:
            weight = "" if i == IGNORE_LABEL else f"{self.class_weights[i]:.4f}"
            shares = [
                f"{s.pixels[i] / sum(s.pixels):.2%} in {s.images[i]}"
                for s in self.summaries.values()
            ]
            table.add_row(str(i), rich.markup.escape(name), *shares, weight)
        height, width = self.canvas(*self.summaries)
        least = [
            min(getattr(s, side) for s in self.summaries.values())
            for side in ("least_height", "least_width")
        ]
        table.caption = f"largest image {height}x{width}, smallest {least[0]}x{least[1]}"
        if turned := [name for s in self.summaries.values() for name in s.turned]:
            masks = [name for s in self.summaries.values() for name in s.mask_turned]
            table.caption += (
                f"; {len(turned)} images are turned upright by their EXIF orientation, "
                f"{rich.markup.escape(turned[0])} first, as in prediction, and {len(masks)} masks "
                "that were drawn on the images as stored with them"
            )
        if deep := [name for s in self.summaries.values() for name in s.deep]:
            table.caption += (
                f"; {len(deep)} images have 16 bits per channel, {rich.markup.escape(deep[0])} "
                "first, of which the upper 8 are kept"
            )
            brightest = max(s.brightest for s in self.summaries.values())
            if brightest < 64:
                table.caption += (
                    f". They are nearly black: all values are below {(brightest + 1) * 256} of "
                    "65536. Scale them, here and before prediction, or save them with 8 bits"
                )
        return table


@dataclasses.dataclass(frozen=True)
class Prepared(Checked):
    """A data set as records on disk, and what was counted while they were written."""

    folders: dict[str, pathlib.Path]  # split: where its records are

    def source(self, split: str) -> Sequence[dict[str, bytes]]:
        """Returns the records of a split: `image`, `label` and `id`, all bytes, by position."""
        if split not in self.folders:
            raise ValueError(f"split {split!r} is not prepared; there are {list(self.folders)}")
        try:
            builder = tfds.builder_from_directory(self.folders[split])
            skip = tfds.decode.SkipDecoding()
            records = builder.as_data_source(split, decoders={"image": skip, "label": skip})
        except Exception as error:  # damage makes tfds and ArrayRecord raise errors of many types
            raise DataError(_damaged(self.folders[split], error)) from error
        return _Records(records, self.folders[split], self.summaries[split].names)


@dataclasses.dataclass(frozen=True)
class _Records(Sequence):
    """Records that say which file is at fault where one cannot be read."""

    records: Sequence[dict[str, bytes]]
    folder: pathlib.Path
    names: Sequence[str]  # of the records; none in a folder of an older version

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, bytes]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self.records[index]
        except Exception as error:  # as above
            name = f" ({self.names[index]})" if self.names else ""
            raise DataError(
                f"record {index}{name} cannot be read: {_damaged(self.folder, error)}"
            ) from error


def _damaged(folder: pathlib.Path, why: object) -> str:
    return f"{folder} is damaged ({why}); delete this folder to prepare the data set again"


def prepare(
    data: config.Data,
    splits: Sequence[str] = (),
    *,
    show: bool = True,
    first: bool = True,
    classes: Sequence[str] = (),
) -> Prepared:
    """Returns the records of a data set, written first where they are not yet in `data.cache`.

    Preparing reads every file once, checks it, and prints how often each class occurs. A folder
    appears in the cache when it is complete; a process that wants it meanwhile waits for it. Up to
    `data.max_decode_errors` pairs of the training split are left out, and named, whose files cannot
    be decoded.

    Raw data in a bucket are copied to this machine, to ~/.cache/segjax/buckets: lists of them
    always, pictures where something is to be written. Records in a bucket are read from there.

    A bucket has no locks. Of the processes of a run the first one writes to a cache in a bucket,
    and the others wait; but hosts with raw data of their own each write what they have. Two runs
    may write the same records at the same time: each file appears whole, and summary.json, without
    which a folder counts for nothing, comes last. It holds the size of each file, so a folder that
    was mixed from two different ones is prepared again.

    Args:
        data: name, folder and options of the data set.
        splits: what to prepare; the training and the validation split unless given.
        show: whether to print the table when something was written.
        first: whether this is the process that writes to a cache in a bucket.
        classes: names, by id, of a trained network; where a folder has no list of classes they are
            these, and the splits need not hold each.

    Raises:
        DataError: a file is at fault, or the folder is not laid out as it must be.
        ValueError: a field of `data` is wrong.
    """
    builders = _builders(data, splits, LISTS, alone=bool(classes))
    folders = {split: _folder(builder, data) for split, builder in builders.items()}
    anywhere = not data.dir or paths.in_bucket(data.dir)  # the same data on all hosts
    if paths.in_bucket(data.cache) and anywhere and not first:
        while any(_damage(folder) for folder in folders.values()):
            time.sleep(POLL)
    if paths.in_bucket(data.dir) and any(_damage(folder) for folder in folders.values()):
        files.mirror(paths.of(data.dir))
    written = [split for split in builders if _write(builders[split], folders[split])]
    summaries = {split: _summary(folder) for split, folder in folders.items()}
    for split, builder in builders.items():
        _tell_undecoded(split, summaries[split].undecoded, builder.max_decode_errors)
    builder = next(iter(builders.values()))
    dataset = _complete(find(data.name), builder, summaries, classes)
    prepared = Prepared(dataset, summaries, folders, skipped=_skipped(builders))
    if written and show:
        Console().print(prepared.table())
        for line in prepared.skipped:
            Console().print(line, highlight=False, markup=False, soft_wrap=True)
    return prepared


def check(data: config.Data, splits: Sequence[str] = ()) -> Checked:
    """Reads and checks a data set like `prepare`, and writes nothing.

    Raises:
        DataError: a file is at fault, or the folder is not laid out as it must be.
        ValueError: a field of `data` is wrong.
    """
    builders = _builders(data, splits, ("",))
    for builder in builders.values():
        for _ in builder.summarize():
            pass
    summaries = {split: builder.summary for split, builder in builders.items()}
    dataset = _complete(find(data.name), next(iter(builders.values())), summaries)
    return Checked(dataset, summaries, skipped=_skipped(builders))


def recognise(folder: pathlib.Path) -> str:
    """Returns the name of the data set whose layout a folder has; "folder" for any other."""
    known = (name for name, d in DATASETS.items() if d.builder.recognises(folder))
    return next(known, "folder")


def lists_of(folder: pathlib.Path) -> pathlib.Path:
    """Returns a folder of this machine that shows the layout of one in a bucket, which may be read
    but for the pictures; a folder of this machine itself."""
    return files.mirror(folder, LISTS)


def find(name: str) -> Dataset:
    """Returns the entry of DATASETS, or raises ValueError with the names there are."""
    if name not in DATASETS:
        raise ValueError(
            f"there is no data set {name!r}; data.name is one of {', '.join(DATASETS)}"
        )
    return DATASETS[name]


def parse_options(builder: type[SegmentationBuilder], text: str) -> dict[str, Any]:
    """Parses `"height=64,seed=1"` into arguments of a builder.

    Raises:
        ValueError: the text cannot be read, or the builder has no such option.
    """
    accepted = [
        name
        for cls in (builder, SegmentationBuilder)
        for name, p in inspect.signature(cls.__init__).parameters.items()
        if p.kind is p.KEYWORD_ONLY and name not in ("label_map", "data_dir")
    ]
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        readable = not call.args
    except (SyntaxError, ValueError):
        options, readable = {}, False
    if not readable or not set(options) <= set(accepted):
        raise ValueError(
            f"data.options={text!r}: write name=value,name=value; the options of '{builder.name}' "
            f"are: {', '.join(accepted) or 'none'}"
        )
    return options


def _builders(
    data: config.Data, splits: Sequence[str], endings: tuple[str, ...], *, alone: bool = False
) -> dict[str, SegmentationBuilder]:
    """Returns a builder for each split; of data in a bucket, files with the endings are copied.

    Where only the masks tell the classes, that is those of the training split too, unless `alone`.
    """
    kind = find(data.name).builder
    if kind.LAYOUT and not data.dir:
        raise ValueError(f"'{data.name}' is read from a folder: write --config.data.dir=FOLDER")
    if data.dir and not kind.LAYOUT:
        raise ValueError(
            f"data.dir is {data.dir}, but '{data.name}' is generated and reads no folder; name the "
            f"data set of the folder, --config.data.name=folder (or {_with_folders()}), or leave "
            "--config.data.dir out"
        )
    options = parse_options(kind, data.options)
    label_map = parse_label_map(data.label_map)
    if label_map and not kind.LAYOUT:
        raise ValueError(f"'{data.name}' is generated: --config.data.label_map has no effect there")
    splits = splits or (data.train_split, data.val_split)
    root = os.fspath(files.mirror(paths.of(data.dir), endings)) if data.dir else ""
    builders = {s: kind(root, s, label_map=label_map, **options) for s in splits}
    if data.train_split in builders:
        builders[data.train_split].max_decode_errors = data.max_decode_errors
    known = alone or next(iter(builders.values())).knows_classes
    if data.train_split not in splits and not known:
        # The ids of one split are not the classes: it may lack one that others have.
        return _builders(data, (data.train_split, *splits), endings)
    for builder in builders.values():
        builder.number_like((data.train_split, *splits))
    return builders


def _tell_undecoded(split: str, undecoded: Sequence[str], allowed: int) -> None:
    """Warns of the files that were left out; raises DataError where they are more than allowed."""
    lines = [f"left out of the split {split}: {line}" for line in undecoded]
    if len(lines) > allowed:
        raise DataError(
            "\n".join(lines) + f"\nMend the files, or write --config.data.max_decode_errors="
            f"{len(lines)} to train without them"
        )
    for line in lines:
        Console(stderr=True).print(
            line, style="yellow", highlight=False, markup=False, soft_wrap=True
        )


def _with_folders() -> str:
    return ", ".join(n for n, d in DATASETS.items() if d.builder.LAYOUT and n != "folder")


def _skipped(builders: dict[str, SegmentationBuilder]) -> tuple[str, ...]:
    lines = [line for builder in builders.values() for line in builder.skipped]
    splits: dict[pathlib.Path, str] = {}
    both: dict[tuple[str, str], list[str]] = {}
    for split, builder in builders.items():
        for pair in builder.pairs if builder.LAYOUT else ():
            other = splits.setdefault(pair.image, split)
            if other != split:
                both.setdefault((other, split), []).append(pair.id)
    lines += [
        f"{len(ids)} images are in the splits {one} and {two} ({some(ids)}): scores on images that "
        "were trained on say nothing"
        for (one, two), ids in both.items()
    ]
    return tuple(dict.fromkeys(lines))


def _folder(builder: SegmentationBuilder, data: config.Data) -> pathlib.Path:
    """Returns where the records of a split belong; a changed file or option changes the name."""
    said = [FORMAT, str(builder.VERSION), data.options, data.label_map, builder.fingerprint()]
    key = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
    cache = paths.of(data.cache)
    cache = cache if paths.in_bucket(cache) else cache.resolve()
    return cache / builder.name / f"{builder.split}-{key}"


def _write(builder: SegmentationBuilder, final: pathlib.Path) -> bool:
    """Writes the records of a split, or returns False where they are there already.

    Raises:
        DataError: a file of the data set is at fault, or the cache cannot be written.
    """
    if not _damage(final):
        return False
    if paths.in_bucket(final):
        _write_to_bucket(builder, final)
        return True
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with final.with_name(f"{final.name}.lock").open("w") as lock:
            alone = _locked(lock)
            if not _damage(final):
                return False
            if final.exists():
                _say_again(final)
                shutil.rmtree(final)
            # Without a lock another process may write the same: each into a folder of its own.
            own = "" if alone else f".{secrets.token_hex(4)}"
            unfinished = final.with_name(f"{final.name}{own}.tmp")
            shutil.rmtree(unfinished, ignore_errors=True)
            try:
                folder = _built(builder, unfinished)
                write_json(folder / SUMMARY, _counted(builder, folder))
                if alone or _damage(final):
                    folder.rename(final)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{final.parent} cannot be written: {error.strerror or error}; make room, or name "
            "another folder, --config.data.cache=FOLDER"
        ) from error
    return True


def _built(builder: SegmentationBuilder, folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the records of a split, written; raises OSError where a disk fails."""
    try:
        return builder.write(folder)
    except RuntimeError as error:  # of ArrayRecord: "...: No space left on device; writing FILE..."
        reason, writing, _ = str(error).partition("; writing ")
        if not writing:
            raise
        raise OSError(errno.EIO, reason.rpartition(": ")[2]) from error


def _write_to_bucket(builder: SegmentationBuilder, final: pathlib.Path) -> None:
    """The same for a folder in a bucket, where nothing can be renamed: the summary comes last.

    Another run may be writing the same there: nothing of it is removed.
    """
    if final.exists():
        _say_again(final)
    with tempfile.TemporaryDirectory() as temporary:
        folder = _built(builder, pathlib.Path(temporary))
        if not _damage(final):  # another run was faster
            return
        for path in subfiles(folder):
            files.upload(path, final / path.name)
        write_json(final / SUMMARY, _counted(builder, folder))


def _say_again(folder: pathlib.Path) -> None:
    line = f"{folder}: {_damage(folder)}; it is prepared again"
    Console(stderr=True).print(line, highlight=False, markup=False)


def _counted(builder: SegmentationBuilder, folder: pathlib.Path) -> dict[str, Any]:
    """Returns what is in the summary of a folder of records, JSON values."""
    return {**dataclasses.asdict(builder.summary), "files": _sizes(folder)}


def _sizes(folder: pathlib.Path) -> dict[str, int]:
    """Returns the bytes of each file in a folder."""
    if paths.in_bucket(folder):
        return {name: about.size for name, about in paths.objects(folder).items()}
    return {path.name: path.stat().st_size for path in subfiles(folder)}


def _locked(lock: IO[str]) -> bool:
    """Waits for a lock, and returns whether the file system has locks at all."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system when a process is killed
    except OSError:
        return False
    return True


def _damage(folder: pathlib.Path) -> str:
    """Returns what is wrong with a prepared folder, "" for nothing."""
    if not folder.exists():
        return "is not there"
    if not (folder / SUMMARY).exists():
        return f"unfinished, {SUMMARY} is missing"
    try:
        written = _summary(folder).files
    except DataError as error:
        return str(error)
    sizes = _sizes(folder)
    changed = sorted(name for name, size in written.items() if sizes.get(name) != size)
    return f"{changed[0]} is missing or has another size" if changed else ""


def _summary(folder: pathlib.Path) -> Summary:
    """Returns what was counted while a folder was prepared.

    Raises:
        DataError: its file is damaged, or of another version.
    """
    try:
        return Summary(**json.loads((folder / SUMMARY).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{SUMMARY} is damaged or of another version ({error})") from error


def _complete(
    dataset: Dataset,
    builder: SegmentationBuilder,
    summaries: dict[str, Summary],
    trained: Sequence[str] = (),
) -> Dataset:
    """Fills in what only the folder of a data set tells.

    Raises:
        DataError: the splits contradict each other, or the ids are not those of classes.
    """
    palette: dict[str, tuple[Colour, str]] = {}
    for summary in summaries.values():
        for index, (colour, file) in summary.palette.items():
            try:
                same_colour(palette, index, colour, file)
            except DataError as error:
                raise DataError(f"{file} {error}") from None
    ids = sorted({i for summary in summaries.values() for i in summary.ids()})
    first = next(iter(summaries.values()))
    if trained and not builder.knows_classes:
        if others := [i for i in ids if i >= len(trained)]:
            ignored = MAP_EXAMPLE % ",".join(f"{i}:255" for i in others)
            raise DataError(
                f"the masks of {builder.root} hold the ids {spans(ids)}, and the network has the "
                f"classes 0..{len(trained) - 1}; {ignored} ignores the others"
            )
        described = tuple(trained), colour_map(len(trained))
    else:
        pixels = sum(np.array(summary.pixels) for summary in summaries.values())
        described = builder.describe(ids, float(pixels[IGNORE_LABEL] / pixels.sum()))
    if described is None:
        return dataset
    classes, palette = described
    return dataclasses.replace(
        dataset, classes=classes, palette=palette, mean=first.mean, std=first.std
    )
