"""From records to batches on the devices.

Training goes round the split for ever: each epoch in another order that only the seed decides, and
batches run across the end of an epoch, so that none is short and no image is dropped. Process p of
P reads the p-th part of every global batch, so that image and place in it are the same for any
number of them.
"""

import dataclasses
import functools
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from segjax import config, log
from segjax.data import images
from segjax.data.datasets import Prepared
from segjax.data.images import DataError
from segjax.ops import IGNORE_LABEL


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images on a canvas, b of them on each of the D groups of devices that are local."""

    image: jax.Array  # uint8 [D, b, H, W, 3], RGB; right of and below an image its padding
    label: jax.Array  # uint8 [D, b, H, W]; 255 where ignored, and on the padding
    ids: list[str]  # D * b names; "" where the last batch of an evaluation has no image left
    sizes: np.ndarray  # int32 [D * b, 2], height and width before padding; 0, 0 for no image
    damaged: dict[int, str]  # numbers of records that others stand in for, and why


def check(prepared: Prepared, data: config.Data) -> None:
    """Checks before a run what `train_batches` and `eval_batches` ask of the prepared splits.

    Raises:
        ValueError: `data.canvas`, `data.num_train` or `data.num_val` does not fit its split.
    """
    for split in prepared.folders:
        _canvas(prepared, data, split)
    for split, name in ((data.train_split, "num_train"), (data.val_split, "num_val")):
        if split in prepared.folders:
            _limit(range(prepared.summaries[split].num_images), getattr(data, name), name)


def train_batches(
    prepared: Prepared,
    data: config.Data,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    seed: int,
    fill: Sequence[float],
) -> "Batches":
    """Returns endless batches of the training split in shuffled order.

    Up to `data.max_decode_errors` records that cannot be decoded are named, and the next one of the
    split stands in for each: the order stays a function of the seed and the files. They are counted
    by each process. A run of one process that goes on still counts those of before; of several,
    each counts anew, for a checkpoint has the position of the first alone.

    Args:
        prepared: the data set.
        data: its configuration.
        batch_size: images over all devices of all processes.
        mesh: of this process's devices; a batch lies on its axis "batch" by its leading axis.
        seed: of the order.
        fill: RGB, 0..255, of the padding; rounded.

    Raises:
        ValueError: the batch cannot be divided among the devices, or the canvas is too small.
    """
    everywhere = mesh.shape["batch"] * jax.process_count()
    if batch_size % everywhere or batch_size < 1:
        raise ValueError(
            f"train.batch_size={batch_size} cannot be divided among {everywhere} devices; "
            f"write --config.train.batch_size={max(round(batch_size / everywhere), 1) * everywhere}"
        )
    source = _limit(prepared.source(data.train_split), data.num_train, "num_train")
    order = grain.MapDataset.range(len(source)).shuffle(seed).repeat()
    load = _loader(prepared, data, data.train_split, fill, source, data.max_decode_errors)
    return Batches(order, load, data, batch_size=batch_size, mesh=mesh)


def eval_batches(
    prepared: Prepared,
    data: config.Data,
    split: str,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    fill: Sequence[float],
) -> "Batches":
    """Returns every image of a split once, in order; the last batch is filled up with label 255.

    Args:
        prepared: the data set.
        data: its configuration.
        split: a prepared split.
        batch_size: images over all devices of all processes, rounded up to a multiple of them.
        mesh: of this process's devices; a batch lies on its axis "batch" by its leading axis.
        fill: RGB, 0..255, of the padding; rounded.

    Raises:
        ValueError: the batch is empty, or the canvas is too small.
    """
    if batch_size < 1:
        raise ValueError(f"eval.batch_size={batch_size}: at least one image is needed")
    everywhere = mesh.shape["batch"] * jax.process_count()
    batch_size = -(-batch_size // everywhere) * everywhere
    source = _limit(prepared.source(split), data.num_val, "num_val")
    order = grain.MapDataset.source(_FilledUp(len(source), batch_size))
    load = _loader(prepared, data, split, fill, source)
    return Batches(order, load, data, batch_size=batch_size, mesh=mesh)


class Batches(Iterator[Batch]):
    """Iterates over batches that a thread loads ahead.

    Attributes:
        wait: seconds that the consumer has waited for batches so far.
    """

    def __init__(
        self,
        order: grain.MapDataset,
        load: Callable[[Sequence[Any]], dict[str, Any]],
        data: config.Data,
        *,
        batch_size: int,
        mesh: jax.sharding.Mesh,
    ) -> None:
        self._stop = threading.Event()
        if data.prefetch < 1 or data.threads < 1 or data.workers < 0:
            raise ValueError(
                f"data.prefetch={data.prefetch}, data.threads={data.threads}, "
                f"data.workers={data.workers}: at least 1, 1 and 0 are needed"
            )
        self.wait = 0.0
        self._order, self._load, self._data = order, load, data
        self._batch_size, self._mesh = batch_size, mesh
        self._taken = 0  # images of the global order that were handed out
        self._damaged: set[int] = set()  # records that others stood in for
        self._ready: queue.Queue | None = None
        self._thread: threading.Thread | None = None

    def __next__(self) -> Batch:
        start = time.perf_counter()
        if self._ready is None:
            self._start()
        item = self._ready.get()
        self.wait += time.perf_counter() - start
        if isinstance(item, Batch) and not item.damaged.keys() <= self._damaged:
            item = self._told(item)
        if isinstance(item, BaseException):
            self.close()
            self._ready = queue.Queue()
            self._ready.put(item)  # so it is with the next call
            raise item
        self._taken += self._batch_size
        return item

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch handed out, as JSON values: "images", how many
        came before, and "damaged", the numbers of the records that others stood in for."""
        return {"images": self._taken, "damaged": sorted(self._damaged)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position: the next batch is the one that followed it there."""
        self.close()
        self._taken = int(state["images"])
        own = jax.process_count() == 1  # of several, only the first has written its records
        self._damaged = set(state.get("damaged", ()) if own else ())  # older positions have none

    def close(self) -> None:
        """Ends the thread; a later batch starts another."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._ready = self._thread = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._stop.set()

    def _told(self, batch: Batch) -> Batch | DataError:
        """Names the damaged records of a batch; returns the error where they are too many."""
        for number in sorted(batch.damaged.keys() - self._damaged):
            self._damaged.add(number)
            if len(self._damaged) > self._data.max_decode_errors:
                return DataError(
                    f"{batch.damaged[number]}. That is one damaged record more than "
                    f"data.max_decode_errors, {self._data.max_decode_errors}, allows"
                )
            log.warn(f"left out, the next record stands in: {batch.damaged[number]}")
        return batch

    def _start(self) -> None:
        share = self._batch_size // jax.process_count()
        mine = _Mine(
            self._order[self._taken :], self._batch_size, share * jax.process_index(), share
        )
        read = grain.ReadOptions(
            num_threads=self._data.threads, prefetch_buffer_size=self._data.threads
        )
        batches = grain.MapDataset.source(mine).batch(share, batch_fn=self._load)
        batches = batches.to_iter_dataset(read)
        if self._data.workers:
            if not flags.FLAGS.is_parsed():  # grain reads one, and not everyone runs absl.app
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(num_workers=self._data.workers),
                worker_init_fn=_leave_signals,
            ).map(_own)
        self._ready, self._stop = queue.Queue(self._data.prefetch), threading.Event()
        self._thread = threading.Thread(
            target=_prefetch,
            args=(iter(batches), self._mesh, self._ready, self._stop),
            name="segjax-prefetch",
            daemon=True,
        )
        self._thread.start()


def _leave_signals(worker: int, workers: int) -> None:
    """Makes a worker ignore signals that reach it too: the process that trains decides."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _prefetch(
    batches: grain.DatasetIterator,
    mesh: jax.sharding.Mesh,
    ready: queue.Queue,
    stop: threading.Event,
) -> None:
    """Puts batches on the devices and into the queue, and in the end what ended them."""
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    while not stop.is_set():
        try:
            loaded = next(batches)
            arrays = [
                loaded[name].reshape(mesh.shape["batch"], -1, *loaded[name].shape[1:])
                for name in ("image", "label")
            ]
            arrays = jax.device_put(arrays, sharding)
            item = Batch(*arrays, loaded["ids"], loaded["sizes"], loaded["damaged"])
        except BaseException as error:  # it belongs to the consumer, StopIteration as well
            item = error
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                break
            except queue.Full:
                pass
        if isinstance(item, BaseException):
            break
    batches.close()


def _own(loaded: dict[str, Any]) -> dict[str, Any]:
    """Copies arrays out of the shared memory of worker processes; on CPU devices would alias it."""
    return {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in loaded.items()}


def _limit(source: Sequence, limit: int, name: str) -> Sequence:
    """Returns `limit` records spread evenly over a split, or all of them for 0."""
    if not 0 <= limit <= len(source):
        raise ValueError(
            f"data.{name}={limit}, but the split has {len(source)} images; 0 takes all"
        )
    return _Some(source, [i * len(source) // limit for i in range(limit)]) if limit else source


@dataclasses.dataclass(frozen=True)
class _Some:
    """Some records of a source."""

    source: Sequence
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, bytes]:
        return self.source[self.indices[index]]


@dataclasses.dataclass(frozen=True)
class _Mine:
    """The part of each global batch that this process reads."""

    order: grain.MapDataset
    batch_size: int  # images of all processes
    first: int  # of them
    share: int  # how many of them

    def __len__(self) -> int:
        endless = 2**53  # grain divides lengths as floats, which are exact up to here
        return min(len(self.order), endless) // self.batch_size * self.share

    def __getitem__(self, index: int) -> Any:
        batch, place = divmod(index, self.share)
        return self.order[batch * self.batch_size + self.first + place]


@dataclasses.dataclass(frozen=True)
class _FilledUp:
    """The numbers of so many records, padded with None to a multiple of the batch size."""

    count: int
    batch_size: int

    def __len__(self) -> int:
        return -(-self.count // self.batch_size) * self.batch_size

    def __getitem__(self, index: int) -> int | None:
        return index if index < self.count else None


def _canvas(prepared: Prepared, data: config.Data, split: str) -> tuple[int, int]:
    """Returns height and width that all images of a split are padded to.

    Raises:
        ValueError: the canvas is too small.
    """
    height, width = prepared.canvas(split)
    canvas = prepared.filled_up(split, data.canvas)
    if canvas[0] < height or canvas[1] < width:
        summary = prepared.summaries[split]
        name = summary.highest if canvas[0] < height else summary.widest
        raise ValueError(
            f"data.canvas={tuple(data.canvas)} is too small for {name}: the images of split "
            f"'{split}' go up to {height}x{width}; write "
            f'--config.data.canvas="({height},{width})", or "(0,0)" for the largest'
        )
    return canvas


def _loader(
    prepared: Prepared,
    data: config.Data,
    split: str,
    fill: Sequence[float],
    source: Sequence[dict[str, bytes]],
    spare: int = 0,
) -> Callable[[Sequence[int | None]], dict[str, Any]]:
    """Returns the function from numbers of records to a batch.

    Raises:
        ValueError: the canvas is too small.
    """
    canvas = _canvas(prepared, data, split)
    colour = tuple(int(c) for c in np.clip(np.round(fill), 0, 255))
    where = str(prepared.folders[split])
    return functools.partial(
        load, source=source, canvas=canvas, fill=colour, where=where, spare=spare
    )


def load(
    numbers: Sequence[int | None],
    *,
    source: Sequence[dict[str, bytes]],
    canvas: tuple[int, int],
    fill: tuple[int, int, int],
    where: str,
    spare: int = 0,
) -> dict[str, Any]:
    """Decodes records onto a canvas.

    Args:
        numbers: of the records in `source`; None for no image.
        source: the records of a prepared split.
        canvas: height and width in pixels.
        fill: RGB around the image.
        where: the folder of the records, for errors.
        spare: how many of the records after one that is damaged are tried in its place.

    Returns:
        `image` uint8 [n, H, W, 3], `label` uint8 [n, H, W], `ids` n strings, `sizes` int32 [n, 2],
        and `damaged`, the errors of the records that another one stands in for, by number.

    Raises:
        DataError: a record cannot be read or decoded, nor one that could stand in for it; all those
            that were tried are named.
    """
    image = np.full((len(numbers), *canvas, 3), fill, np.uint8)
    label = np.full((len(numbers), *canvas), IGNORE_LABEL, np.uint8)
    ids, sizes = [""] * len(numbers), np.zeros((len(numbers), 2), np.int32)
    damaged: dict[int, str] = {}
    for i, number in enumerate(numbers):
        if number is None:
            continue
        for offset in range(spare + 1):
            candidate = (number + offset) % len(source)
            try:
                ids[i], rgb, train_ids = _decode(source[candidate], where)
                break
            except DataError as error:
                damaged[candidate] = str(error)
                if not spare:
                    raise
                if offset == spare:
                    raise _none_left(damaged, spare) from error
        height, width = sizes[i] = train_ids.shape
        image[i, :height, :width] = rgb
        label[i, :height, :width] = train_ids
    return {"image": image, "label": label, "ids": ids, "sizes": sizes, "damaged": damaged}


def _none_left(damaged: dict[int, str], spare: int) -> DataError:
    """Returns the error for a record that none of those after it can stand in for."""
    lines = list(damaged.values())
    if len(lines) > 10:
        lines[10:] = [f"and {len(lines) - 10} more"]
    return DataError(
        "\n".join(lines) + f"\nThese are {len(damaged)} damaged records, and "
        f"data.max_decode_errors, {spare}, allows no more"
    )


def _decode(record: dict[str, bytes], where: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Returns the id of a record, its image uint8 [H, W, 3] and its label uint8 [H, W]."""
    name = record["id"].decode()
    try:
        return name, images.read_image(record["image"]), images.read_mask(record["label"])
    except DataError as error:
        raise DataError(
            f"record {name} {error}; delete {where} to prepare the data set again"
        ) from error
