"""Trains a network: python train.py --config=configs/segnet_camvid.py --workdir=runs/segnet

Every field of the configuration can be changed on the command line, --config.optim.lr=0.02; the
fields are in segjax/config.py. The same command again goes on from the last checkpoint.

The workdir then holds config.json, env.json, checkpoints/, metrics.csv, tb/ (TensorBoard events),
images/ (pictures), eval/ (scores) and report.html, which shows them.
"""

import contextlib
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from segjax import checkpoint, log, optim, steps
from segjax import training as runs
from segjax import workdir as workdir_lib
from segjax.cli import overrides
from segjax.config import Config

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run; made when missing.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes of the other hosts.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port; where no cluster tells it.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many; where no cluster tells it.")
PROCESS = flags.DEFINE_integer("process", None, "This one's number; where no cluster tells it.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
    """Trains from the command line; a mistake of the user's ends it with one message."""
    logging.set_verbosity(logging.ERROR)  # Orbax reports every file it writes
    try:
        if DISTRIBUTED.value:
            join()
        if not WORKDIR.value:
            raise ValueError("--workdir is empty; name a folder, --workdir=runs/a")
        train(CONFIG.value, pathlib.Path(WORKDIR.value).expanduser())
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"train.py: {error}")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        config, what = CONFIG.value, str(error).splitlines()[:1] or ["this machine has no more"]
        sys.exit(
            f"train.py: out of memory: {what[0]}\nA step takes {config.train.batch_size} images of "
            f"crop {config.augment.crop} ((0, 0) is the whole canvas); `segjax plan --config=...` "
            "tells what fits. Write a smaller --config.train.batch_size, --config.augment.crop or, "
            "for the evaluation, --config.eval.batch_size"
        )


def train(config: Config, workdir: pathlib.Path) -> None:
    """Trains a network, or goes on where `workdir` stopped."""
    prepared = runs.prepare(config)
    runs.warn(config)
    weights = runs.class_weights(config, prepared)
    with contextlib.ExitStack() as stack:
        stack.enter_context(workdir_lib.only_one(workdir))
        batches = stack.enter_context(runs.train_batches(config, prepared))
        checkpoints = stack.enter_context(checkpoint.Checkpoints(workdir, keep=config.train.keep))
        start = checkpoints.latest() or 0
        now, tx = runs.initial_state(config, fresh=not start)
        if start:
            now, position = checkpoints.restore(start, now)
            batches.set_state(position)
        now = steps.replicated(now)
        workdir_lib.begin(config, workdir, start)
        writer = stack.enter_context(log.Log(workdir, step=start))
        report = stack.enter_context(Reporter(config, writer, start, checkpoints))
        stopped = stack.enter_context(stop_signals())
        train_step = steps.parallel(
            steps.train_step, config=config, tx=tx, class_weights=weights, donate=True
        )
        evaluator = runs.evaluator(config, prepared)
        key = jax.random.key(config.train.seed)

        total, every = config.train.steps, config.train.eval_every
        for step in range(start + 1, total + 1):
            batch = next(batches)
            now, numbers = train_step(now, {"image": batch.image, "label": batch.label}, key)
            report.add(step, numbers, batch.ids)
            score = step == total or (every and step % every == 0)
            stop = stopped()  # asked once: a signal that comes later belongs to the next step
            save = score or stop or step % config.train.checkpoint_every == 0
            if save or step % config.train.log_every == 0:
                report.flush(batches.wait)
            if step == total and config.train.recompute_batch_stats:
                now = runs.recompute_batch_stats(config, prepared, now, key)
            scores = None
            if score:
                variables = {"params": now.eval_params, "batch_stats": now.batch_stats}
                result = evaluator(variables, config.data.val_split)
                scores = result.summary()
                report.scored(step, scores)
                about = {"split": config.data.val_split, "step": step}
                name = f"{step:06d}"
                sheet = runs.write_evaluation(result, config, prepared, workdir, name, **about)
                writer.picture(step, config.data.val_split, sheet)
                title = f"{config.data.val_split}, step {step}"
                log.console.print(result.table(prepared.dataset.classes, title))
            if save:
                meta = runs.metadata(config, prepared.dataset)
                position = batches.get_state()
                checkpoints.save(step, now, position=position, metadata=meta, scores=scores)
            if stop:
                break
    runs.write_report(workdir)
    if start >= total:
        log.console.print(f"{workdir} is at step {start} of {total}: nothing is left to train")


class Reporter:
    """The progress bar and the log of a run, and its alarm for a loss that is not finite."""

    def __init__(
        self, config: Config, writer: log.Log, start: int, checkpoints: checkpoint.Checkpoints
    ) -> None:
        self._config, self._writer, self._checkpoints = config, writer, checkpoints
        self._lr = optim.schedule(config.optim, config.train.steps)
        self._bar = log.progress()
        self._task = self._bar.add_task(
            "train", total=config.train.steps, completed=start, text="compiling"
        )
        self._pending: list[tuple[int, dict[str, jax.Array], list[str]]] = []
        self._time, self._wait = time.perf_counter(), 0.0

    def __enter__(self) -> "Reporter":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, step: int, numbers: dict[str, jax.Array], ids: list[str]) -> None:
        """Takes the numbers of a step, which may still be running."""
        self._pending.append((step, numbers, ids))

    def flush(self, wait: float) -> None:
        """Waits for the steps since the last flush, checks and writes their numbers.

        Args:
          wait: seconds the run has waited for data so far.

        Raises:
          FloatingPointError: a loss or a gradient is not finite.
        """
        for step, numbers, ids in self._pending:
            loss, norm = float(numbers["loss"]), float(numbers["grad_norm"])
            if not np.isfinite([loss, norm]).all():
                raise FloatingPointError(
                    f"loss became {loss} at step {step}; batch ids "
                    f"{', '.join(ids)}; gradient norm {norm:.2g}; last good "
                    f"checkpoint {self._checkpoints.latest() or 'none'}. A lower "
                    "--config.optim.lr or --config.optim.clip_norm=1 usually helps; the same "
                    "command goes on from the last good checkpoint"
                )
        now = time.perf_counter()
        passed = now - self._time
        lr = float(self._lr((step - 1) // self._config.optim.accumulate))
        row = {
            "loss": float(np.mean([float(n["loss"]) for _, n, _ in self._pending])),
            "lr": lr,
            "grad_norm": float(numbers["grad_norm"]),
            "images_per_second": len(self._pending) * self._config.train.batch_size / passed,
            "input_wait": (wait - self._wait) / passed,
        }
        self._writer.write(step, row)
        text = (
            f"loss {row['loss']:.4f} lr {lr:.1e} {row['images_per_second']:.1f} images/s, "
            f"{row['input_wait']:.0%} input wait"
        )
        self._bar.update(self._task, completed=step, text=text)
        self._pending, self._time, self._wait = [], now, wait

    def scored(self, step: int, scores: dict[str, float]) -> None:
        """Writes the scores of an evaluation, whose time is not counted as training."""
        self._writer.write(step, scores)
        self._time = time.perf_counter()


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that is true after SIGTERM or Ctrl-C: save, then leave.

    Processes of several hosts would have to agree on a step: there the signals keep their effect.
    """
    if jax.process_count() > 1:
        yield lambda: False
        return
    received = []
    wanted = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(s, lambda number, _: received.append(number)) for s in wanted]
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in zip(wanted, before, strict=True):
            signal.signal(number, handler)
        if received:
            log.console.print("stopped by a signal; the same command goes on from here")


def join() -> None:
    """Joins the processes of the other hosts.

    Raises:
      ValueError: not all of them have come.
    """
    try:
        jax.distributed.initialize(
            COORDINATOR.value, PROCESSES.value, PROCESS.value, initialization_timeout=60
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"this process could not join the others within 60 s: {error}\nStart the command on "
            "every host; without a cluster that JAX knows, add --coordinator=HOST:PORT "
            "--processes=N --process=0 (1, 2, ... on the others)"
        ) from error
    log.console.print(
        f"process {jax.process_index()} of {jax.process_count()}, "
        f"{jax.local_device_count()} of {jax.device_count()} devices"
    )


if __name__ == "__main__":
    app.run(main, flags_parser=overrides.parse)
