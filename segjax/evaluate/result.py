"""What an evaluation found: numbers by class, tables, and the images kept for people."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.table
import rich.text

from segjax.metrics import Scores

Row = tuple[str, np.ndarray, np.ndarray, np.ndarray]  # id, image, label, prediction


@dataclasses.dataclass(frozen=True)
class Example:
    """An image of a split, and what the network made of it."""

    kind: str  # why it is kept: "worst" or "best" by its mean IoU, or "random"
    id: str
    image: np.ndarray  # uint8 [H, W, 3]
    label: np.ndarray  # uint8 [H, W]
    predictions: tuple[np.ndarray, ...]  # [H, W]: the network's, and the one after the CRF
    scores: tuple[Scores, ...]  # of each prediction


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured on a split."""

    scores: Scores
    trimaps: dict[int, Scores]  # by band width in pixels
    boundary_f1: float | None  # SegNet's, mean over images
    boundary_f1_by_class: np.ndarray | None  # float64 [C]
    images: int
    loss: float | None = None  # mean cross entropy, weighted as in training
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
        if self.loss is not None:
            numbers["val_loss"] = self.loss
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
        """Returns a table with a row per class and the means below, in per cent.

        Args:
          classes: names, shown as they are: a bracket in them is no markup.
          title: shown as it is.
        """
        table = rich.table.Table(title=rich.text.Text(title, "italic"), show_footer=True)
        table.add_column("class", "mean")
        columns = self._compared()
        signs = ["+" if key.endswith("change") else "" for key, _, _, _ in columns]
        for (_, heading, _, mean), sign in zip(columns, signs, strict=True):
            table.add_column(heading, _percent(mean, sign), justify="right")
        for name, *row in zip(classes, *(values for _, _, values, _ in columns), strict=True):
            table.add_row(rich.text.Text(name), *map(_percent, row, signs))
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
        """The columns, followed by those after the CRF and the change of IoU."""
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


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _percent(value: float, sign: str = "") -> str:
    return "-" if np.isnan(value) else f"{100 * value:{sign}.2f}"
