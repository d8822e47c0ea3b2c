"""What happens to a training run when something goes wrong, and what stopping costs.

    python benchmarks/faults.py [--kills 20] [--only NAMES] [--json FILE]

Each row is a real `segjax train` of a small network to which something is done. "lost" counts the
steps that had been computed and are computed again. "held" is true where the run ended as the
project promises; where it went on, its parameters are then equal, bit for bit, to those of a run
that nothing happened to. A disk is full in a small tmpfs, which only root can mount.

"equality" are the largest differences of parameters to one device, and of parameters and
statistics to the other engine on the same devices; 0 stands for the same bits.

"costs" are seconds: of a stop by a signal and of the next start for the demonstration network, of
asking after a step whether to stop, and of the small network's step by both engines in turns. Rows
and costs are added to those of an earlier run in the file, so that a slow machine can go in pieces.
"""

import argparse
import contextlib
import csv
import dataclasses
import datetime
import json
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")  # on a CPU

import jax
import numpy as np
import rich.console
import rich.table

from segjax import checkpoint, config, files, hosts, steps, training
from segjax.cli import main, overrides

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 30
SMALL = (
    "--config=demo",
    "--config.model.width=8",
    f"--config.train.steps={STEPS}",
    "--config.data.num_train=16",
    "--config.data.num_val=4",
    "--config.augment.crop=(64, 48)",  # high enough to be split
    "--config.train.batch_size=4",
    "--config.train.eval_every=0",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=2",
    "--config.train.recompute_batch_stats=0",
    "--config.eval.batch_size=4",
)
# Runs are forked from a process that has imported everything: most of a short run is imports.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["segjax.training", "segjax.cli.overrides", "tensorboardX"])
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAME = "the same command goes on to the same bits"
NOT_MOUNTED = "not run: only root can mount a tmpfs"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table."""

    done: str  # what is done to a run
    happens: str  # what the run does
    lost: str  # what has to be computed again
    held: bool | None  # whether all went as promised; None: not run


@dataclasses.dataclass(frozen=True)
class Run:
    """A process that trains, and the file of its output."""

    pid: int
    code: Callable[[], int | None]  # with which it ended
    log: pathlib.Path

    def text(self) -> str:
        """What it has printed so far, in one line."""
        return " ".join(self.log.read_text(errors="replace").split())

    def until(self, reached: Callable[[], bool], seconds: float = 1200) -> bool:
        """Waits until something is reached; False where the process ends or time is up before."""
        deadline = time.monotonic() + seconds
        while not (found := reached()) and self.code() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        return found

    def says(self, text: str) -> bool:
        """Waits until the process has printed a text."""
        return self.until(lambda: text in self.text())

    def send(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the process as a power cut does."""
        if self.code() is None:
            self.send(signal.SIGKILL)
        self.end()

    def end(self) -> int | None:
        """Waits for the end; returns the exit code, None where it does not come."""
        self.until(lambda: False)
        return self.code()


class Bench:
    """A folder for runs, and the run that nothing happens to."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.cache, self._count = folder, folder / "cache", 0
        self.whole = folder / "whole"
        first = self.start(self.whole)
        assert first.end() == 0, first.text()

    def start(self, workdir: pathlib.Path, *flags: str, devices: int = 1) -> Run:
        """Starts `segjax train`, or goes on in a folder."""
        self._count += 1
        log = self.folder / f"{self._count}.log"
        words = ["train", *SMALL, f"--workdir={workdir}", f"--config.data.cache={self.cache}"]
        log.touch()
        arguments = (log, devices, [*words, *flags])
        process = FORKS.Process(target=train, args=arguments, daemon=True)
        process.start()
        return Run(process.pid, lambda: process.exitcode, log)

    def copy(self, name: str) -> pathlib.Path:
        """Copies the whole run."""
        return pathlib.Path(shutil.copytree(self.whole, self.folder / name))

    def same(self, workdir: pathlib.Path) -> bool:
        """Whether a run ended with the bits of the whole one."""
        pairs = zip(*(jax.tree.leaves(variables(w)) for w in (workdir, self.whole)), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    def goes_on(self, workdir: pathlib.Path, *flags: str) -> tuple[bool, str]:
        """Gives the same command again; returns whether the bits are the same, and its output."""
        run = self.start(workdir, *flags)
        return run.end() == 0 and self.same(workdir), run.text()


def train(log: pathlib.Path, devices: int, words: list[str]) -> None:
    """In a process of its own: trains, and writes what it prints into a file."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    )
    hear()
    sys.exit(main.main(words))


def hear() -> None:
    """Lets a child hear signals that a shell ignores for what runs in the background."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def variables(workdir: pathlib.Path, step: int = STEPS) -> dict[str, Any]:
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.variables(step)


def table(workdir: pathlib.Path) -> list[tuple[str, ...]]:
    """Returns what the training rows of metrics.csv say besides times."""
    with (workdir / "metrics.csv").open() as file:
        names = ("step", "loss", "lr", "grad_norm")
        rows = [row for row in csv.DictReader(file) if row["loss"]]  # not those of scores
        return [tuple(row[name] for name in names) for row in rows]


def computed(workdir: pathlib.Path) -> int:
    """Returns the last step that a run has reported."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (workdir / "metrics.csv").read_text().splitlines()
        return max(int(line.split(",")[0]) for line in lines[1:] if line.split(",")[0].isdigit())
    return 0


def newest(workdir: pathlib.Path) -> int:
    return max(checkpoint.saved(workdir), default=0)


def kills(bench: Bench, count: int) -> Iterator[Row]:
    """Kills runs at random moments, every second one while a checkpoint is written."""
    chance, runs, number = random.Random(0), [], 0
    lost, writing, before, held = [], 0, 0, True
    while number < count:
        workdir = bench.folder / f"killed{len(runs)}"
        runs.append(workdir)
        while number < count:
            had = newest(workdir)
            run = bench.start(workdir)
            if number % 2:
                folder, after = workdir / "checkpoints", had + chance.choice((0, 2, 4))
                half = lambda: newest(workdir) >= after and any(folder.glob("*-tmp*"))  # noqa: B023
                if run.until(half):
                    run.kill()
                    writing += any(folder.glob("*-tmp*"))
            elif chance.random() < 0.5:
                run.until(lambda: False, chance.uniform(0, 8))  # while it starts
                run.kill()
            elif run.until(lambda: computed(workdir) > had):  # noqa: B023
                run.until(lambda: False, chance.uniform(0, 2))
                run.kill()
            if run.end() == 0:
                break  # it was faster
            number += 1
            before += computed(workdir) <= had
            lost.append(max(computed(workdir) - newest(workdir), 0))
        same, _ = bench.goes_on(workdir)
        held &= same and table(workdir) == table(bench.whole)
    yield Row(
        f"`kill -9` at random, {count} times: {writing} while a checkpoint was written, {before} "
        "before the first new step",
        SAME,
        f"up to {max(lost)} steps; a checkpoint came every 2",
        held,
    )


def checkpoints(bench: Bench, _: int) -> Iterator[Row]:
    """Damages the newest checkpoint of a finished run."""

    def largest(folder: pathlib.Path) -> pathlib.Path:
        files = [path for path in folder.rglob("d/*") if path.is_file()]
        return max(files, key=lambda path: path.stat().st_size)

    def flip(file: pathlib.Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    damages = {
        "a file of the newest checkpoint cut in half": lambda f: os.truncate(
            largest(f), largest(f).stat().st_size // 2
        ),
        "a file of it missing": lambda f: largest(f).unlink(),
        "one bit of it flipped": lambda f: flip(largest(f)),
        "its metadata missing": lambda f: shutil.rmtree(f / "metadata"),
        "its folder empty": lambda f: [shutil.rmtree(f), f.mkdir()],
    }
    for i, (done, damage) in enumerate(damages.items()):
        workdir = bench.copy(f"damaged{i}")
        damage(workdir / "checkpoints" / str(STEPS))
        same, text = bench.goes_on(workdir)
        named = f"checkpoints/{STEPS} is damaged: " in text and f"after step {STEPS - 2}" in text
        happens = f"a warning names it, it is set aside, the one before is taken; {SAME}"
        yield Row(done, happens, "2 steps, those since the one before", same and named)
    workdir = bench.copy("damaged")
    for folder in (workdir / "checkpoints").glob("*/metadata"):
        shutil.rmtree(folder)
    run = bench.start(workdir)
    held = run.end() == 2 and "no checkpoint that can be read" in run.text()
    yield Row("all checkpoints damaged", "one error names each; nothing is changed", "-", held)


def disk(bench: Bench, _: int) -> Iterator[Row]:
    """Lets the disk be full, in bytes or in files, and then makes room."""
    folder = bench.whole / "checkpoints" / str(STEPS)
    content = [path for path in folder.rglob("*")]
    size, number = sum(p.stat().st_size for p in content if p.is_file()), len(content) + 1
    limits = {
        "the disk full while saving": f"size={int(3.5 * size)}",
        "no files left on the disk while saving": f"nr_inodes={3 * number + 45}",
    }
    for i, (done, limit) in enumerate(limits.items()):
        disk, happens = bench.folder / f"disk{i}", f"one error names the room there is; {SAME}"
        with small(disk, limit) as mounted:
            if not mounted:
                yield Row(done, happens, NOT_MOUNTED, None)
                continue
            workdir = disk / "run"
            run = bench.start(workdir)
            full = run.end() == 2 and "cannot be written: a checkpoint" in run.text()
            # The one before it may still be on its way to the disk when the error is said.
            good = re.search(r"the last good checkpoint is (\d+)", run.text())
            full &= good is not None and int(good[1]) in checkpoint.saved(workdir)
            lost = computed(workdir) - newest(workdir)
            more = "remount,size=1g,nr_inodes=100000"
            subprocess.run(["mount", "-o", more, str(disk)], check=True)
            same, _ = bench.goes_on(workdir)
            yield Row(done, f"{happens} when there is room", f"{lost} steps", full and same)


@contextlib.contextmanager
def small(disk: pathlib.Path, limit: str) -> Iterator[bool]:
    """Mounts a tmpfs with an option that limits it; yields whether that can be done."""
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(disk))
    mounted = not (os.geteuid() or subprocess.run(mount, capture_output=True).returncode)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def loss(bench: Bench, _: int) -> Iterator[Row]:
    """Lets the loss become NaN."""
    workdir = bench.folder / "nan"
    run = bench.start(workdir, "--config.optim.lr=1e30")
    code, text = run.end(), run.text()
    kept = lambda: sorted(path.name for path in (workdir / "not_finite").glob("*.npz"))
    held = code == 1 and "last good checkpoint" in text and "Traceback" not in text
    held &= len(kept()) == 1
    happens = (
        "the run ends: step, ids of the batch and a file of its images, the last good checkpoint, "
        "what to change"
    )
    yield Row("the loss or a gradient becomes NaN", happens, "those since that checkpoint", held)

    workdir = bench.folder / "two_nan"
    both = two(bench, workdir, "--config.optim.lr=1e30", "--config.train.max_skipped=3")
    held = [run.end() for run in both] == [1, 1]
    held &= "left out, 3 in a row of at most 3" in both[0].text()
    first, last = kept()[:2], kept()[2:]
    held &= [name[-6:] for name in kept()] == ["_0.npz", "_1.npz"] * 2 and first != last
    happens = "both leave out three steps in a row, end at the fourth; files of the first and last"
    yield Row("the same with two processes and train.max_skipped=3", happens, "likewise", held)


def cache(bench: Bench, _: int) -> Iterator[Row]:
    """Damages the prepared records, or disturbs their preparation."""

    def own(name: str) -> str:
        return f"--config.data.cache={bench.folder / name}"

    def records(folder: pathlib.Path) -> pathlib.Path:
        return next(p for p in folder.rglob("train-*/*array_record*"))

    shutil.copytree(bench.cache, bench.folder / "cut")
    os.truncate(records(bench.folder / "cut"), 1000)
    same, text = bench.goes_on(bench.folder / "after_cut", own("cut"))
    again = f"a line says so, they are prepared again; {SAME}"
    held = same and "it is prepared again" in text
    yield Row("the prepared records cut off", again, "nothing", held)

    shutil.copytree(bench.cache, bench.folder / "flipped")
    file = records(bench.folder / "flipped")
    content = bytearray(file.read_bytes())
    content[content.index(b"\x89PNG") + 60] ^= 255
    file.write_bytes(content)
    run = bench.start(bench.folder / "after_flip", own("flipped"))
    held = run.end() == 2 and "delete this folder to prepare the data set again" in run.text()
    run = bench.start(
        bench.folder / "after_flip", own("flipped"), "--config.data.max_decode_errors=1"
    )
    held &= run.end() == 0 and "the next record stands in" in run.text()
    happens = (
        "one error names the record and the folder to delete; with data.max_decode_errors the next "
        "record stands in"
    )
    yield Row("bytes of a prepared record flipped", happens, "since the last checkpoint", held)

    run = bench.start(bench.folder / "after_half", own("half"))
    half = run.until(lambda: any((bench.folder / "half").rglob("*.tmp")))
    run.kill()
    same, _ = bench.goes_on(bench.folder / "after_half", own("half"))
    yield Row("`kill -9` while the data are prepared", SAME, "what was prepared", half and same)

    done, disk = "the disk full while the data are prepared", bench.folder / "small"
    happens = f"one error names the folder; {SAME} when there is room"
    with small(disk, "size=20k") as mounted:
        run = bench.start(bench.folder / "after_full", own("small"))
        held = run.end() == 2 and "cannot be written: No space left on device" in run.text()
        held &= "Traceback" not in run.text()
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        same, _ = bench.goes_on(bench.folder / "after_full", own("small"))
        held &= same
        yield Row(done, happens, "nothing" if mounted else NOT_MOUNTED, held if mounted else None)

    both = [bench.start(bench.folder / f"both{i}", own("both")) for i in range(2)]
    held = all([run.end() == 0 for run in both])
    held &= all(bench.same(bench.folder / f"both{i}") for i in range(2))
    yield Row("two runs prepare the same data", "one waits for the other; same bits", "-", held)


def signals(bench: Bench, _: int) -> Iterator[Row]:
    """Sends each signal to a run, and to one of two processes of a run."""
    for number in SIGNALS:
        workdir = bench.folder / number.name
        run = bench.start(workdir)
        run.says(f"step 3 of {STEPS}")
        run.send(number)
        held = run.end() == 128 + number
        step = newest(workdir)
        held &= f"stopped; step {step} of {STEPS} is saved" in run.text()
        lost = computed(workdir) - step
        same, _ = bench.goes_on(workdir)
        happens = f"the step is finished and saved, exit code {128 + number}; {SAME}"
        yield Row(number.name, happens, f"{lost} steps", held and same)
    workdir = bench.folder / "early"
    run = bench.start(workdir)
    run.says("statistics will be poor")  # said before the step is compiled
    run.send(signal.SIGINT)
    held = run.end() == 130 and "Traceback" not in run.text() and not computed(workdir)
    same, _ = bench.goes_on(workdir)
    yield Row("Ctrl-C before the first step", f"it ends; {SAME}", "nothing", held and same)
    workdir = bench.folder / "twice"
    run = bench.start(workdir)
    run.says(f"step 5 of {STEPS}")
    for _ in range(2):
        run.send(signal.SIGTERM)
        time.sleep(0.01)
    held = run.end() == 143 and "Traceback" not in run.text()
    lost = computed(workdir) - newest(workdir)
    same, _ = bench.goes_on(workdir)
    happens = f"it ends at once, exit code 143; {SAME}"
    yield Row("SIGTERM twice", happens, f"{lost} steps, those since a checkpoint", held and same)
    for number in SIGNALS:
        workdir = bench.folder / f"two_{number.name}"
        both = two(bench, workdir)
        both[0].says(f"step 3 of {STEPS}")
        both[1].send(number)
        held = [run.end() for run in both] == [128 + number] * 2
        step = newest(workdir)
        held &= all(f"stopped; step {step} of {STEPS} is saved" in run.text() for run in both)
        held &= all(f"got {number.name}: all stop after" in run.text() for run in both)
        lost = computed(workdir) - step
        yield Row(
            f"{number.name} to one of two processes",
            f"both finish the same step and save it, exit code {128 + number}",
            f"{lost} steps",
            held,
        )
    workdir = bench.folder / "two_killed"
    both = two(bench, workdir)
    both[0].says(f"step 3 of {STEPS}")
    both[1].kill()
    held = both[0].end() == hosts.LOST and "is gone: it was killed" in both[0].text()
    lost = computed(workdir) - newest(workdir)
    yield Row(
        "`kill -9` of one of two processes",
        "the other names it and ends",
        f"{lost} steps, those since the last checkpoint",
        held,
    )


def two(bench: Bench, workdir: pathlib.Path, *flags: str) -> list[Run]:
    """Starts a run of two processes with two devices each."""
    there = f"--coordinator=127.0.0.1:{random.randrange(20000, 30000, 2)}"
    together = ("--distributed", "--processes=2", there, *flags)
    return [
        bench.start(workdir, *together, f"--process={number}", devices=2) for number in range(2)
    ]


def resumes(bench: Bench, _: int) -> Iterator[Row]:
    """Stops a run ten times, by SIGTERM and `kill -9` in turns, and reads its metrics.csv."""
    workdir, stopped = bench.folder / "resumes", 0
    for number in range(10):
        run, had = bench.start(workdir), computed(workdir)
        run.until(lambda: computed(workdir) > had)  # noqa: B023
        run.send(signal.SIGKILL if number % 2 else signal.SIGTERM)
        stopped += run.end() != 0
    same, _ = bench.goes_on(workdir)
    rows = table(workdir)
    held = same and rows == table(bench.whole) and stopped == 10
    steps = [int(row[0]) for row in rows]
    doubled, missing = len(steps) - len(set(steps)), STEPS - len(set(steps))
    happens = (
        f"metrics.csv has {len(steps)} rows for {STEPS} steps, {doubled} doubled, {missing} "
        "missing, with the numbers of a run that was never stopped"
    )
    done = f"{stopped} stops and resumes, SIGTERM and `kill -9` in turns"
    yield Row(done, happens, "steps since the last checkpoint, by `kill -9`", held)


def growth(bench: Bench, _: int) -> Iterator[Row]:
    """Measures memory and open files of a run of a tiny network."""
    sizes = ("--config.model.width=4", "--config.train.batch_size=2")
    every = ("--config.train.log_every=100", "--config.train.checkpoint_every=100")
    run = bench.start(bench.folder / "growth", *sizes, *every, "--config.train.steps=2100")
    found = []
    for step in (200, 1100, 2000):
        assert run.says(f"step {step} of 2100"), run.text()
        status = pathlib.Path(f"/proc/{run.pid}/status").read_text()
        parts = re.findall(r"(?:RssAnon|VmSwap):\s+(\d+)", status)
        memory = sum(map(int, parts)) / 1024
        found.append((memory, len(os.listdir(f"/proc/{run.pid}/fd"))))
    (first, opened), (middle, _), (last, still) = found
    # What compiling took is given back at some time, so the second half counts as well.
    held = last < 1.02 * min(first, middle) and still <= opened + 2  # a file on its way
    held &= run.end() == 0
    happens = (
        f"after 200 steps {first:.0f} MiB of memory and {opened} open files, after 1,100 "
        f"{middle:.0f} MiB, after 2,000 {last:.0f} MiB and {still}"
    )
    yield Row("2,000 steps, a checkpoint every 100", happens, "nothing", held)


def equality(bench: Bench) -> dict[str, Any]:
    """Trains ten steps by each engine on several devices, and compares what they end with."""
    count, found, reached = 10, [], {}
    engines = config.CHOICES["train.engine"]
    for devices, processes in ((1, 1), (2, 1), (4, 1), (4, 2)):
        ways = [(engine, 1) for engine in engines]
        ways += [(engines[1], 2)] if devices > 1 else []
        for engine, rows in ways:
            workdir = bench.folder / f"equal_{devices}_{processes}_{engine}_{rows}"
            flags = (f"--config.train.steps={count}", f"--config.train.engine={engine}")
            flags += (f"--config.train.rows={rows}",)
            if processes == 1:
                runs = [bench.start(workdir, *flags, devices=devices)]
            else:
                runs = two(bench, workdir, *flags)
            for run in runs:
                assert run.end() == 0, run.text()
            own = variables(workdir, count)
            first = reached.setdefault((devices, processes), own)
            one = reached[1, 1]
            found.append(
                {
                    **{"engine": engine, "devices": devices, "processes": processes},
                    "rows": rows,
                    "to_one_device": difference(own["params"], one["params"]),
                    "to_first_engine": difference(own, first),
                }
            )
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(one["params"]))
    return {"steps": count, "largest": largest, "layouts": found}


def difference(a: Any, b: Any) -> float:
    """Returns the largest difference of two trees of arrays."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(x - y).max()) for x, y in pairs)


FAULTS = {
    **{"kills": kills, "resumes": resumes, "checkpoints": checkpoints, "disk": disk},
    **{"loss": loss, "cache": cache, "signals": signals, "growth": growth},
}


def preemption(folder: pathlib.Path) -> dict[str, Any]:
    """Times a stop of the demonstration, and the next start until its first new step."""
    workdir, stops, starts = folder / "demo", [], []
    words = [sys.executable, "-m", "segjax", "train", "--config=demo", f"--workdir={workdir}"]
    words += [f"--config.data.cache={folder / 'cache'}", "--config.train.log_every=1"]
    words += ["--config.train.checkpoint_every=100000", "--config.train.eval_every=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    del environment["JAX_COMPILATION_CACHE_DIR"]  # as a user has it
    for number in range(3):
        reached, log = newest(workdir), folder / f"demo{number}.log"
        begin = time.perf_counter()
        with log.open("w") as file:
            process = subprocess.Popen(
                words, env=environment, stdout=file, stderr=subprocess.STDOUT, preexec_fn=hear
            )
        run = Run(process.pid, process.poll, log)
        assert run.says(f"step {reached + 1} of "), run.text()
        starts.append(time.perf_counter() - begin)
        assert run.says(f"step {reached + 4} of "), run.text()
        begin = time.perf_counter()
        run.send(signal.SIGTERM)
        assert run.end() == 128 + signal.SIGTERM, run.text()
        stops.append(time.perf_counter() - begin)
    return {"stop_s": stops, "start_s": starts[1:]}  # the first one prepared and compiled


def asking() -> dict[str, Any]:
    """Times the question after each step whether to stop, on one of several processes."""
    link, times = hosts.Link(0, {}, "", hosts.HEARTBEAT), []
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(1000):
            link.tick()
        times.append((time.perf_counter() - begin) / 1000)
    return {"tick_us": 1e6 * statistics.median(times)}


def engines() -> dict[str, Any]:
    """Times the step of the small network, mapped by each engine in turns."""
    numbers = sorted({1, min(2, jax.device_count())})
    return {"by_devices": {number: in_turns(number) for number in numbers}}


def in_turns(number: int) -> dict[str, Any]:
    """Times both engines on so many devices: milliseconds of a step, of wall and of all cores."""
    calls = {}
    for engine in config.CHOICES["train.engine"]:
        settings = overrides.read(SMALL[0].removeprefix("--config="), SMALL[1:])
        settings.model, settings.train.engine = settings.model.clone(num_classes=7), engine
        calls[engine] = a_step(settings, jax.devices()[:number])
        for _ in range(3):
            calls[engine]()
    wall: dict[str, list[float]] = {engine: [] for engine in calls}
    cores: dict[str, list[float]] = {engine: [] for engine in calls}
    for _ in range(40):
        for engine, call in calls.items():
            begin, used = time.perf_counter(), time.process_time()
            call()
            wall[engine].append(1e3 * (time.perf_counter() - begin))
            cores[engine].append(1e3 * (time.process_time() - used))
    return {
        "step_ms": {engine: statistics.median(times) for engine, times in wall.items()},
        "core_ms": {engine: statistics.median(times) for engine, times in cores.items()},
        "second_by_first": statistics.median(b / a for a, b in zip(*wall.values(), strict=True)),
    }


def a_step(settings: config.Config, devices: list[jax.Device]) -> Callable[[], None]:
    """Returns a function that runs a training step on random images and waits for it."""
    state, tx = training.initial_state(settings)
    step = steps.parallel(steps.train_step, config=settings, tx=tx, donate=True, devices=devices)
    key, state = (steps.replicated(x, devices) for x in (jax.random.key(0), state))
    rng, shape = np.random.default_rng(0), (len(devices), 4 // len(devices), 32, 48)
    mesh = jax.sharding.Mesh(np.array(devices), (steps.AXIS,))
    images = jax.device_put(
        {
            "image": rng.integers(0, 256, (*shape, 3)).astype(np.uint8),
            "label": rng.integers(0, 7, shape).astype(np.uint8),
        },
        jax.sharding.NamedSharding(mesh, steps.P(steps.AXIS)),
    )

    def call() -> None:
        nonlocal state
        state, metrics = step(state, images, key)
        jax.block_until_ready(metrics)

    return call


def where() -> dict[str, Any]:
    """Returns where the numbers come from."""
    asked = subprocess.run(  # the last commit that changed what is tried here
        ["git", "-C", str(ROOT), "log", "-1", "--format=%h", "--", "segjax"],
        capture_output=True,
        text=True,
    )
    cpu = pathlib.Path("/proc/cpuinfo")
    names = [x for x in cpu.read_text().splitlines() if "model name" in x] if cpu.exists() else []
    return {
        "date": datetime.date.today().isoformat(),
        "commit": asked.stdout.strip() or "unknown",
        "processor": names[0].split(":")[1].strip() if names else "unknown",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # processes that want a core meanwhile
        "device": jax.local_devices()[0].device_kind,
        "jax": jax.__version__,
    }


COSTS = {"preemption": preemption, "asking": asking, "engines": engines}
OTHERS = {"equality": equality}


def run_all() -> None:
    """Does what is asked for, writes the file after each part, prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*FAULTS, *OTHERS, *COSTS]
    parser.add_argument("--kills", type=int, default=20, help="random kills [20]")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("faults.json"))
    args = parser.parse_args()
    report = json.loads(args.json.read_text()) if args.json.exists() else {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = pathlib.Path(temporary)
        # Read when JAX is imported, so for all runs alike.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        bench = Bench(folder) if set(args.only) & {*FAULTS, *OTHERS} else None
        for name in args.only:
            if name in FAULTS:
                rows = [dataclasses.asdict(row) for row in FAULTS[name](bench, args.kills)]
                found = {"rows": rows}
            elif name in OTHERS:
                found = OTHERS[name](bench)
            else:
                found = preemption(folder) if name == "preemption" else COSTS[name]()
            report[name] = {**where(), **found}
            files.write_json(args.json, report)
    show(report)


def show(report: dict[str, Any]) -> None:
    """Prints the table of faults, and the costs."""
    console = rich.console.Console(width=150)
    table = rich.table.Table(title="faults")
    for column in ("what is done", "what happens", "what is lost", "held"):
        table.add_column(column)
    words = {True: "yes", False: "NO", None: "not run"}
    for name in FAULTS:
        for row in report.get(name, {}).get("rows", ()):
            table.add_row(row["done"], row["happens"], row["lost"], words[row["held"]])
    console.print(table)
    for name in (*OTHERS, *COSTS):
        if name in report:
            console.print(name, report[name])


if __name__ == "__main__":
    run_all()
