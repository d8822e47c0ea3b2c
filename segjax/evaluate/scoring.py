"""Scoring a split: every pixel of every image once, whatever the batches and devices."""

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
from jax.experimental import multihost_utils

from segjax import crf_rnn as refinement
from segjax import steps
from segjax.config import Config
from segjax.crf_rnn import Kernels
from segjax.metrics import Scores, boundary_f1
from segjax.predict import program as inference
from segjax.predict.protocols import Protocol

Row = tuple[str, np.ndarray, np.ndarray, np.ndarray]  # id, image, label, prediction


@dataclasses.dataclass(frozen=True)
class Example:
    """An image of a split, and what the network made of it."""

    kind: str  # why it is kept: "worst" or "best" by its mean IoU, or "random"
    id: str
    image: np.ndarray  # uint8 [H, W, 3]
    label: np.ndarray  # int32 [H, W]
    predictions: tuple[np.ndarray, ...]  # int32 [H, W]: the network's, and the one after the CRF
    scores: tuple[Scores, ...]  # of each prediction


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured on a split."""

    scores: Scores
    trimaps: dict[int, Scores]  # by band width in pixels
    boundary_f1: float | None  # SegNet's, mean over images
    boundary_f1_by_class: np.ndarray | None  # float64 [C]
    images: int
    examples: tuple[Example, ...] = ()  # of this process
    refined: "Evaluation | None" = None  # the same after the CRF

    @property
    def rows(self) -> list[Row]:
        """The images spread over the split, for a picture sheet."""
        spread = [e for e in self.examples if e.kind == "random"]
        return [(e.id, e.image, e.label, e.predictions[-1]) for e in spread]

    def summary(self) -> dict[str, float]:
        """The headline numbers by name; those after the CRF as "crf_mean_iou" and so on."""
        after = self.refined._summary() if self.refined else {}
        return self._summary() | {f"crf_{name}": number for name, number in after.items()}

    def _summary(self) -> dict[str, float]:
        numbers = self.scores.summary()
        if self.boundary_f1 is not None:
            numbers["boundary_f1"] = self.boundary_f1
        return numbers | {f"trimap_{w}_mean_iou": s.mean_iou for w, s in self.trimaps.items()}

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """All numbers as JSON values; those after the CRF, and the changes, under "crf"."""
        columns = {key: _numbers(values) for key, _, values, _ in self._columns()}
        rows = zip(*columns.values(), strict=True)
        values = {
            "images": self.images,
            **{key: _number(value) for key, value in self._summary().items()},
            "per_class": {
                name: dict(zip(columns, row, strict=True))
                for name, row in zip(classes, rows, strict=True)
            },
            "confusion": self.scores.confusion.tolist(),
        }
        if self.refined is None:
            return values
        after = self.refined.to_dict(classes)
        _, _, change, mean = self._compared()[-1]
        after["mean_iou_change"] = _number(mean)
        for row, by_class in zip(after["per_class"].values(), _numbers(change), strict=True):
            row["iou_change"] = by_class
        return values | {"crf": after}

    def to_csv(self, classes: Sequence[str]) -> str:
        """The table as text: a row per class and one of means, shares of 1."""
        columns = self._compared()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["class", *(key for key, _, _, _ in columns)])
        values = zip(*(_numbers(values) for _, _, values, _ in columns), strict=True)
        for name, row in zip(classes, values, strict=True):
            writer.writerow([name, *row])
        writer.writerow(["mean", *(_number(mean) for _, _, _, mean in columns)])
        return text.getvalue()

    def trimap_csv(self) -> str:
        """Mean IoU by the width of the band around void pixels, empty without bands."""
        versions = {"mean_iou": self} | ({"crf_mean_iou": self.refined} if self.refined else {})
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for width in sorted(self.trimaps):
            scores = [_number(version.trimaps[width].mean_iou) for version in versions.values()]
            writer.writerow([width, *scores])
        return ",".join(["width", *versions]) + "\n" + text.getvalue() if self.trimaps else ""

    def table(self, classes: Sequence[str], title: str) -> rich.table.Table:
        """A table with a row per class and the means below, in per cent."""
        table = rich.table.Table(title=title, show_footer=True)
        table.add_column("class", "mean")
        columns = self._compared()
        signs = ["+" if key.endswith("change") else "" for key, _, _, _ in columns]
        for (_, heading, _, mean), sign in zip(columns, signs, strict=True):
            table.add_column(heading, _percent(mean, sign), justify="right")
        for name, *row in zip(classes, *(values for _, _, values, _ in columns), strict=True):
            table.add_row(name, *map(_percent, row, signs))
        table.caption = f"{self.images} images, {self._means()}"
        if self.refined is not None:
            table.caption += f"\nwith CRF {self.refined._means()}"
            if self.refined.scores.mean_iou < self.scores.mean_iou:
                table.caption += (
                    "\n[yellow]the CRF lowers mean IoU here: segjax tune-crf looks for parameters "
                    "that suit it; where none do, leave it out"
                )
        return table

    def _columns(self) -> list[tuple[str, str, np.ndarray, float]]:
        """Key, heading, values by class [C] and mean of each column."""
        scores = self.scores
        columns = [
            ("iou", "IoU", scores.iou, scores.mean_iou),
            ("accuracy", "accuracy", scores.accuracy, scores.class_average),
            ("share", "share", scores.share, 1.0),
        ]
        if self.boundary_f1_by_class is not None:
            by_class, mean = self.boundary_f1_by_class, self.boundary_f1
            columns.append(("boundary_f1", "boundary F1", by_class, mean))
        return columns

    def _compared(self) -> list[tuple[str, str, np.ndarray, float]]:
        """The columns, with those after the CRF and the change of IoU behind them."""
        if self.refined is None:
            return self._columns()
        after = {key: column for key, *column in self.refined._columns() if key != "share"}
        (_, _, before, mean), (_, refined, refined_mean) = self._columns()[0], after["iou"]
        change = ("crf_iou_change", "change", refined - before, refined_mean - mean)
        return [
            *self._columns(),
            *((f"crf_{key}", f"CRF {heading}", *rest) for key, (heading, *rest) in after.items()),
            change,
        ]

    def _means(self) -> str:
        return (
            f"global accuracy {_percent(self.scores.global_accuracy)}, "
            f"frequency-weighted IoU {_percent(self.scores.frequency_weighted_iou)}"
        )


def protocol_step(
    variables: dict[str, Any],
    batch: dict[str, jax.Array],
    *,
    config: Config,
    protocol: Protocol,
    kernels: Kernels = (),
) -> tuple[Any, ...]:
    """`steps.eval_step` with a paper's protocol of prediction, to be mapped over the devices.

    With kernels, what the CRF makes of the protocol's scores is scored behind them.
    """
    height, width = batch["label"].shape[1:]
    none = (batch["size"] == 0).any(-1, keepdims=True)  # what fills up the last batch
    size = jnp.where(none, jnp.array([height, width], jnp.int32), batch["size"])
    scores = inference.scores(variables, batch["image"], size, config=config, protocol=protocol)
    versions = [scores]
    if kernels:
        versions.append(refinement.refine(scores, batch["image"], size, kernels, config.crf))
    return steps.scored(versions, batch["label"], size, config)


def evaluate(
    step: Callable[..., Any],
    variables: dict[str, Any],
    batches: Iterable[Any],
    *,
    num_classes: int,
    boundary: bool = False,
    pictures: int = 0,
    every: int = 1,
    each: Callable[[], None] = lambda: None,
    save: Callable[[str, np.ndarray], None] | None = None,
) -> Evaluation:
    """Runs a network over a split.

    Args:
      step: `steps.eval_step` mapped over the devices, or a function like it. It may return the
        counts and predictions after a CRF behind those of the network.
      variables: "params" and "batch_stats".
      batches: of `pipeline.eval_batches`.
      num_classes: C.
      boundary: measure SegNet's boundary F1, on the host.
      pictures: images spread over the split to keep at the most; half as many of the worst and of
        the best are kept beside them.
      every: keep each image whose number is a multiple of this.
      each: called after every batch.
      save: called with the id of each image and its prediction int32 [H, W], after the CRF where
        there is one.
    """
    tallies: list[_Tally] = []
    kept = _Kept(num_classes, pictures, every)
    images = 0

    def collect(outcome: tuple[Any, ...], batch: Any) -> None:
        nonlocal images
        versions = [outcome[i : i + 2] for i in range(0, len(outcome), 2)]
        tallies.extend(_Tally(num_classes) for _ in versions[len(tallies) :])
        for tally, (counts, _) in zip(tallies, versions, strict=True):
            tally.add(counts)
        if boundary or pictures or save:
            predictions = [np.asarray(prediction) for _, prediction in versions]
            for number, (name, image, label, *found) in enumerate(
                _images(batch, predictions), images
            ):
                kept.add(number, name, image, label, found)
                if boundary:
                    for tally, prediction in zip(tallies, found, strict=True):
                        tally.add_boundary(label, prediction)
                if save:
                    save(name, found[-1])
        images += sum(name != "" for name in batch.ids)

    running = None
    for batch in batches:
        sizes = np.reshape(batch.sizes, (*batch.image.shape[:2], 2))
        inputs = {"image": batch.image, "label": batch.label, "size": sizes.astype(np.int32)}
        # One batch behind the device, so that it never waits for the host.
        running, finished = (step(variables, inputs), batch), running
        if finished is not None:
            collect(*finished)
        each()
    if running is not None:
        collect(*running)
    if jax.process_count() > 1:
        images = int(multihost_utils.process_allgather(np.asarray(images)).sum())
    first, *others = [tally.finish(images, boundary) for tally in tallies]
    refined = others[0] if others else None
    return dataclasses.replace(first, examples=kept.examples(), refined=refined)


class _Tally:
    """The sums of one version of the predictions."""

    def __init__(self, num_classes: int) -> None:
        self._confusions: dict[str, np.ndarray] = {}
        self._edges = np.zeros((num_classes + 1, 2))  # sums and counts, by class and over images

    def add(self, counts: dict[str, Any]) -> None:
        for name, confusion in counts.items():
            self._confusions[name] = self._confusions.get(name, 0) + np.asarray(confusion, np.int64)

    def add_boundary(self, label: np.ndarray, prediction: np.ndarray) -> None:
        f1, by_class = boundary_f1(label, prediction, len(self._edges) - 1)
        self._edges[:-1, 0] += np.nan_to_num(by_class)
        self._edges[:-1, 1] += np.isfinite(by_class)
        self._edges[-1] += (f1, 1)

    def finish(self, images: int, boundary: bool) -> Evaluation:
        edges = self._edges
        if jax.process_count() > 1:
            edges = multihost_utils.process_allgather(edges).sum(0)
        means = np.where(edges[:, 1] > 0, edges[:, 0] / np.maximum(edges[:, 1], 1), np.nan)
        scores = {name: Scores(confusion) for name, confusion in self._confusions.items()}
        return Evaluation(
            scores=scores.pop("all"),
            trimaps={int(name.removeprefix("trimap_")): s for name, s in scores.items()},
            boundary_f1=float(means[-1]) if boundary else None,
            boundary_f1_by_class=means[:-1] if boundary else None,
            images=images,
        )


class _Kept:
    """The images kept: some spread over the split, the worst and the best."""

    def __init__(self, num_classes: int, count: int, every: int) -> None:
        self._num_classes, self._count, self._every = num_classes, count, every
        self._spread: list[Example] = []
        self._ranked: dict[str, list[tuple[float, int, Example]]] = {"worst": [], "best": []}

    def add(
        self,
        number: int,
        name: str,
        image: np.ndarray,
        label: np.ndarray,
        predictions: Sequence[np.ndarray],
    ) -> None:
        if not self._count:
            return
        scores = tuple(Scores(_confusion(label, p, self._num_classes)) for p in predictions)

        def example(kind: str) -> Example:
            # Copies: the batch is given up.
            maps = tuple(p.copy() for p in predictions)
            return Example(kind, name, image.copy(), label.copy(), maps, scores)

        if len(self._spread) < self._count and number % self._every == 0:
            self._spread.append(example("random"))
        if np.isnan(scores[0].mean_iou):
            return
        for kind, sign in (("worst", 1), ("best", -1)):
            entry = (sign * scores[0].mean_iou, number)
            ranked, most = self._ranked[kind], max(self._count // 2, 1)
            if len(ranked) < most or entry < ranked[-1][:2]:
                ranked.append((*entry, example(kind)))
                ranked.sort(key=lambda e: e[:2])
                del ranked[most:]

    def examples(self) -> tuple[Example, ...]:
        ranked = [example for ranked in self._ranked.values() for *_, example in ranked]
        return (*ranked, *self._spread)


def _confusion(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    valid = (label >= 0) & (label < num_classes)
    cells = label[valid].astype(np.int64) * num_classes + prediction[valid]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _images(batch: Any, predictions: Sequence[np.ndarray]) -> Iterable[tuple[Any, ...]]:
    """Yields the images of a batch without their padding."""
    arrays = [np.asarray(batch.image), np.asarray(batch.label), *predictions]
    arrays = [array.reshape(-1, *array.shape[2:]) for array in arrays]
    for i, (name, (height, width)) in enumerate(zip(batch.ids, batch.sizes, strict=True)):
        if name:
            yield name, *(array[i, :height, :width] for array in arrays)


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _percent(value: float, sign: str = "") -> str:
    return "-" if np.isnan(value) else f"{100 * value:{sign}.2f}"
