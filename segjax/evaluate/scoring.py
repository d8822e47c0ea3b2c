"""Scoring a split: every pixel of every image once, whatever the batches and devices."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from segjax import log, rows, steps
from segjax.config import Config
from segjax.crf_rnn import Kernels
from segjax.data import datasets, pipeline
from segjax.evaluate.result import Evaluation, Example
from segjax.evaluate.step import Outcome, eval_step, out_axes
from segjax.metrics import Scores, boundary_f1
from segjax.predict.protocols import Protocol

Save = Callable[[str, np.ndarray], None]


def nothing() -> None:
    """Does nothing, after each batch."""


def evaluator(
    config: Config,
    prepared: datasets.Prepared,
    *,
    protocol: Protocol | None = None,
    kernels: Kernels | None = None,
    class_weights: np.ndarray | None = None,
    save: Save | None = None,
    each: Callable[[], None] = nothing,
) -> Callable[[dict[str, Any], str], Evaluation]:
    """Returns a function of variables and the name of a split; it is compiled once.

    Args:
      config: of the run.
      prepared: the data set.
      protocol: how images become scores; by default in one pass, as training does it.
      kernels: of a CRF that refines the scores, for results of both; () for none, None for the one
        that was learnt with the network, where one was.
      class_weights: float32 [C] of the loss.
      save: called with the id and the label map of each image.
      each: called after each batch.
    """
    refined = bool(kernels) or (kernels is None and config.crf.learn)
    step = steps.parallel(
        eval_step,
        in_axes=(None, 0),
        out_axes=out_axes(refined),
        config=config,
        protocol=protocol or Protocol(),
        kernels=kernels,
        class_weights=class_weights,
    )

    def placed(variables: dict[str, Any], batch: dict[str, Any]) -> Outcome:
        size = jax.device_put(batch["size"], batch["image"].sharding)
        return step(variables, {**batch, "size": size})

    def run(variables: dict[str, Any], split: str) -> Evaluation:
        batches = pipeline.eval_batches(
            prepared,
            config.data,
            split,
            batch_size=config.eval.batch_size,
            mesh=rows.mesh(jax.local_devices(), config.train.rows),
            fill=config.input.mean,
        )
        images = config.data.num_val or len(prepared.source(split))
        total = -(-images // config.eval.batch_size)
        with batches, log.progress() as bar:
            task = bar.add_task(f"evaluate {split}", total=total, text="")

            def after_batch() -> None:
                bar.advance(task)
                each()

            return evaluate(
                placed,
                steps.replicated(variables, rows=config.train.rows),  # once, not with every batch
                batches,
                num_classes=config.model.num_classes,
                boundary=config.eval.boundary_f1,
                pictures=config.train.images,
                every=max(images // jax.process_count() // max(config.train.images, 1), 1),
                each=after_batch,
                save=save,
            )

    return run


def evaluate(
    step: Callable[..., Any],
    variables: dict[str, Any],
    batches: Iterable[Any],
    *,
    num_classes: int,
    boundary: bool = False,
    pictures: int = 0,
    every: int = 1,
    each: Callable[[], None] = nothing,
    save: Save | None = None,
) -> Evaluation:
    """Runs a network over a split.

    Args:
      step: `eval_step` mapped over the devices, or a function like it.
      variables: "params" and "batch_stats".
      batches: of `pipeline.eval_batches`.
      num_classes: C.
      boundary: measure SegNet's boundary F1, on the host.
      pictures: images spread over the split to keep at the most; half as many of the worst and of
        the best are kept too, no image as both.
      every: keep each image whose number is a multiple of this.
      each: called after every batch.
      save: called with the id of each image and its prediction, uint8 or uint16 [H, W], after the
        CRF where there is one.
    """
    tallies: dict[str, _Tally] = {}
    kept = _Kept(num_classes, pictures, every)
    images = 0

    def collect(outcome: Outcome, batch: Any) -> None:
        nonlocal images
        versions = {name: v for name, v in outcome._asdict().items() if v is not None}
        for name, version in versions.items():
            tallies.setdefault(name, _Tally(num_classes)).add(version.counts, version.loss)
        if boundary or pictures or save:
            predictions = [np.asarray(version.labels) for version in versions.values()]
            for number, (name, image, label, *found) in enumerate(
                _images(batch, predictions), images
            ):
                kept.add(number, name, image, label, found)
                if boundary:
                    for tally, prediction in zip(tallies.values(), found, strict=True):
                        tally.add_boundary(label, prediction)
                if save:
                    save(name, found[-1])
        images += sum(name != "" for name in batch.ids)

    running = None
    for batch in batches:
        sizes = np.reshape(batch.sizes, (*batch.image.shape[:2], 2))
        inputs = {"image": batch.image, "label": batch.label, "size": sizes.astype(np.int32)}
        # The host takes a result one batch later, so that the device never waits for it.
        running, finished = (step(variables, inputs), batch), running
        if finished is not None:
            collect(*finished)
        each()
    if running is not None:
        collect(*running)
    if jax.process_count() > 1:
        images = int(multihost_utils.process_allgather(np.asarray(images)).sum())
    found = {name: tally.finish(images, boundary) for name, tally in tallies.items()}
    return dataclasses.replace(found["network"], examples=kept.examples(), refined=found.get("crf"))


class _Tally:
    """The sums of one version of the predictions."""

    def __init__(self, num_classes: int) -> None:
        self._confusions: dict[str, np.ndarray] = {}
        self._loss = np.zeros(2)  # sum and number of pixels
        self._edges = np.zeros((num_classes + 1, 2))  # sums and counts, by class and over images

    def add(self, counts: dict[str, Any], loss: Any) -> None:
        self._loss += np.asarray(loss)
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
            loss=float(self._loss[0] / self._loss[1]) if self._loss[1] else None,
        )


class _Kept:
    """The images kept: some spread over the split, the worst and the best."""

    def __init__(self, num_classes: int, count: int, every: int) -> None:
        self._num_classes, self._count, self._every = num_classes, count, every
        self._spread: list[Example] = []
        self._ranked: dict[str, list[tuple[float, int, Example]]] = {"worst": [], "best": []}
        self._scored = 0  # images with a mean IoU

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
        self._scored += 1
        for kind, sign in (("worst", 1), ("best", -1)):
            # Of equal ones the first is the worst and the last the best: never one picture twice.
            entry = (sign * scores[0].mean_iou, sign * number)
            ranked, most = self._ranked[kind], max(self._count // 2, 1)
            if len(ranked) < most or entry < ranked[-1][:2]:
                ranked.append((*entry, example(kind)))
                ranked.sort(key=lambda e: e[:2])
                del ranked[most:]

    def examples(self) -> tuple[Example, ...]:
        # Of a few images no more than half are the worst, and half the best.
        most = self._scored // 2
        ranked = [example for kept in self._ranked.values() for *_, example in kept[:most]]
        return (*ranked, *self._spread)


def _confusion(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    valid = (label < num_classes) & (prediction < num_classes)
    cells = label[valid].astype(np.int64) * num_classes + prediction[valid]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _images(batch: Any, predictions: Sequence[np.ndarray]) -> Iterable[tuple[Any, ...]]:
    """Yields the images of a batch without their padding."""
    arrays = [np.asarray(batch.image), np.asarray(batch.label), *predictions]
    arrays = [array.reshape(-1, *array.shape[2:]) for array in arrays]
    for i, (name, (height, width)) in enumerate(zip(batch.ids, batch.sizes, strict=True)):
        if name:
            yield name, *(array[i, :height, :width] for array in arrays)
