"""What a run leaves for people: a progress bar, metrics.csv and TensorBoard events."""

import csv
import os
import pathlib
import platform
import shlex
import sys
from importlib import metadata
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress
import rich.table
import tensorboardX

COLUMNS = (
    *("step", "loss", "lr", "grad_norm", "images_per_second", "input_wait"),
    *("global_accuracy", "class_average", "mean_iou", "frequency_weighted_iou", "boundary_f1"),
    "crf_mean_iou",
)

console = rich.console.Console(stderr=True)


class Log:
    """Writes the numbers and pictures of a run; on processes other than the first, nothing."""

    def __init__(self, workdir: pathlib.Path, *, step: int) -> None:
        """Goes on after `step`: rows of later steps, from a run that was stopped, are dropped."""
        self._silent = jax.process_index() != 0
        if self._silent:
            return
        self._csv = workdir / "metrics.csv"
        kept = []
        if self._csv.exists():
            with self._csv.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        with self._csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        self._events = tensorboardX.SummaryWriter(str(workdir / "tb"), purge_step=step + 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Adds a row; numbers without a column go to TensorBoard alone."""
        if self._silent:
            return
        with self._csv.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, extrasaction="ignore").writerow({"step": step, **numbers})
        for name, number in numbers.items():
            self._events.add_scalar(name, number, step)

    def picture(self, step: int, name: str, picture: np.ndarray | None) -> None:
        """Adds RGB uint8 [H, W, 3] to TensorBoard, where there is a picture."""
        if not self._silent and picture is not None:
            self._events.add_image(name, picture, step, dataformats="HWC")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        """Writes what is pending."""
        if not self._silent:
            self._events.close()


def progress() -> rich.progress.Progress:
    """Returns the progress bar of a run; `fields[text]` is shown behind it."""
    whole = rich.table.Column(no_wrap=True, overflow="ignore")
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", table_column=whole),
        rich.progress.BarColumn(bar_width=12),
        rich.progress.MofNCompleteColumn(table_column=whole),
        rich.progress.TextColumn("{task.fields[text]}", table_column=whole),
        rich.progress.TimeRemainingColumn(table_column=whole),
        console=console,
        disable=jax.process_index() != 0,
    )


def environment() -> dict[str, Any]:
    """Returns what a run depends on: the command, versions and devices."""
    packages = ("segjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "command": command(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: metadata.version(name) for name in packages},
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }


def command() -> str:
    """Returns the command line of this program, quoted for a shell."""
    return shlex.join([pathlib.Path(sys.executable).name, *sys.argv])
