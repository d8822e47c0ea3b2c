"""Scoring a split: every pixel of every image once, whatever the batches and devices."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import rich.table
from jax.experimental import multihost_utils

from segjax.metrics import Scores, boundary_f1


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured on a split."""

    scores: Scores
    trimaps: dict[int, Scores]  # by band width in pixels
    boundary_f1: float | None  # SegNet's, mean over images
    boundary_f1_by_class: np.ndarray | None  # float64 [C]
    images: int
    rows: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]  # id, image, label, prediction

    def summary(self) -> dict[str, float]:
        """The headline numbers by name."""
        numbers = self.scores.summary()
        if self.boundary_f1 is not None:
            numbers["boundary_f1"] = self.boundary_f1
        return numbers | {f"trimap_{w}_mean_iou": s.mean_iou for w, s in self.trimaps.items()}

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """All numbers as JSON values."""
        per_class = {
            name: {"iou": iou, "accuracy": accuracy, "share": share}
            for name, iou, accuracy, share in zip(
                classes,
                _numbers(self.scores.iou),
                _numbers(self.scores.accuracy),
                _numbers(self.scores.share),
                strict=True,
            )
        }
        if self.boundary_f1_by_class is not None:
            for name, score in zip(classes, _numbers(self.boundary_f1_by_class), strict=True):
                per_class[name]["boundary_f1"] = score
        return {
            "images": self.images,
            **self.summary(),
            "per_class": per_class,
            "confusion": self.scores.confusion.tolist(),
        }

    def table(self, classes: tuple[str, ...], title: str) -> rich.table.Table:
        """A table with a row per class and the means below."""
        columns = ["class", "IoU", "accuracy", "share"]
        values = [self.scores.iou, self.scores.accuracy, self.scores.share]
        means = [self.scores.mean_iou, self.scores.class_average, 1.0]
        if self.boundary_f1_by_class is not None:
            columns.append("boundary F1")
            values.append(self.boundary_f1_by_class)
            means.append(self.boundary_f1)
        table = rich.table.Table(title=title, show_footer=True)
        for i, column in enumerate(columns):
            footer = "mean" if i == 0 else _percent(means[i - 1])
            table.add_column(column, footer, justify="left" if i == 0 else "right")
        for name, *row in zip(classes, *values, strict=True):
            table.add_row(name, *map(_percent, row))
        table.caption = (
            f"{self.images} images, global accuracy {_percent(self.scores.global_accuracy)}, "
            f"frequency-weighted IoU {_percent(self.scores.frequency_weighted_iou)}"
        )
        return table


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
) -> Evaluation:
    """Runs a network over a split.

    Args:
      step: `steps.eval_step` mapped over the devices.
      variables: "params" and "batch_stats".
      batches: of `pipeline.eval_batches`.
      num_classes: C.
      boundary: measure SegNet's boundary F1, on the host.
      pictures: images to keep at the most.
      every: keep each image whose number is a multiple of this.
      each: called after every batch.
    """
    totals: dict[str, np.ndarray] = {}
    rows: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []
    edges = np.zeros((num_classes + 1, 2))  # sums and counts, by class and over images
    images = 0
    running = None
    collect = functools.partial(
        _collect,
        totals=totals,
        rows=rows,
        edges=edges,
        pictures=pictures,
        every=every,
        boundary=boundary,
    )
    for batch in batches:
        counts, prediction = step(variables, {"image": batch.image, "label": batch.label})
        # One batch behind the device, so that it never waits for the host.
        running, finished = (counts, prediction, batch), running
        images += collect(finished, first=images)
        each()
    images += collect(running, first=images)
    if jax.process_count() > 1:
        images, edges = multihost_utils.process_allgather((np.asarray(images), edges))
        images, edges = int(images.sum()), edges.sum(0)
    scores = {name: Scores(confusion) for name, confusion in totals.items()}
    means = np.where(edges[:, 1] > 0, edges[:, 0] / np.maximum(edges[:, 1], 1), np.nan)
    return Evaluation(
        scores=scores.pop("all"),
        trimaps={int(name.removeprefix("trimap_")): s for name, s in scores.items()},
        boundary_f1=float(means[-1]) if boundary else None,
        boundary_f1_by_class=means[:-1] if boundary else None,
        images=images,
        rows=rows,
    )


def _collect(
    finished: Any,
    *,
    first: int,
    totals: dict[str, np.ndarray],
    rows: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    edges: np.ndarray,
    pictures: int,
    every: int,
    boundary: bool,
) -> int:
    """Adds a batch that the device has finished; returns how many images it held."""
    if finished is None:
        return 0
    counts, prediction, batch = finished
    for name, confusion in counts.items():
        totals[name] = totals.get(name, 0) + np.asarray(confusion, np.int64)
    if boundary or len(rows) < pictures:
        for number, row in enumerate(_images(batch, np.asarray(prediction)), first):
            if len(rows) < pictures and number % every == 0:
                rows.append(row)
            if boundary:
                f1, by_class = boundary_f1(row[2], row[3], len(edges) - 1)
                edges[:-1, 0] += np.nan_to_num(by_class)
                edges[:-1, 1] += np.isfinite(by_class)
                edges[-1] += (f1, 1)
    return sum(name != "" for name in batch.ids)


def _images(batch: Any, prediction: np.ndarray) -> Iterable[tuple[str, Any, Any, Any]]:
    """Yields the images of a batch without their padding."""
    image, label = (np.asarray(x).reshape(-1, *x.shape[2:]) for x in (batch.image, batch.label))
    prediction = prediction.reshape(-1, *prediction.shape[2:])
    for i, (name, (height, width)) in enumerate(zip(batch.ids, batch.sizes, strict=True)):
        if name:
            crop = np.s_[i, :height, :width]
            yield name, image[crop], label[crop], prediction[crop]


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
