"""What one GPU or TPU can tell in half an hour, in order of value, saved after each part.

    python -m experiments.accelerator --minutes 25 --out measured --data CamVid

First the benchmarks (`benchmarks/`, next to torch where that is installed), then SegNet-Basic,
SegNet, DeepLab v3-50 and PSPNet-50 are trained on CamVid from random weights, in bfloat16 at paper
scale. Every part is a process of its own with a share of the time that is left. A training that
does not come to its last step stops there, is scored, and goes on when the same command is given
again with more minutes. `summary.md` in the folder says how far it came; nothing is downloaded.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
NEEDED = (
    *("jax", "flax", "optax", "orbax.checkpoint", "chex", "numpy", "scipy", "cv2", "PIL", "rich"),
    *("grain", "tensorflow_datasets", "pycocotools", "tensorboardX", "safetensors", "jinja2"),
    *("absl", "ml_collections", "matplotlib"),
)
OPTIONAL = ("torch", "torchvision", "pydensecrf", "skimage", "sklearn")  # for comparisons
NETWORKS = ("segnet_basic", "segnet", "deeplab_v3_50", "pspnet_50")
GRACE = 60  # seconds that a stopped part has to save and to score what it has


@dataclasses.dataclass(frozen=True)
class Part:
    """A process, and its share of the time that is left when it starts."""

    name: str
    words: tuple[str, ...]
    share: float


def parts(args: argparse.Namespace) -> list[Part]:
    """Returns the processes in order of value."""
    small = ("--small",) if args.scale == "small" else ()
    budget = ("--budget", str(round(0.2 * 60 * args.minutes)))
    options = {
        "crf": (0.15, small),
        "models": (0.25, (*small, *budget, "--eager")),
        "unpool": (0.1, ("--size", "1", "32", "48", "8") if small else ()),
        "predict": (0.1, small),
    }
    found = [
        Part(name, (f"benchmarks/{name}.py", *more, "--json", f"{args.out}/{name}.json"), share)
        for name, (share, more) in options.items()
    ]
    for i, name in enumerate(NETWORKS if args.data else ()):
        words = ("-m", "experiments.accelerator", "--train", name, "--scale", args.scale)
        words += ("--out", str(args.out), "--data", str(args.data))
        found.append(Part(name, words, 1 / (len(NETWORKS) - i)))
    return found


def main() -> None:
    """Runs one part after the other, or as such a process trains one network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25.0, help="for everything")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=pathlib.Path, help="CamVid's folder; without, no training")
    parser.add_argument("--scale", choices=("small", "paper"), default="paper")
    parser.add_argument("--train", choices=NETWORKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out, args.data = args.out.absolute(), args.data and args.data.absolute()
    if absent := missing(NEEDED):
        parser.error(f"these packages are missing: {', '.join(absent)}; pip install '.[docs]'")
    if args.train:
        train(args.train, args.scale, args.data, args.out)
        return
    if absent := missing(OPTIONAL):
        print(f"not installed: {', '.join(absent)}; what compares with them is left out")
    run(args)


def missing(names: tuple[str, ...]) -> list[str]:
    """Returns the packages that are not installed."""
    absent = []
    for name in names:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # the package that it is a part of
            found = None
        if not found:
            absent.append(name)
    return absent


def run(args: argparse.Namespace) -> None:
    """Runs the parts, and writes summary.md after each."""
    end = time.monotonic() + 60 * args.minutes
    outcomes: dict[str, str] = {}
    for part in parts(args):
        left = end - time.monotonic() - GRACE
        if left < 20:
            outcomes[part.name] = "not started: no time was left"
        else:
            print(f"== {part.name}, at most {part.share * left:.0f} s", flush=True)
            start = time.monotonic()
            outcome = _outcome(part, part.share * left, args.out)
            outcomes[part.name] = f"{outcome}, {time.monotonic() - start:.0f} s"
        summarize(args, outcomes)


def _outcome(part: Part, seconds: float, out: pathlib.Path) -> str:
    """Runs a process until it ends or its time does; returns in words what became of it."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(
        [sys.executable, *part.words],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    stopped = False
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        stopped = True
        process.send_signal(signal.SIGTERM)
        try:
            text, _ = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
    from segjax import files

    files.write_text(out / f"{part.name}.log", text)
    if stopped:
        return "stopped at its time"
    if process.returncode:
        last = (text.strip().splitlines() or ["no message"])[-1]
        return f"failed ({last[:200]})"
    return "done"


def summarize(args: argparse.Namespace, outcomes: dict[str, str]) -> None:
    """Writes summary.md: what became of each part, and the scores of the networks."""
    from segjax import files

    lines = [f"# Measured on an accelerator, scale {args.scale}, {args.minutes:g} minutes", ""]
    lines += ["| part | outcome |", "|---|---|"]
    lines += [f"| {name} | {outcome} |" for name, outcome in outcomes.items()]
    trained = {name: args.out / f"{name}.json" for name in NETWORKS}
    found = {n: json.loads(path.read_text()) for n, path in trained.items() if path.exists()}
    if found:
        lines += ["", "| network | device | steps | val mean IoU | images/s | peak memory, GB |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [_row(name, values) for name, values in found.items()]
    lines += ["", "The numbers of the benchmarks are in the JSON files, their tables in the logs."]
    files.write_text(args.out / "summary.md", "\n".join(lines) + "\n")


def _row(name: str, values: dict[str, Any]) -> str:
    memory = values["peak_bytes"]
    cells = (
        name,
        values["origins"][-1]["devices"][0],
        f"{values['step']} of {values['steps']}",
        f"{100 * values['scores']['mean_iou']:.2f}",
        f"{values['images_per_second']:.1f}",
        f"{memory / 1e9:.1f}" if memory else "not known",
    )
    return f"| {' | '.join(cells)} |"


def train(name: str, scale_name: str, data: pathlib.Path, out: pathlib.Path) -> None:
    """Trains one network as far as the time goes; writes its scores and its weights."""
    import jax

    from experiments import trial
    from segjax import files, training
    from segjax.pretrained.files import save_weights
    from segjax.workdir import open_run

    scale = trial.SCALES[scale_name]
    chosen = network(name, scale_name)
    config = chosen.config
    config.data.dir = str(trial.shrunken(data, out, scale))
    workdir = out / "runs" / name
    try:
        trial.finish(chosen, workdir)
        scores = trial.own_scores(chosen, workdir)[name]
        stopped = False
    except SystemExit:
        stopped = True
    run = open_run(workdir, "latest")
    if stopped:
        scores = trial.scored(chosen, workdir, f"step_{run.step}")
    metadata = training.metadata(config, training.prepare(config)[1].dataset, run.class_weights)
    metadata["config"]["data"]["dir"] = ""  # a path of this machine
    save_weights(out / "weights" / name, run.variables, metadata)
    memory = jax.local_devices()[0].memory_stats() or {}
    values = {
        **trial.record(config, workdir),
        "scale": dataclasses.asdict(scale),
        "dtype": config.model.dtype,
        "step": run.step,
        "scores": scores,
        "images_per_second": trial.speed(workdir),
        "peak_bytes": memory.get("peak_bytes_in_use"),
    }
    files.write_json(out / f"{name}.json", values)


def network(name: str, scale_name: str) -> Any:
    """Returns the trial of a network, with the steps that are stated for it."""
    from experiments import trial
    from segjax import models

    scale = trial.SCALES[scale_name]
    small = scale_name == "small"
    dtype = "float32" if small else "bfloat16"
    widths = (8, 16, 16, 32, 32) if small else (64, 128, 256, 512, 512)
    resnet = {"depth": scale.depth, "width": scale.resnet_width, "dtype": dtype}
    resnet["norm"] = models.Norm(decay=0.9)
    classes = trial.NUM_CLASSES
    made = {
        "segnet_basic": lambda: models.SegNetBasic(classes, width=scale.width, dtype=dtype),
        "segnet": lambda: models.SegNet(classes, widths=widths, dtype=dtype),
        "deeplab_v3_50": lambda: models.DeepLabV3(classes, features=scale.features, **resnet),
        "pspnet_50": lambda: models.PSPNet(classes, **resnet),
    }[name]()
    configure = trial.segnet_config if name.startswith("segnet") else trial.resnet_config
    config = configure(scale, made)
    if name == "pspnet_50":
        config.loss.heads = {"logits": 1.0, "aux": 0.4}
    config.train.steps = 40 if small else 1500
    config.train.log_every = 10
    return trial.Trial(name, config)


if __name__ == "__main__":
    main()
