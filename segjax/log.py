"""What a run says to people: a progress bar or lines, metrics.csv and TensorBoard events."""

import contextlib
import csv
import io
import os
import pathlib
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress
import rich.table

import segjax
from segjax import devices, files, optim, paths
from segjax.config import Config

COLUMNS = (
    *("step", "loss", "lr", "grad_norm", "images_per_second", "input_wait", "mfu", "skipped"),
    *("global_accuracy", "class_average", "mean_iou", "frequency_weighted_iou", "boundary_f1"),
    *("crf_mean_iou", "val_loss", "crf_val_loss"),
)
SEND = 10.0  # seconds between two copies of metrics.csv in a bucket, at the least

console = rich.console.Console(stderr=True)


class Log:
    """Writes the numbers and pictures of a run; on processes other than the first, nothing."""

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        step: int,
        scored: bool = True,
        owned: Callable[[], None] = lambda: None,
    ) -> None:
        """Goes on after `step`: rows of later steps, from a run that was stopped, are dropped.

        Args:
          workdir: of the run.
          step: the last one before.
          scored: whether its scores stay too; otherwise they are about to be made again.
          owned: is called before anything is written; raises ValueError where another run has
            taken the folder (`workdir.only_one`).
        """
        self._silent = jax.process_index() != 0
        self.repeated = 0  # steps that were made before, and are lost
        self.skipped = 0  # steps that were left out until then
        if self._silent:
            return
        self._owned = owned
        self._csv = workdir / "metrics.csv"
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        last = step if scored else step - 1
        rows = _rows(self._csv)
        self.repeated = max([0, *(int(row["step"]) - step for row in rows)])
        kept = [r for r in rows if int(r["step"]) <= (step if r.get("loss") else last)]
        self.skipped = sum(int(r["skipped"]) for r in kept if str(r.get("skipped")).isdigit())
        writer.writerows(kept)
        self._text = text.getvalue()
        files.write_text(self._csv, self._text)
        self._sent, self._unsent = time.monotonic(), False
        import tensorboardX  # imports torch where that is installed, which takes seconds

        self._tb = workdir / "tb"
        self._here = None  # where the events are written of a run in a bucket
        if paths.in_bucket(workdir):
            self._here = tempfile.TemporaryDirectory()
        folder = self._here.name if self._here else str(self._tb)
        self._events = tensorboardX.SummaryWriter(folder, purge_step=step + 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Adds a row; numbers without a column go to TensorBoard alone.

        A bucket gets new rows every ten seconds at the most, at `send` and at the end.

        Raises:
          ValueError: another run has taken the folder.
        """
        if self._silent:
            return
        self._owned()
        row = io.StringIO()
        writer = csv.DictWriter(row, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writerow({"step": step, **numbers})
        with harmless(f"{self._csv}"):
            if paths.in_bucket(self._csv):  # whose files cannot grow
                self._text, self._unsent = self._text + row.getvalue(), True
            else:
                with self._csv.open("a", newline="") as file:
                    file.write(row.getvalue())
        with harmless("the events for TensorBoard"):
            for name, number in numbers.items():
                self._events.add_scalar(name, number, step)
        if time.monotonic() - self._sent >= SEND:
            self.send()

    def send(self) -> None:
        """Copies the rows that a bucket lacks: a step that is saved or scored has its rows."""
        if self._silent or not self._unsent:
            return
        self._sent = time.monotonic()
        with harmless(f"{self._csv}"):
            files.write_text(self._csv, self._text)
            self._unsent = False

    def picture(self, step: int, name: str, picture: np.ndarray | None) -> None:
        """Adds RGB uint8 [H, W, 3] to TensorBoard, where there is a picture.

        The events of a run in a bucket are copied there now, and at the end.
        """
        if self._silent:
            return
        if picture is not None:
            self._events.add_image(name, picture, step, dataformats="HWC")
        self._copy_events()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        """Writes what is pending, unless another run has taken the folder."""
        if self._silent:
            return
        with harmless("the events for TensorBoard"):
            self._events.close()
        with contextlib.suppress(ValueError):  # it is in use, which the run tells
            self._owned()
            self.send()
            with harmless("the events for TensorBoard"):
                self._copy_events()
        if self._here:
            with harmless("the events for TensorBoard"):
                self._here.cleanup()

    def _copy_events(self) -> None:
        if self._here:
            self._events.flush()  # nothing where they are closed
            for path in pathlib.Path(self._here.name).iterdir():
                files.upload(path, self._tb / path.name)


class Reporter:
    """The progress bar and the log of a run, and its alarm for a loss that is not finite.

    Without a terminal it prints a line at every flush.
    """

    def __init__(
        self, config: Config, writer: Log, start: int, keep: Callable[[int, int], str] | None = None
    ) -> None:
        """Begins after a step.

        Args:
          config: of the run.
          writer: of its numbers.
          start: the step.
          keep: saves the batch of a step, of so many steps ago; returns what to say about it.
        """
        self._config, self._writer, self._keep = config, writer, keep
        self._skipped = 0  # steps in a row that were not finite
        self._left_out = writer.skipped  # all such steps
        self._kept = False  # whether one of them was saved
        self._lr = jax.jit(optim.schedule(config.optim, config.train.steps))
        self._lr(0)  # compiles it, which no row of the log must pay for
        self._bar = progress()
        self._task = self._bar.add_task(
            "train", total=config.train.steps, completed=start, text="compiling"
        )
        self._pending: list[tuple[int, dict[str, jax.Array], list[str]]] = []
        self._flops: float | None = None  # of a step, on the devices that share an image
        self._time, self._wait = time.perf_counter(), 0.0

    def __enter__(self) -> "Reporter":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the terminal hung up
            self._bar.stop()

    def add(self, step: int, metrics: dict[str, jax.Array], ids: list[str]) -> None:
        """Takes the metrics of a step, which may still be running."""
        self._pending.append((step, metrics, ids))

    def flush(self, wait: float) -> None:
        """Waits for the steps since the last flush, checks and writes their metrics.

        Among them is the model FLOPs utilisation, "mfu": the operations of a step, without those
        that `model.remat` makes a second time, over the time it took, and over what the maker
        promises of the device in bfloat16. For a device that is not in `devices.PEAKS` there is
        none.

        Of steps that are not finite up to `train.max_skipped` in a row are counted, as "skipped",
        and told; the first of them is saved, as is the one that ends the run.

        Args:
          wait: seconds the run has waited for data so far.

        Raises:
          FloatingPointError: a loss or a gradient is not finite, and too many were before it.
        """
        fetched = jax.device_get([metrics for _, metrics, _ in self._pending])
        last, most, losses = self._pending[-1][0], self._config.train.max_skipped, []
        for (step, _, ids), metrics in zip(self._pending, fetched, strict=True):
            loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
            if np.isfinite([loss, norm]).all():
                self._skipped = 0
                losses.append(loss)
                continue
            self._skipped += 1
            text = f"loss became {loss} at step {step}; gradient norm {norm:.2g}; "
            text += f"batch ids {', '.join(ids)}"
            if self._keep and (self._skipped > most or not self._kept):
                text, self._kept = f"{text}; {self._keep(step, last - step)}", True
            if self._skipped > most:
                raise FloatingPointError(text)
            if jax.process_index() == 0:
                warn(f"left out, {self._skipped} in a row of at most {most}: {text}")
        now, steps = time.perf_counter(), len(fetched)
        passed = now - self._time
        self._left_out += steps - len(losses)
        before = step - 1 - (self._left_out - bool(self._skipped))  # that the optimiser has seen
        row = {
            "loss": float(np.mean(losses)) if losses else float("nan"),
            "lr": float(self._lr(before // self._config.optim.accumulate)),
            "grad_norm": norm,
            "images_per_second": steps * self._config.train.batch_size / passed,
            "input_wait": (wait - self._wait) / passed,
        }
        if most:
            row["skipped"] = steps - len(losses)
        chip = devices.PEAKS.get(jax.local_devices()[0].device_kind)
        if self._flops and chip:
            row["mfu"] = self._flops * steps / passed / chip.flops / self._config.train.rows
        self._writer.write(step, row)
        text = (
            f"loss {row['loss']:.4f} lr {row['lr']:.1e} {row['images_per_second']:.1f} images/s, "
            f"{row['input_wait']:.0%} input wait"
        )
        if "mfu" in row:
            text += f", {row['mfu']:.0%} MFU"
        self._bar.update(self._task, completed=step, text=text)
        if not console.is_terminal and jax.process_index() == 0:
            say(f"step {step} of {self._config.train.steps}: {text}")
        self._pending, self._time, self._wait = [], now, wait

    def compiled(self, flops: float | None, wait: float) -> None:
        """Takes the operations of a step; time until now does not count as training.

        Without operations there is no "mfu", which is told where the device would have one.

        Args:
          flops: of the devices that share an image, `steps.precompile`; None where not known.
          wait: seconds the run has waited for data so far.
        """
        kind = jax.local_devices()[0].device_kind
        if flops is None and kind in devices.PEAKS and jax.process_index() == 0:
            warn(
                "mfu stays empty: the operations of a step are not known. JAX counts them on its "
                "CPU backend: where JAX_PLATFORMS is set, name that too, JAX_PLATFORMS=cuda,cpu"
            )
        self._flops, self._time, self._wait = flops, time.perf_counter(), wait

    def scored(self, step: int, scores: dict[str, float]) -> None:
        """Writes the scores of an evaluation, whose time is not counted as training."""
        self._writer.write(step, scores)
        self._time = time.perf_counter()


class Times:
    """Where the time of a run went: every moment counts for one part, so that the parts add up.

    A call of a step returns before the devices have computed it. What is counted where:

    - "start": data, folder, restored or new state, until the first batch is asked for.
    - "compilation": of the training step. That of the evaluation counts as evaluation.
    - "input": waiting for a batch. The devices may meanwhile compute the steps called before.
    - "steps": calling steps, and waiting for the devices whenever numbers are reported: what they
      computed, without what was hidden by waiting for input.
    - "BatchNorm statistics", and "evaluation" with its pictures and the report.
    - "saving": copying the state to the host, and waiting for files; most is written meanwhile.
    """

    def __init__(self) -> None:
        self._part, self._since = "start", time.perf_counter()
        self.seconds = {"start": 0.0}  # by part, in order of first use

    def go_on(self, part: str) -> str:
        """Counts what follows for a part; returns the part before."""
        now, before = time.perf_counter(), self._part
        self.seconds[before] += now - self._since
        self.seconds.setdefault(part, 0.0)
        self._part, self._since = part, now
        return before

    @contextlib.contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """Counts what is done inside for a part, and not for the one around it."""
        before = self.go_on(part)
        try:
            yield
        finally:
            self.go_on(before)

    def table(self, restarts: int = 0, repeated: int = 0) -> rich.table.Table:
        """A row for each part, and their sum: the time since this was made.

        Args:
          restarts: of the run, this start included.
          repeated: steps that an earlier start had made and not saved.
        """
        self.go_on(self._part)
        total = sum(self.seconds.values())
        table = rich.table.Table(title="where the time went")
        table.add_column("part")
        table.add_column("seconds", justify="right")
        table.add_column("share", justify="right")
        for part, seconds in (*self.seconds.items(), ("total", total)):
            table.add_row(part, f"{seconds:.1f}", f"{seconds / total:.1%}")
        again = f", steps made again: {repeated}" if repeated else ""
        table.caption = f"restarts: {restarts}{again}"
        return table


def say(text: str) -> None:
    """Prints a line on stderr as it is: names and paths are no markup."""
    _print(text)


def show(table: rich.table.Table) -> None:
    """Prints a table on stderr, of several processes by the first."""
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):  # as below
            console.print(table)


def warn(text: str) -> None:
    """Prints a line on stderr that stands out, as it is: names and paths are no markup."""
    _print(text, "yellow")


def _print(text: str, style: str | None = None) -> None:
    with contextlib.suppress(OSError):  # the terminal hung up, the disk of a log file is full
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def harmless(what: str) -> Iterator[None]:
    """Turns any fault of reporting into a warning: it must not cost what was trained."""
    try:
        yield
    except Exception as error:
        warn(f"{what} could not be written: {type(error).__name__}: {error}")


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    """Returns the whole rows of metrics.csv; a kill may have left half a row, or zero bytes."""
    if not path.exists():
        return []
    lines = path.read_bytes().decode(errors="replace").replace("\0", "").splitlines()
    rows = csv.DictReader(lines)
    return [row for row in rows if str(row.get("step")).isdigit() and None not in row.values()]


def progress() -> rich.progress.Progress:
    """Returns the progress bar of a run; `fields[text]` is shown after it."""
    whole = rich.table.Column(no_wrap=True, overflow="ignore")
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False, table_column=whole),
        rich.progress.BarColumn(bar_width=12),
        rich.progress.MofNCompleteColumn(table_column=whole),
        rich.progress.TextColumn("{task.fields[text]}", markup=False, table_column=whole),
        rich.progress.TimeRemainingColumn(table_column=whole),
        console=console,
        disable=jax.process_index() != 0 or not console.is_terminal,
    )


def environment() -> dict[str, Any]:
    """Returns what a run depends on: the command, versions and devices."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "command": command(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "packages": {"segjax": segjax.__version__}
        | {name: metadata.version(name) for name in packages},
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }


def command() -> str:
    """Returns the command line of this program, quoted for a shell."""
    return shlex.join([pathlib.Path(sys.executable).name, *sys.argv])
