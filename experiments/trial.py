"""Trials and claims: trains each configuration, scores it, writes a JSON file and a figure.

A `Trial` is a name and a configuration of segjax. A `Claim` is a sentence of a paper and the trials
that test it. `main` runs the trials of a claim for each seed, every one in a run folder of its own:
the same command goes on where it was stopped. After each trial it writes anew what is known so far.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import flax.linen as nn
import jax
import matplotlib
import numpy as np

from segjax import config as config_lib
from segjax import files, log, state, training
from segjax.config import Augment, Config, Data, Eval, Input, Loss, Optim, Train
from segjax.crf_rnn import Kernels
from segjax.data.builders.camvid import Camvid
from segjax.data.images import read_image
from segjax.evaluate.scoring import evaluator
from segjax.models.pspnet import PSPNet
from segjax.predict.protocols import Protocol
from segjax.workdir import open_run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUM_CLASSES = 11  # of CamVid
ORIGINS = "origins.json"  # in a run's folder: where its numbers come from, by start
OF_A_RUN = ("data.dir", "data.cache", "train.seed", "train.init_from")  # which trials do not fix
Scores = dict[str, Any]  # "mean_iou": 0.4, ..., and "iou": {"sky": 0.9, ...}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the trials of a claim are."""

    name: str
    shrink: int  # the images are CamVid's 360x480, divided by this
    crop: tuple[int, int]  # height, width in pixels of the training images
    width: int  # channels of SegNet-Basic's layers
    depth: int  # of a ResNet
    resnet_width: int  # channels of its first convolution
    features: int  # channels of ASPP
    batch_size: int
    steps: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return 360 // self.shrink, 480 // self.shrink


SCALES = {
    # About an hour for a claim on two CPU cores.
    "small": Scale("small", 2, (96, 128), 24, 26, 16, 64, 8, 400),
    # The batch of SegNet's study of decoders (section 3.3), the steps of its tutorial; one GPU.
    "paper": Scale("paper", 1, (360, 480), 64, 50, 64, 256, 12, 10_000),
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A configuration under the name that tables and figures show."""

    name: str
    config: Config
    start: str = ""  # the trial before it, from whose weights this one goes on
    weights: bool = False  # it starts from the file that --weights names


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says, and the trials that test it.

    Attributes:
      name: of the module and of the files.
      paper: the claim in one sentence, with its numbers and source.
      trials: the trials at a scale.
      measures: the scores that the figure shows.
      scores: what a finished run adds to the result, by row; by default one row, its trial's name.
      facts: what needs no training, by row.
      panel: draws a panel of the claim's own, from axes and the result.
    """

    name: str
    paper: str
    trials: Callable[[Scale], list[Trial]]
    measures: tuple[str, ...] = ("mean_iou",)
    scores: Callable[[Trial, pathlib.Path], dict[str, Scores]] | None = None
    facts: Callable[[], dict[str, Any]] = dict
    panel: Callable[[Any, dict[str, Any]], None] | None = None


def segnet_config(scale: Scale, model: nn.Module, **optim: Any) -> Config:
    """Returns the configuration of a trial with SegNet-Basic or one of its variants.

    The optimiser of SegNet's tutorial with three changes: images are mirrored, the learning rate
    follows the poly schedule, and the loss has no class weights.

    Args:
      scale: of the experiment.
      model: to be trained.
      **optim: fields of the optimiser to change.
    """
    bias = r"(conv[^/]*|classifier)/bias$"
    optim = {"lr": 0.1, "lr_multipliers": {bias: 2.0}, "no_decay": (bias,), **optim}
    return Config(
        model=model,
        input=Input(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), bgr=True),
        data=Data(name="camvid", canvas=scale.size),
        augment=Augment(crop=scale.crop),
        optim=Optim(**optim),
        train=_train(scale),
        eval=Eval(batch_size=scale.batch_size),
    )


def resnet_config(scale: Scale, model: nn.Module, **optim: Any) -> Config:
    """Returns the configuration of a trial with DeepLab v3 or PSPNet, started from nothing.

    Sizes are of the form 8k + 1, for DeepLab v3 16k + 1, which is scored at both strides: with
    them corners stay aligned. The rim is filled up.

    Args:
      scale: of the experiment.
      model: to be trained.
      **optim: fields of the optimiser to change.
    """
    optim = {"lr": 0.05, "weight_decay": 1e-4, **optim}
    stride = 8 if isinstance(model, PSPNet) else 16
    canvas, crop = (
        tuple(-(-side // stride) * stride + 1 for side in size) for size in (scale.size, scale.crop)
    )
    return Config(
        model=model,
        data=Data(name="camvid", canvas=canvas),
        augment=Augment(crop=crop),
        loss=Loss(align_corners=True),
        optim=Optim(**optim),
        train=_train(scale),
        eval=Eval(batch_size=scale.batch_size),
    )


def _train(scale: Scale) -> Train:
    return Train(
        steps=scale.steps,
        batch_size=scale.batch_size,
        log_every=50,
        checkpoint_every=max(scale.steps // 4, 1),
        keep=1,
        images=4,
        recompute_batch_stats=20,
    )


def main(claim: Claim, argv: Sequence[str] | None = None) -> None:
    """Runs a claim as the command line says."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{claim.name}", description=claim.paper
    )
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of each trial")
    parser.add_argument("--data", default="", help="CamVid's folder; without, only what is counted")
    parser.add_argument("--weights", default="", help="file for trials that start from ImageNet")
    parser.add_argument("--out", default="runs/experiments", help="folder of runs and results")
    args = parser.parse_args(argv)
    out, seeds = pathlib.Path(args.out), range(args.seeds)
    run(claim, SCALES[args.scale], args.data, out, seeds, args.weights)


def run(
    claim: Claim,
    scale: Scale,
    data: str,
    out: pathlib.Path,
    seeds: Iterable[int] = (0,),
    weights: str = "",
) -> dict[str, Any]:
    """Trains and scores the trials of a claim; returns what is written to `out/NAME_SCALE.json`.

    What that file has already is kept, also when the runs themselves are gone: a trial that it
    names under "runs" is not run again with the same seed, unless another starts from it.

    Args:
      claim: to be tested.
      scale: of its trials.
      data: the folder of CamVid in SegNet's layout, "" to count only what needs no training.
      out: the folder of the runs and of the results.
      seeds: of initial weights, order of images and augmentation; all trials of one come first.
      weights: the file for trials that start from ImageNet; "" leaves them out.

    Raises:
      ValueError: the file has results of another scale.
    """
    path = out / f"{claim.name}_{scale.name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    known = before.get("runs", {})
    if known and before["scale"] != json.loads(json.dumps(dataclasses.asdict(scale))):
        raise ValueError(f"{path} has results of another scale; move it or choose another --out")
    result = {
        "claim": claim.name,
        "paper": claim.paper,
        "scale": dataclasses.asdict(scale),
        "data": f"CamVid, 367 training and 101 validation images of {scale.size} pixels",
        "measures": claim.measures,
        "facts": claim.facts(),
        "runs": known,
        "rows": before["rows"] if known else {},
    }
    write = functools.partial(_write, claim, result, path)
    write()
    if not data:
        return result
    folder = shrunken(pathlib.Path(data), out, scale)
    for seed in seeds:
        trials = {trial.name: trial for trial in claim.trials(scale)}
        for trial in trials.values():
            trial.config.data.dir, trial.config.train.seed = str(folder), seed
            if str(seed) in result["runs"].get(trial.name, {}):
                continue
            if trial.weights and not weights:
                log.say(f"trial {trial.name}: left out, --weights does not name its file")
                continue
            workdir = _workdir(out, claim, scale, trial.name, seed)
            if trial.start:
                start = _workdir(out, claim, scale, trial.start, seed)
                finish(trials[trial.start], start)
                trial.config.train.init_from = str(start)
            elif trial.weights:
                trial.config.train.init_from = weights
            finish(trial, workdir)
            measure = claim.scores or own_scores
            for row, scores in measure(trial, workdir).items():
                add(result["rows"], row, {"seed": seed, **scores})
            runs = result["runs"].setdefault(trial.name, {})
            runs[str(seed)] = record(trial.config, workdir)
            write()
    return result


def _write(claim: Claim, result: dict[str, Any], path: pathlib.Path) -> None:
    files.write_json(path, result)
    if result["rows"] or claim.panel:
        figure(result, path.with_suffix(".png"), claim.panel)


def finish(trial: Trial, workdir: pathlib.Path) -> None:
    """Trains a trial to its end, from where it stopped; SystemExit if a signal stops it.

    Raises:
      ValueError: the folder holds a run of another configuration.
    """
    _refuse_another(trial, workdir)
    if not _evaluation(trial, workdir).exists():
        log.say(f"trial {trial.name}: {workdir}")
        path = workdir / ORIGINS
        before, here = json.loads(path.read_text()) if path.exists() else [], origin()
        if here not in before:
            files.write_json(path, [*before, here])
        stopped = training.train(trial.config, workdir)
        jax.clear_caches()
        if stopped:
            raise SystemExit(128 + stopped)


def _refuse_another(trial: Trial, workdir: pathlib.Path) -> None:
    path = workdir / "config.json"
    ran = json.loads(path.read_text()) if path.exists() else {}
    for part, fields in json.loads(json.dumps(config_lib.to_dict(trial.config))).items():
        for field, value in fields.items():
            before = ran.get(part, {}).get(field, value)
            if before != value and f"{part}.{field}" not in OF_A_RUN:
                raise ValueError(
                    f"{workdir} holds a run with {part}.{field}={before}, and trial {trial.name} "
                    f"has {value}; delete the folder or choose another --out"
                )


def record(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Returns how long a finished run was trained, on what, and where its numbers come from."""
    return {
        "steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "crop": list(config.augment.crop),
        "init_from": pathlib.PurePath(config.train.init_from).name,  # a file or a trial's folder
        "origins": json.loads((workdir / ORIGINS).read_text()),
    }


def _workdir(out: pathlib.Path, claim: Claim, scale: Scale, name: str, seed: int) -> pathlib.Path:
    return out / claim.name / f"{scale.name}-{name.replace(' ', '_')}-{seed}"


def own_scores(trial: Trial, workdir: pathlib.Path) -> dict[str, Scores]:
    """Returns the scores that training wrote at its end, and the curve up to there."""
    scores = plain(json.loads(_evaluation(trial, workdir).read_text()))
    if trial.config.train.eval_every:
        scores["curve"] = dict(curve(workdir))
    return {trial.name: scores}


def scored(
    trial: Trial,
    workdir: pathlib.Path,
    name: str,
    *,
    protocol: Protocol | None = None,
    kernels: Kernels = (),
) -> Scores:
    """Returns the scores of a finished run by another protocol, or after a CRF.

    Args:
      trial: of the run.
      workdir: its folder, where the scores are kept.
      name: of the file that keeps them.
      protocol: how images become scores.
      kernels: of the CRF, () for none.
    """
    path = workdir / "scored" / f"{name}.json"
    if not path.exists():
        config = trial.config
        config, prepared = training.prepare(config, [config.data.val_split])
        variables = open_run(workdir, "latest").variables
        evaluate = evaluator(config, prepared, protocol=protocol, kernels=kernels)
        result = evaluate(variables, config.data.val_split)
        jax.clear_caches()
        files.write_json(path, (result.refined or result).to_dict(prepared.dataset.classes))
    return plain(json.loads(path.read_text()))


def plain(evaluation: dict[str, Any]) -> Scores:
    """Returns the numbers of an evaluation, and IoU by class under "iou"."""
    numbers = {k: v for k, v in evaluation.items() if isinstance(v, float)}
    return numbers | {"iou": {k: row["iou"] for k, row in evaluation["per_class"].items()}}


def curve(workdir: pathlib.Path, column: str = "mean_iou") -> Iterable[tuple[str, float]]:
    """Yields step and number of the rows of metrics.csv that have one in a column."""
    head, *lines = (workdir / "metrics.csv").read_text().splitlines()
    place = head.split(",").index(column)
    for cells in (line.split(",") for line in lines):
        if cells[place]:
            yield cells[0], float(cells[place])


def speed(workdir: pathlib.Path) -> float:
    """Returns the images per second that a run trained on, the median of what it logged."""
    return float(np.median([number for _, number in curve(workdir, "images_per_second")]))


def _evaluation(trial: Trial, workdir: pathlib.Path) -> pathlib.Path:
    return workdir / "eval" / f"{trial.config.train.steps:06d}.json"


def add(rows: dict[str, Any], name: str, scores: Scores) -> None:
    """Appends the scores of one seed to the lists of a row."""
    row = rows.setdefault(name, {})
    for key, value in scores.items():
        if isinstance(value, dict):
            for inner, number in value.items():
                row.setdefault(key, {}).setdefault(inner, []).append(number)
        else:
            row.setdefault(key, []).append(value)


def origin() -> dict[str, Any]:
    """Returns where numbers come from: commit, versions, processor and devices."""
    root = pathlib.Path(__file__).parents[1]
    ask = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    asked = subprocess.run(ask, capture_output=True, text=True, check=False)
    found = log.environment()
    names = [line for line in _cpu() if line.startswith("model name")]
    return {
        "commit": asked.stdout.strip() or "unknown",
        "python": found["python"],
        "packages": found["packages"],
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": found["cores"],
        "devices": found["devices"],
    }


def _cpu() -> list[str]:
    path = pathlib.Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def shrunken(data: pathlib.Path, out: pathlib.Path, scale: Scale) -> pathlib.Path:
    """Returns a folder with CamVid at the size of a scale, written to `out` if it is a smaller one.

    Pixels of an image are averaged; of a label map one of each block is kept.
    """
    if scale.shrink == 1:
        return data
    folder = out / f"camvid_{scale.size[0]}x{scale.size[1]}"
    for split in ("train", "val"):
        for pair in Camvid(str(data), split).pairs:
            image, mask = (folder / f"{split}{kind}" / f"{pair.id}.png" for kind in ("", "annot"))
            if mask.exists():
                continue
            rgb = read_image(pair.image.read_bytes())
            small = cv2.resize(rgb, scale.size[::-1], interpolation=cv2.INTER_AREA)
            label = cv2.imread(str(pair.mask), cv2.IMREAD_UNCHANGED)
            half = scale.shrink // 2
            files.write_bytes(image, cv2.imencode(".png", small[..., ::-1])[1].tobytes())
            label = label[half :: scale.shrink, half :: scale.shrink]
            files.write_bytes(mask, cv2.imencode(".png", label)[1].tobytes())
    return folder


def parameters(model: nn.Module) -> int:
    """Returns how many parameters a network has."""
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def inference_memory(model: nn.Module, size: tuple[int, int]) -> int:
    """Returns the bytes that the compiled network needs for the maps of one image."""
    key, image = jax.random.key(0), jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    variables = jax.eval_shape(functools.partial(state.init_variables, model, key, size))
    compiled = jax.jit(model.apply).lower(variables, image).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and standard deviation over the seeds; 0 for one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def figure(
    result: dict[str, Any],
    path: pathlib.Path,
    panel: Callable[[Any, dict[str, Any]], None] | None = None,
) -> None:
    """Draws a panel for each measure: mean and standard deviation over the seeds, and each seed.

    Rows with trimaps or with scores by step add a panel of lines each, in the colours of the rows;
    `panel` draws the last one.
    """
    rows = result["rows"]
    lines = {}
    trimaps = {name: _trimap(row) for name, row in rows.items()}
    if any(trimaps.values()):
        lines["trimap mean IoU", "width of the band in pixels"] = trimaps
    if any("curve" in row for row in rows.values()):
        lines["mean IoU", "step"] = {name: row["curve"] for name, row in rows.items()}
    measures = [m for m in result["measures"] if any(m in row for row in rows.values())]
    count = len(measures) + len(lines) + bool(panel)
    figure, panels = plt.subplots(
        1, count, figsize=(3.2 * count + 1.5, 1.2 + 0.4 * max(len(rows), 4)), squeeze=False
    )
    for i, (axes, measure) in enumerate(zip(panels[0], measures)):
        for y, row in enumerate(rows.values()):
            values = 100 * np.array(row.get(measure, [np.nan]), float)
            mean, deviation = spread(values)
            axes.errorbar(mean, -y, xerr=deviation, fmt="o", capsize=4, color=f"C{y}")
            axes.plot(values, np.full(len(values), -y), "|", color="black")
        axes.set_yticks(-np.arange(len(rows)), list(rows) if i == 0 else [""] * len(rows))
        words = measure.replace("_", " ").replace("iou", "IoU").replace("f1", "F1")
        axes.set_xlabel(f"{words}, per cent")
        axes.margins(y=0.15)
        axes.grid(axis="x", alpha=0.3)
    for axes, ((ylabel, xlabel), drawn) in zip(panels[0][len(measures) :], lines.items()):
        for y, points in enumerate(drawn.values()):
            x = [int(step) for step in points]
            mean, deviation = np.array([spread(100 * np.array(v)) for v in points.values()]).T
            axes.errorbar(x, mean, yerr=deviation, marker=".", capsize=3, color=f"C{y}")
        axes.set(xlabel=xlabel, ylabel=f"{ylabel}, per cent")
        axes.grid(alpha=0.3)
    if panel:
        panel(panels[0][-1], result)
    figure.tight_layout()
    with files.whole_file(path) as file:
        figure.savefig(file, dpi=75, format="png")
    plt.close(figure)


def _trimap(row: dict[str, Any]) -> dict[str, list[float]]:
    names = [name for name in row if name.startswith("trimap_")]
    return {name.split("_")[1]: row[name] for name in names}
