"""Checkpoints of a run: asynchronous, atomic, checked when read, the newest few and the best."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from segjax import files, log, paths
from segjax.state import TrainState

SCORES = "scores.json"  # in the folder of the checkpoints: scores by step
ITEMS = ("state", "position", "metadata")  # folders of a checkpoint
FILES = 40  # of a checkpoint, and their folders
CHECKSUMS = "checksums.json"  # in the folder of a checkpoint: SHA-256 or MD5 of its files
MD5 = 32  # digits of one
ASIDE = 60.0  # seconds until all processes must see that a checkpoint was set aside
COMMIT = "commit_success.txt"  # in a bucket, in a checkpoint that is complete
Shape = tuple[int, ...] | None


class DamagedError(ValueError):
    """A checkpoint that cannot be read, or whose arrays are not those that were saved."""


class AnotherStateError(ValueError):
    """A whole checkpoint of a state with other parts."""


@dataclasses.dataclass
class _LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoints and the best of those that were scored."""

    checkpoints: "Checkpoints"
    keep: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = self.checkpoints.best_of([info.step for info in checkpoints])
        oldest_kept = len(checkpoints) - self.keep
        return [i >= oldest_kept or info.step == best for i, info in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/<step>`.

    A checkpoint holds the state, the position in the data and what is needed to use the network
    without its training data: configuration, classes, palette. It appears under its name only
    when it is complete; a process killed while writing leaves none or a whole one.
    """

    def __init__(
        self, workdir: str | pathlib.Path, *, keep: int = 3, read_only: bool = False
    ) -> None:
        """Opens the folder, and makes it unless `read_only`.

        Args:
          workdir: the folder of the run.
          keep: newest checkpoints to keep, besides the one with the best score.
          read_only: change nothing.

        Raises:
          ValueError: `read_only` and there is no checkpoint.
        """
        root = paths.absolute(workdir) / "checkpoints"
        if read_only and not saved(root.parent):
            found = "has none" if root.exists() else "is missing"
            raise ValueError(
                f"{workdir} holds no checkpoint ({root} {found}); give the --workdir of a run that "
                "has saved one"
            )
        self._root = root
        self._verified: set[int] = set()  # steps whose files were read and compared
        self._manager = ocp.CheckpointManager(
            root,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "position": ocp.JsonCheckpointHandler(),
                "metadata": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self, keep),
                # Orbax's own read_only warns of itself; without these two it changes nothing.
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def save(
        self, step: int, state: TrainState, *, position: dict[str, Any], metadata: dict[str, Any]
    ) -> None:
        """Starts writing a checkpoint; the state may be donated as soon as this returns.

        Args:
          step: batches seen.
          state: replicated over the devices.
          position: in the training data, JSON values.
          metadata: JSON values.

        Raises:
          FloatingPointError: a parameter or statistic is not finite; nothing is written.
          ValueError: the checkpoint before this one could not be written.
        """
        if step in self._manager.all_steps():
            return
        # On several processes a pmapped state is local to each, which Orbax does not write.
        host = jax.device_get(state)
        for path, leaf in _by_path({"params": host.params, "batch_stats": host.batch_stats}):
            if not np.isfinite(leaf).all():
                raise FloatingPointError(f"{path} is not finite after step {step}")
        with self._written():
            if jax.process_index() == 0 and not paths.in_bucket(self._root):
                self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(host)))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(host),
                    position=ocp.args.JsonSave(position),
                    metadata=ocp.args.JsonSave(metadata),
                ),
            )

    def score(self, step: int, scores: Mapping[str, float]) -> None:
        """Writes down the scores of a checkpoint, by which the best one is found."""
        if jax.process_index() == 0:
            numbers = {name: float(score) for name, score in scores.items()}
            known = {k: v for k, v in self.scores().items() if (self._root / str(k)).exists()}
            files.write_json(self._root / SCORES, {**known, step: numbers})

    def scores(self) -> dict[int, dict[str, float]]:
        """Returns the scores by step; a damaged file counts as none."""
        try:
            found = json.loads((self._root / SCORES).read_text())
            return {
                int(step): {name: float(score) for name, score in scores.items()}
                for step, scores in found.items()
            }
        except (OSError, ValueError, AttributeError, TypeError, OverflowError):
            return {}

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, the oldest first."""
        return list(self._manager.all_steps())

    def latest(self) -> int | None:
        """Returns the newest step, None when there is none."""
        return self._manager.latest_step()

    def last_good(self) -> int | str:
        """Returns the newest step that is written to its end, "none", or "unknown" where a bucket
        is out of reach."""
        with contextlib.suppress(Exception):
            return max(saved(self._root.parent), default="none")
        return "unknown"

    def best(self) -> int | None:
        """Returns the step with the best mean IoU, the newest when none was scored."""
        best = self.best_of(self.steps())
        return self.latest() if best is None else best

    def best_of(self, steps: Sequence[int]) -> int | None:
        """Returns the step with the best mean IoU of some, that of network and CRF where the two
        were trained together; the newer of equals; None when none of them has a score."""
        found = {step: _mean_iou(scores) for step, scores in self.scores().items() if step in steps}
        found = {step: score for step, score in found.items() if math.isfinite(score)}
        return max(found, key=lambda step: (found[step], step), default=None)

    def find(self, name: str) -> int:
        """Returns the step that "best", "latest" or a number means.

        Raises:
          ValueError: there is no such checkpoint.
        """
        named = {"best": self.best, "latest": self.latest}
        step = named[name]() if name in named else int(name) if name.isdigit() else None
        if step not in self.steps():
            saved = ", ".join(map(str, self.steps()))
            raise ValueError(f"no checkpoint {name!r}; accepted are best, latest, {saved}")
        return step

    def differing(self, step: int, like: TrainState) -> dict[str, tuple[Shape, Shape]]:
        """Returns the arrays in which the state saved at a step differs from another; reads none.

        Args:
          step: of the checkpoint.
          like: a state.

        Returns:
          By path, "params/conv1/kernel", the shape that is saved and that of `like`; None for none.

        Raises:
          DamagedError: the checkpoint cannot be read.
        """
        with self._reading(step):
            self._verify(step)
            tree = self._manager.item_metadata(step)["state"].tree
        saved = {path: tuple(leaf.shape) for path, leaf in _by_path(tree)}
        wanted = {path: np.shape(leaf) for path, leaf in _by_path(like)}
        pairs = {path: (saved.get(path), wanted.get(path)) for path in sorted({*saved, *wanted})}
        return {path: (old, new) for path, (old, new) in pairs.items() if old != new}

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state and the position saved at a step.

        Args:
          step: of the checkpoint.
          like: a state of the same network and optimiser.

        Raises:
          DamagedError: the checkpoint cannot be read, or is not what was saved.
          AnotherStateError: it holds a state with other parts than `like`.
        """
        if different := self.differing(step, like):
            path, (old, new) = next(iter(different.items()))
            raise AnotherStateError(
                f"checkpoint {self._root / str(step)} holds a state with other parts, of another "
                f"model, crf or optim: {path} is {old} in it and {new} now, as one of "
                f"{len(different)}"
            )
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, jax.device_get(like))
        items = {"state": ocp.args.StandardRestore(shapes), "position": ocp.args.JsonRestore()}
        if (self._root / str(step) / CHECKSUMS).is_file():  # its files are those that were written
            before = f"checkpoint {self._root / str(step)} holds a state with other parts: "
            with _named(AnotherStateError, before):
                found = self._manager.restore(step, args=ocp.args.Composite(**items))
        else:
            found = self._read(step, **items)
        return found.state, found.position

    def variables(self, step: int) -> dict[str, Any]:
        """Returns what a prediction needs of the state saved at a step: "params" (their moving
        average where the run keeps one) and "batch_stats", as numpy arrays.

        Raises:
          DamagedError: the checkpoint cannot be read, or is not what was saved.
        """
        state = self._read(step, state=ocp.args.StandardRestore()).state
        if missing := {"params", "batch_stats", "opt_state"} - set(state):
            raise ValueError(
                f"checkpoint {self._root / str(step)} is none of segjax: it has no "
                f"{', '.join(sorted(missing))}"
            )
        averaged = [
            leaf["averaged"]
            for leaf in jax.tree.leaves(state["opt_state"], is_leaf=_holds_average)
            if _holds_average(leaf)
        ]
        params = averaged[0] if averaged else state["params"]
        return {"params": params, "batch_stats": state["batch_stats"]}

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata saved at a step.

        Raises:
          DamagedError: the checkpoint cannot be read.
        """
        return self._read(step, metadata=ocp.args.JsonRestore()).metadata

    def set_aside(self, step: int) -> pathlib.Path:
        """Takes a damaged checkpoint out of the run, kept as `<step>.damaged`; returns its path.

        The first process does it; the others wait until they see it, or would take the step for
        saved when it is saved again, and leave the first one waiting for them.

        Raises:
          ValueError: the first process has not done it.
        """
        aside = self._root / f"{step}.damaged"
        if jax.process_index() == 0:
            number = 1
            while aside.exists():
                aside, number = self._root / f"{step}.damaged{number}", number + 1
            (self._root / str(step)).rename(aside)
            scores = {other: values for other, values in self.scores().items() if other != step}
            files.write_json(self._root / SCORES, scores)
        self._manager.reload()
        deadline = time.monotonic() + ASIDE
        while step in self.steps():
            if time.monotonic() > deadline:
                raise ValueError(f"{self._root / str(step)} is damaged on this process alone")
            time.sleep(0.1)
            self._manager.reload()
        return aside

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
          ValueError: it could not be written.
        """
        with self._written():
            self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Writes everything and gives up the folder."""
        with self._written():
            self._manager.close()

    def _read(self, step: int, **items: Any) -> Any:
        with self._reading(step):
            self._verify(step)
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _seal(self) -> None:
        """Adds the checksums of its files to a checkpoint that is about to get its name."""
        if jax.process_index() == 0:
            if paths.in_bucket(self._root):  # nothing is renamed there
                steps = [path for path in self._root.glob("*") if path.name.isdigit()]
                unfinished = [path for path in steps if not _is_whole(path)]
            else:
                unfinished = list(self._root.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))
            for folder in unfinished:
                files.write_json(folder / CHECKSUMS, _checksums(folder))

    def _verify(self, step: int) -> None:
        """Raises ValueError where a file is not the one that was written.

        Orbax is given nothing damaged: some damage it reads in silence, on other its threads print
        pages.
        """
        folder = self._root / str(step)
        if step in self._verified:
            return
        for name in ITEMS:
            if not (folder / name).is_dir():
                raise ValueError(f"{name} is missing")
        if (folder / CHECKSUMS).is_file():
            written = json.loads((folder / CHECKSUMS).read_text())
            found = _checksums(folder, written)
            for name in sorted(written):
                if name not in found:
                    raise ValueError(f"{name} is missing")
                if found[name] != written[name]:
                    raise ValueError(f"{name} is not the file that was written")
        else:
            log.warn(
                f"checkpoint {folder} has no {CHECKSUMS}: an older version of segjax wrote it, or "
                "it was removed; damage to its arrays cannot be noticed"
            )
        self._verified.add(step)

    def _reading(self, step: int) -> contextlib.AbstractContextManager[None]:
        return _named(DamagedError, f"checkpoint {self._root / str(step)} is damaged: ")

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            with _named(ValueError, f"{self._root} cannot be written: "):
                yield
        except ValueError as error:
            good = self.last_good()
            raise ValueError(f"{error}; the last good checkpoint is {good}") from error

    def _check_room(self, size: int) -> None:
        """Raises OSError where a disk is too full for some bytes: Orbax would print pages."""
        disk = os.statvfs(self._root)
        free = disk.f_bavail * disk.f_frsize
        if free < size:
            raise OSError(
                f"a checkpoint takes up to {size / 1e6:.0f} MB, {free / 1e6:.0f} are free"
            )
        if disk.f_files and disk.f_favail < FILES:
            raise OSError(f"a checkpoint is {FILES} files, of which {disk.f_favail} are free")


def saved(workdir: pathlib.Path) -> list[int]:
    """Returns the steps whose checkpoints are complete in the folder of a run."""
    folders = (workdir / "checkpoints").glob("*")
    return [int(path.name) for path in folders if path.name.isdigit() and _is_whole(path)]


def _is_whole(folder: pathlib.Path) -> bool:
    """Whether a folder of checkpoints is a complete one."""
    return (folder / COMMIT).exists() if paths.in_bucket(folder) else folder.is_dir()


@contextlib.contextmanager
def _named(kind: type[ValueError], before: str) -> Iterator[None]:
    """Turns what Orbax raises, which is of many types, into one error with a name."""
    try:
        yield
    except FloatingPointError:
        raise
    except Exception as error:
        said = str(error).strip().splitlines()
        reason = (said[0] if said else type(error).__name__).rstrip(".")
        raise kind(f"{before}{reason}") from error


def _by_path(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves with their paths, "params/conv1/kernel", whatever the kind of nodes."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _checksums(folder: pathlib.Path, like: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the checksum of each file of a checkpoint, by its path in it.

    That is the SHA-256, and in a bucket the MD5 that the bucket knows without reading the file. A
    run may be copied into a bucket or out of one: `like` tells which was written down. Orbax goes
    on writing its own `_CHECKPOINT_METADATA`, from which nothing is read here.
    """
    if paths.in_bucket(folder):
        known = {name: about.md5 for name, about in paths.objects(folder).items()}
    else:
        known = {p.relative_to(folder).as_posix(): "" for p in folder.rglob("*") if p.is_file()}
    sums = {}
    for name, md5 in sorted(known.items()):
        if name.rsplit("/", 1)[-1] in (CHECKSUMS, "_CHECKPOINT_METADATA"):
            continue
        kind = "md5" if len((like or {}).get(name, md5)) == MD5 else "sha256"
        if kind == "md5" and md5:
            sums[name] = md5
            continue
        with (folder / name).open("rb") as file:
            sums[name] = hashlib.file_digest(file, kind).hexdigest()
    return sums


def _mean_iou(scores: Mapping[str, float]) -> float:
    return scores.get("crf_mean_iou", scores.get("mean_iou", math.nan))


def _holds_average(leaf: Any) -> bool:
    return isinstance(leaf, dict) and set(leaf) == {"averaged"}
