"""Grid search for the parameters of a CRF that refines a trained network.

DeepLab v1 and v2 (section 4.1 of each): with w2 and sigma_gamma fixed, w1, sigma_alpha and
sigma_beta are searched from coarse to fine on 100 validation images. Here the network runs once;
its scores stay on disk, and so does every point that was tried: a search that was stopped goes on.

The search passes sigma_alpha and sigma_beta to one compiled program, as features. Their lattice
lies a little differently from that of fixed ones, so the best point is scored again as prediction
runs it.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from segjax import crf, crf_rnn, log, metrics, paths, rows, steps, training
from segjax.config import CRF, Config
from segjax.data import datasets, pipeline
from segjax.evaluate.result import Evaluation
from segjax.files import whole_file, write_json
from segjax.ops import IGNORE_LABEL
from segjax.predict import program, protocols
from segjax.workdir import LETTERS, TUNED, open_run

Point = dict[str, float]  # by workdir.LETTERS; with "mean_iou" when it was tried
SHOWN = 10  # points in the table


@dataclasses.dataclass(frozen=True)
class Grid:
    """The points that are tried: all combinations, then finer ones round the best.

    The first round is DeepLab v2's. Each finer round halves the steps and tries one step to either
    side of the best point; what has one value only stays.
    """

    w1: tuple[float, ...] = (3, 4, 5, 6)
    alpha: tuple[float, ...] = (30, 40, 50, 60, 70, 80, 90, 100)  # pixels
    beta: tuple[float, ...] = (3, 4, 5, 6)  # of 0..255
    w2: float = 3.0
    gamma: float = 3.0  # pixels
    finer: int = 2  # rounds after the first

    def check(self) -> None:
        """Raises ValueError where a number is none that can be tried."""
        for name in ("w1", "alpha", "beta"):
            values = getattr(self, name)
            if not values or not all(0 < value < math.inf for value in values):
                raise ValueError(f"{name} is {values}; give finite numbers above 0")
        if not (0 < self.gamma < math.inf and 0 <= self.w2 < math.inf and self.finer >= 0):
            raise ValueError(
                f"gamma={self.gamma}, w2={self.w2}, finer={self.finer}: above 0, and 0 or more"
            )

    def coarse(self) -> list[Point]:
        """The points of the first round."""
        return [self._point(*p) for p in itertools.product(self.w1, self.alpha, self.beta)]

    def round(self, best: Point, number: int) -> list[Point]:
        """The points of a finer round, 1 and up, round the best so far."""
        axes = []
        for name in ("w1", "alpha", "beta"):
            step = self._step(name) / 2**number
            tried = {best[name] - step, best[name], best[name] + step}
            axes.append(sorted(value for value in tried if value >= self.least(name)))
        return [self._point(*p) for p in itertools.product(*axes)]

    def least(self, name: str) -> float:
        """The smallest value of an axis that any round may try."""
        smallest = min(getattr(self, name))
        return max(smallest - self._step(name), smallest / 2)

    def _step(self, name: str) -> float:
        values = sorted(set(getattr(self, name)))
        return min((b - a for a, b in itertools.pairwise(values)), default=0)

    def _point(self, w1: float, alpha: float, beta: float) -> Point:
        values = (w1, alpha, beta, self.w2, self.gamma)
        return dict(zip(LETTERS, map(float, values), strict=True))


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The outcome of a search."""

    points: list[Point]  # the best first
    evaluation: Evaluation  # of the best point: without and with the CRF, as prediction runs it
    classes: tuple[str, ...]
    path: pathlib.Path  # of the file that prediction and evaluation read

    def table(self) -> rich.table.Table:
        """The best points, in per cent."""
        before = self.evaluation.scores.mean_iou
        table = rich.table.Table(title=f"CRF parameters, the best {SHOWN} of {len(self.points)}")
        for heading in (*LETTERS, "mean IoU", "change"):
            table.add_column(heading, justify="right")
        for point in self.points[:SHOWN]:
            change = point["mean_iou"] - before
            table.add_row(
                *(f"{point[letter]:g}" for letter in LETTERS),
                f"{100 * point['mean_iou']:.2f}",
                f"{100 * change:+.2f}",
            )
        table.caption = f"without CRF {100 * before:.2f}, on {self.evaluation.images} images"
        return table


def tune(
    workdir: pathlib.Path,
    *,
    grid: Grid | None = None,
    images: int = 100,
    split: str = "",
    step: str = "best",
    protocol: str = "whole",
    data_dir: str = "",
) -> Tuned:
    """Searches the best CRF for a run and writes `crf.json` in its folder.

    The scores lie in the folder `tune` there, one .npz per image: float16, 2 * H * W * C bytes, the
    largest of each pixel at 0; remove the folder when the search is over. Of a run in a bucket they
    lie in ~/.cache/segjax/scores.

    Args:
      workdir: of the run.
      grid: what is tried.
      images: of the split, spread evenly over it; 0: all.
      split: by default the one to validate on.
      step: the checkpoint, "best", "latest" or a number.
      protocol: a key of `protocols.PROTOCOLS`.
      data_dir: the folder of the raw data, where it is another than in training.

    Raises:
      ValueError: there is no such run, split or protocol, a number is out of range, or the data
        have other classes.
    """
    grid = grid or Grid()
    grid.check()
    run = open_run(workdir, step)
    if run.step is None:
        raise ValueError(f"{workdir} holds weights alone; a search needs the folder of a run")
    config = run.config
    config.train.rows = rows.possible(config.train.rows)
    config.data.dir = data_dir or config.data.dir
    config.data.num_val = 0  # `images` says how many
    split = split or config.data.val_split
    chosen = protocols.find(protocol)
    config, prepared = training.prepare(config, [split], run.classes)
    available = len(prepared.source(split))
    config.data.num_val = images = min(images, available) or available
    digest = _digest(run.variables, prepared.folders[split])
    name = f"{split}_{run.step:06d}_{protocol}_{images}_{digest}"
    folder = paths.cached(run.folder / "tune", "scores") / name
    save_scores(folder, config, prepared, split, run.variables, chosen, images)

    samples = _Samples(folder, images, prepared.canvas(split))
    tried = search(samples, grid, config.crf, prepared.dataset.num_classes, folder)
    points = sorted(tried, key=lambda point: -point["mean_iou"])
    best = {letter: points[0][letter] for letter in LETTERS}
    evaluation = compare(samples, best, config.crf, prepared.dataset.num_classes)
    path = run.folder / TUNED
    about = {"split": split, "step": run.step, "protocol": protocol, "images": images}
    scores = {
        "mean_iou": evaluation.refined.scores.mean_iou,
        "mean_iou_without": evaluation.scores.mean_iou,
    }
    write_json(path, {**best, **scores, **about, "command": log.command()})
    return Tuned(points, evaluation, prepared.dataset.classes, path)


def _digest(variables: dict[str, Any], records: pathlib.Path) -> str:
    """Returns eight digits that differ between networks and between data, also repaired ones.

    Args:
      variables: of the network.
      records: the folder of the prepared split, whose name changes when a file of the data does.
    """
    digest = hashlib.sha256(f"{records.parent.name}/{records.name}".encode())
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:8]


def scores_step(
    variables: dict[str, Any],
    batch: dict[str, jax.Array],
    *,
    config: Config,
    protocol: protocols.Protocol,
) -> jax.Array:
    """Scores float16 [B, H, W, C] less the largest of each pixel, to be mapped over the devices.

    A CRF does not see what is added to all classes of a pixel, and float16 is finest near 0, where
    classes are close.
    """
    image = rows.split(batch["image"], config.train.rows)
    scores = program.scores(variables, image, batch["size"], config=config, protocol=protocol)
    return (scores - scores.max(-1, keepdims=True)).astype(jnp.float16)


def save_scores(
    folder: pathlib.Path,
    config: Config,
    prepared: datasets.Prepared,
    split: str,
    variables: dict[str, Any],
    protocol: protocols.Protocol,
    images: int,
) -> None:
    """Writes scores, image and label of each image to `folder`, from the first one not there."""
    done = next((i for i in range(images) if not _file(folder, i).exists()), images)
    if done == images:
        return
    mesh = rows.mesh(jax.local_devices(), config.train.rows)
    groups = mesh.shape[rows.BATCH]
    size = -(-config.eval.batch_size // groups) * groups
    step = steps.parallel(
        scores_step, in_axes=(None, 0), out_axes=0, config=config, protocol=protocol
    )
    batches = pipeline.eval_batches(
        prepared,
        config.data,
        split,
        batch_size=size,
        mesh=mesh,
        fill=config.input.mean,
    )
    variables = steps.replicated(variables, rows=config.train.rows)  # once, not with every batch
    start = done // size * size
    batches.set_state({"images": start})
    with batches, log.progress() as bar:
        task = bar.add_task("network", total=images, completed=start, text="")
        for batch in batches:
            sizes = np.maximum(batch.sizes, 1)  # 0 where the last batch has no image left
            sizes = sizes.reshape(*batch.image.shape[:2], 2)
            scores = step(variables, {"image": batch.image, "size": sizes})
            arrays = [np.asarray(a) for a in (scores, batch.image, batch.label)]
            arrays = [a.reshape(-1, *a.shape[2:]) for a in arrays]
            for i, (name, (height, width)) in enumerate(zip(batch.ids, batch.sizes, strict=True)):
                if name:
                    own = [a[i, :height, :width] for a in arrays]
                    with whole_file(_file(folder, start + i)) as file:
                        np.savez(file, **dict(zip(("scores", "image", "label"), own, strict=True)))
                    bar.advance(task)
            start += size


def search(
    samples: "_Samples", grid: Grid, config: CRF, num_classes: int, folder: pathlib.Path
) -> list[Point]:
    """Tries the points of all rounds that `folder/points.json` does not have yet; returns them."""
    path = folder / "points.json"
    try:
        known: list[Point] = json.loads(path.read_text()) if path.exists() else []
        tried = {tuple(p[letter] for letter in LETTERS): p for p in known}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; remove it to search anew") from error
    height, width = samples.canvas
    alpha, beta = grid.least("alpha"), grid.least("beta")
    # A little more than the largest features: they are rounded.
    extent = tuple(
        1.001 * n for n in ((width - 1) / alpha, (height - 1) / alpha, *[255 / beta] * 3)
    )
    count = jax.jit(
        functools.partial(
            _search_confusion,
            grid=grid,
            extent=extent,
            config=config,
            num_classes=num_classes,
        )
    )

    with log.progress() as bar:
        points, in_grid = grid.coarse(), []
        for number in range(grid.finer + 1):
            new = [p for p in points if tuple(p.values()) not in tried]
            name = f"round {number + 1} of {grid.finer + 1}"
            task = bar.add_task(name, total=len(new) * samples.count, text="")
            for point in new:
                total = np.zeros((num_classes,) * 2, np.int64)
                for sample in samples:
                    own = np.asarray(count(*sample, point["w1"], point["alpha"], point["beta"]))
                    assert own.sum() >= 0, "the features overflow the lattice"
                    total += own
                    bar.advance(task)
                mean_iou = metrics.Scores(total).mean_iou
                tried[tuple(point.values())] = {**point, "mean_iou": mean_iou}
                write_json(path, list(tried.values()))
                best = max(p["mean_iou"] for p in tried.values())
                bar.update(task, text=f"best {100 * best:.2f}")
            in_grid += [tried[tuple(p.values())] for p in points]
            best_point = max(in_grid, key=lambda p: p["mean_iou"])
            points = grid.round(best_point, number + 1)
    return list({tuple(p.values()): p for p in in_grid}.values())


def compare(samples: "_Samples", point: Point, config: CRF, num_classes: int) -> Evaluation:
    """Scores the saved images without a CRF and with that of a point, as prediction runs it."""
    count = functools.partial(_confusion, num_classes=num_classes)
    kernels = crf.deeplab_kernels(*point.values())
    totals = np.zeros((2, num_classes, num_classes), np.int64)
    for scores, image, label, size in samples:
        scores = jnp.asarray(scores, jnp.float32)
        refined = crf_rnn.refine(scores[None], image[None], size[None], kernels, config)
        totals += np.stack([count(scores, label), count(refined[0], label)])
    before, after = (
        Evaluation(metrics.Scores(total), {}, None, None, samples.count) for total in totals
    )
    return dataclasses.replace(before, refined=after)


def _search_confusion(
    scores: jax.Array,
    image: jax.Array,
    label: jax.Array,
    size: jax.Array,
    w1: jax.Array,
    alpha: jax.Array,
    beta: jax.Array,
    *,
    grid: Grid,
    extent: tuple[float, ...],
    config: CRF,
    num_classes: int,
) -> jax.Array:
    """The confusion matrix of one image with the bilateral kernel as features, -1 on overflow."""
    height, width = label.shape
    position = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), -1)
    values = [position.astype(jnp.float32) / alpha, image.astype(jnp.float32) / beta]
    features = jnp.concatenate(values, -1)[None]
    kernels = (crf.Features(features, extent, w1), crf.Spatial(grid.gamma, grid.w2))
    scores = scores.astype(jnp.float32)
    refined = crf_rnn.refine(scores[None], image[None], size[None], kernels, config)
    return jnp.where(jnp.isnan(refined).any(), -1, _confusion(refined[0], label, num_classes))


@functools.partial(jax.jit, static_argnames="num_classes")
def _confusion(scores: jax.Array, label: jax.Array, num_classes: int) -> jax.Array:
    return metrics.confusion_matrix(label, scores.argmax(-1).astype(jnp.int32), num_classes)


@dataclasses.dataclass(frozen=True)
class _Samples:
    """The saved images, each on the canvas: scores, image, label and size."""

    folder: pathlib.Path
    count: int
    canvas: tuple[int, int]

    def __iter__(self) -> Iterator[Sequence[np.ndarray]]:
        for i in range(self.count):
            with np.load(_file(self.folder, i)) as saved:
                scores, image, label = (saved[name] for name in ("scores", "image", "label"))
            size = np.int32(label.shape)
            border = [(0, whole - side) for whole, side in zip(self.canvas, size, strict=True)]
            yield (
                np.pad(scores, [*border, (0, 0)]),
                np.pad(image, [*border, (0, 0)]),
                np.pad(label, border, constant_values=IGNORE_LABEL),
                size,
            )


def _file(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"{number:06d}.npz"
