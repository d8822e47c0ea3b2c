"""The folder of a run: opened to read what was trained, or held to train in it."""

import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from segjax import checkpoint, crf, crf_rnn, files, log, models, paths, pretrained, state
from segjax import config as config_lib
from segjax.config import Config
from segjax.crf_rnn import Kernels
from segjax.data.labels import colour_map
from segjax.pretrained.files import WEIGHTS

LOCK = ".lock"  # in the folder of a run
TUNED = "crf.json"  # in the folder of a run: what `segjax tune-crf` found
LETTERS = ("w1", "alpha", "beta", "w2", "gamma")  # in it; arguments of crf.deeplab_kernels


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network with all that belongs to it.

    Attributes:
      folder: of the run, or of converted weights.
      step: the checkpoint that was read; None for weights.
      config: what that checkpoint was trained with.
      variables: "params" (their moving average where one is kept) and "batch_stats", numpy arrays.
      classes: names, by id.
      palette: RGB, by id.
      crfs: by name: "learnt" with the network, "tuned" by `segjax tune-crf`.
      class_weights: float32 [C] of the loss, None for none.
    """

    folder: pathlib.Path
    step: int | None
    config: Config
    variables: dict[str, Any]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    crfs: dict[str, Kernels]
    class_weights: np.ndarray | None = None


def open_run(path: str | os.PathLike[str], step: str = "best") -> Run:
    """Reads a trained network.

    What a checkpoint was trained with is stored in it, and that is what is read: the `config.json`
    of a run is a copy for people, of the latest start.

    Args:
      path: the folder of a run, of one of its checkpoints, or of converted weights
        (`segjax convert`); or their file weights.safetensors.
      step: of a run: "best", "latest" or a number.

    Raises:
      ValueError: there is no network, it is damaged, or it is none of segjax.
    """
    path = paths.absolute(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the folder of a run, or of weights")
    folder, number, variables, metadata = read(path, str(step))
    described = metadata.get("config") if isinstance(metadata, dict) else None
    if not isinstance(described, dict) or "model" not in described:
        raise ValueError(
            f"{path} is no network of segjax, or only a part of one: nothing in it describes a "
            "network. Train from it with --config.train.init_from"
        )
    try:
        config = config_lib.from_dict(described, model_classes())
        config_lib.check(config)
        count = config.model.num_classes
        classes, palette = _labels(metadata, count)
        weights = _class_weights(metadata, count)
        fitted, report = pretrained.merge(_shapes(config), variables)
    except ValueError as error:
        raise ValueError(f"{path} describes its network wrongly: {error}") from error
    if report.new or report.unused:
        raise ValueError(f"{path} does not fit the network it describes: {report}")
    crfs = own_crfs(config, fitted, folder)
    return Run(folder, number, config, fitted, classes, palette, crfs, weights)


def read(
    path: pathlib.Path, step: str = "best"
) -> tuple[pathlib.Path, int | None, dict[str, Any], dict[str, Any]]:
    """Returns folder, step, variables and metadata of a run, one of its checkpoints or weights.

    Args:
      path: as for `open_run`.
      step: of a run: "best", "latest" or a number; None comes back for weights.

    Raises:
      ValueError: nothing of this kind is there, it is damaged, or `step` has no meaning for it.
    """
    if step not in ("best", "latest") and not step.isdigit():
        raise ValueError(f"--step={step}; accepted are best, latest or the number of a checkpoint")
    if path.is_file() and path.name != WEIGHTS:
        raise ValueError(
            f"{path} is a file; give the folder of a run, or a file {WEIGHTS} with its config.json "
            "in the same folder. Published weights: segjax convert FILE FOLDER"
        )
    if path.is_file() or (path / WEIGHTS).is_file():
        if step != "best":
            raise ValueError(f"{path} is weights alone, no steps to choose from; leave --step out")
        return path.parent if path.is_file() else path, None, *pretrained.load_weights(path)
    if _is_step(path):
        if step not in ("best", path.name):
            raise ValueError(
                f"{path} is one checkpoint; --step={step} is none of it; leave --step out, or give "
                f"{path.parent.parent}"
            )
        path, step = path.parent.parent, path.name
    elif path.name == "checkpoints":
        path = path.parent
    with checkpoint.Checkpoints(path, read_only=True) as checkpoints:
        number = checkpoints.find(step)
        try:
            return path, number, checkpoints.variables(number), checkpoints.metadata(number)
        except checkpoint.DamagedError as error:
            others = ", ".join(str(other) for other in checkpoints.steps() if other != number)
            advice = f"; take another step of {others}" if others else ""
            raise checkpoint.DamagedError(f"{error}{advice}") from error


def holds_checkpoints(path: pathlib.Path) -> bool:
    """Whether a path is a run, or one of its checkpoints."""
    return _is_step(path) or path.name == "checkpoints" or (path / "checkpoints").is_dir()


def model_classes() -> dict[str, type]:
    """Returns the classes that the network of a configuration, and its fields, may have."""
    found = {name: getattr(models, name) for name in models.__all__}
    return {name: value for name, value in found.items() if isinstance(value, type)}


def own_crfs(
    config: Config, variables: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, Kernels]:
    """Returns the CRFs of a run: "learnt" with the network, "tuned" by `segjax tune-crf`.

    Args:
      config: of the run.
      variables: of the run.
      folder: of the run, or of weights; a result of tuning is its crf.json.

    Raises:
      ValueError: crf.json is damaged.
    """
    own: dict[str, Kernels] = {}
    if config.crf.learn:
        own["learnt"] = crf_rnn.kernels(variables["params"]["crf"], config.crf)
    path = folder / TUNED
    if path.exists():
        try:
            point = json.loads(path.read_text())
            own["tuned"] = crf.deeplab_kernels(*(float(point[letter]) for letter in LETTERS))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no result of segjax tune-crf: {error!r}; remove it or tune again"
            ) from error
    return own


@contextlib.contextmanager
def only_one(workdir: pathlib.Path, *, session: str = "") -> Iterator[Callable[[], None]]:
    """Keeps other training runs out of the folder, as long as this process lives.

    Of several processes the first one does. A bucket has no locks: there the last run that was
    started owns the folder. Its name is in the file of the lock, and an earlier one, which may be a
    host that was thought to be gone, ends before it would write again.

    Args:
      workdir: the folder, made when missing.
      session: a text for the lock, by which the other processes know the folder (`seen`).

    Yields:
      A function to call before anything is written. It raises ValueError where another run, started
      later, owns a folder in a bucket.

    Raises:
      ValueError: there is another one, or the folder cannot be written.
    """
    if jax.process_index() != 0:
        yield lambda: None
        return
    if paths.in_bucket(workdir):
        session = session or secrets.token_hex(8)
        files.write_text(workdir / LOCK, session)
        yield functools.partial(_check_owner, workdir, session)
        return
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((workdir / LOCK).open("a"))
        except OSError as error:
            raise ValueError(
                f"--workdir {workdir} cannot be written: {error.strerror}; choose another"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{workdir} is in use: another segjax train writes there; wait for it, or choose "
                "another --workdir"
            ) from None
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(session)
        file.flush()
        yield lambda: None


def _check_owner(workdir: pathlib.Path, session: str) -> None:
    try:
        owner = (workdir / LOCK).read_text()
    except FileNotFoundError:  # someone removed it
        with log.harmless(f"{workdir / LOCK}"):
            files.write_text(workdir / LOCK, session)
        return
    except Exception as error:  # a bucket out of reach: until the next save nothing is lost
        log.warn(f"{workdir / LOCK} cannot be read: {paths.why(error)}")
        return
    if owner != session:
        raise ValueError(
            f"{workdir} is in use: another segjax train was started there later, and goes on; this "
            "one ends and leaves the folder as it is"
        )


def seen(workdir: pathlib.Path, session: str) -> dict[str, Any]:
    """Returns what this process sees of the folder: whose lock is in it, and its last step."""
    text = None
    deadline = time.monotonic() + 10  # a network's file system may show a new file late
    while text != session and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            text = (workdir / LOCK).read_text()
        time.sleep(0 if text == session else 0.2)
    return {
        f"--workdir={workdir}": "the run's" if text == session else "another folder",
        "last step": max(checkpoint.saved(workdir), default=0),
    }


def resume(
    workdir: pathlib.Path,
    config: Config,
    checkpoints: checkpoint.Checkpoints,
    like: state.TrainState,
    classes: Sequence[str],
) -> tuple[int, state.TrainState, dict[str, Any] | None]:
    """Returns where a run goes on: the step, the state and the position in the data.

    A damaged checkpoint is set aside with a warning, and the one before it is taken.

    Args:
      workdir: of the run.
      config: of the run as it is to go on.
      checkpoints: of the run.
      like: the state at step 0, which is returned where there is no checkpoint.
      classes: names, by id, of the data.

    Raises:
      ValueError: the run was trained with another network, optimiser, data set or order of classes,
        or all of its checkpoints are damaged. Nothing is changed then.
    """
    damaged: checkpoint.DamagedError | None = None
    for step in reversed(checkpoints.steps()):
        try:
            metadata = checkpoints.metadata(step)
            trained = metadata.get("config", {})
            _refuse_another(workdir, trained, config, checkpoints.differing(step, like))
            compare_classes(metadata.get("classes", classes), classes)
            restored, position = checkpoints.restore(step, like)
        except checkpoint.AnotherStateError as error:  # empty parts, which have no shapes
            lines = config_lib.differences(trained, _plain(config))
            fields = [line for line in lines if line.startswith(("optim.", "model.", "crf."))]
            raise _another(workdir, "optimiser", fields, str(error)) from error
        except checkpoint.DamagedError as error:
            damaged = damaged or error
            log.warn(f"{error}")
            continue
        for newer in checkpoints.steps():
            if newer > step:
                log.warn(f"going on from step {step}; {checkpoints.set_aside(newer)} is left as is")
        changes = ", ".join(config_lib.differences(trained, _plain(config)))
        changed = f"; changed: {changes}" if changes else ""
        log.say(f"{workdir}: going on after step {step}{changed}")
        return step, restored, position
    if damaged is not None:
        raise ValueError(f"{workdir} has no checkpoint that can be read: {damaged}")
    return 0, like, None


def compare_classes(trained: Sequence[str], classes: Sequence[str]) -> None:
    """Warns where the data have other names for the classes than a checkpoint.

    Args:
      trained: names, by id, of the checkpoint.
      classes: those of the data.

    Raises:
      ValueError: the names are the same in another order, or are more or fewer.
    """
    both = enumerate(itertools.zip_longest(trained, classes))
    different = [(i, old, new) for i, (old, new) in both if old != new]
    if not different:
        return
    number, old, new = different[0]
    first = f"class {number} is {old!r} in the checkpoint and {new!r} in the data"
    if len(trained) != len(classes):
        raise ValueError(
            f"the checkpoint has {len(trained)} classes and the data have {len(classes)}: {first}; "
            f"give data with the classes of the checkpoint, {', '.join(trained)}"
        )
    if sorted(trained) == sorted(classes):
        raise ValueError(
            f"the data have the classes of the checkpoint in another order: {first}; list them in "
            f"the order of the checkpoint, {', '.join(trained)}, in the masks too where these hold "
            "ids"
        )
    log.warn(
        f"{first}; {len(different)} of {len(classes)} classes have another name, and each is taken "
        "for the same class"
    )


def begin(config: Config, workdir: pathlib.Path) -> int:
    """Writes config.json, a copy for people, and env.json; on the first process.

    Returns:
      How often the run was started before, as env.json tells; 0 on other processes.

    Raises:
      ValueError: the folder cannot be written.
    """
    if jax.process_index() != 0:
        return 0
    try:
        before = int(json.loads((workdir / "env.json").read_text())["starts"])
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or it is damaged
        before = 0
    files.write_json(workdir / "config.json", config_lib.to_dict(config))
    files.write_json(workdir / "env.json", {**log.environment(), "starts": before + 1})
    return before


def _refuse_another(
    workdir: pathlib.Path,
    trained: Mapping[str, Any],
    config: Config,
    different: Mapping[str, tuple[checkpoint.Shape, checkpoint.Shape]],
) -> None:
    """Raises ValueError where a checkpoint is of another network, optimiser or data set."""
    lines = list(config_lib.differences(trained, _plain(config)))
    data = ("data.name", "data.label_map", "model.num_classes")
    if others := [line for line in lines if line.startswith(data)]:
        raise ValueError(
            f"{workdir} holds a run with other data ({', '.join(others)}); choose another --workdir"
        )
    if not different:
        return
    in_network = any(path.startswith(("params/", "batch_stats/")) for path in different)
    parts = ("model.", "crf.") if in_network else ("optim.", "model.")
    fields = [line for line in lines if line.startswith(parts)]
    what = "network" if in_network else "optimiser"
    first, (old, new) = next(iter(different.items()))
    shapes = f"{first}: {old} in the checkpoint, {new}"
    if not fields:
        raise checkpoint.DamagedError(
            f"the checkpoints of {workdir} lack arrays of their own network, or another version of "
            f"segjax wrote them ({shapes} now)"
        )
    raise _another(workdir, what, fields, f"{len(different)} arrays differ, {shapes} now")


def _another(workdir: pathlib.Path, what: str, fields: Sequence[str], why: str) -> ValueError:
    return ValueError(
        f"{workdir} holds a run with another {what}: {', '.join(fields)} ({why}). Go on with the "
        "fields it was trained with, or choose another --workdir. To start from what fits of it: "
        f"--config.train.init_from={workdir} --workdir=ANOTHER"
    )


def _plain(config: Config) -> dict[str, Any]:
    """Returns a configuration as it comes back from JSON: lists in place of tuples."""
    return json.loads(json.dumps(config_lib.to_dict(config)))


def _is_step(path: pathlib.Path) -> bool:
    return path.parent.name == "checkpoints" and path.name.isdigit()


def _shapes(config: Config) -> dict[str, Any]:
    """Returns the shapes of the variables of a network; raises ValueError where it has none."""
    try:  # the key is made inside, so that a device that is missing is not taken for a fault here
        return jax.eval_shape(
            lambda: state.init_variables(config.model, jax.random.key(0), (64, 64), config.crf)
        )
    except Exception as error:  # a stranger's values may fail anywhere in a network
        raise config_lib.unbuildable(config.model, error) from error


def _labels(
    metadata: Mapping[str, Any], count: int
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Returns the names and the colours of the classes; numbers and VOC's colours by default."""
    classes = metadata.get("classes") or [f"class {i}" for i in range(count)]
    palette = metadata.get("palette") or colour_map(count)
    if not (isinstance(classes, list | tuple) and all(isinstance(c, str) for c in classes)):
        raise ValueError(f"classes is {classes!r}; it must be a list of names")
    try:
        colours = np.array(palette)
        fits = colours.shape == (len(palette), 3) and colours.dtype.kind in "iu"
        fits = fits and colours.min() >= 0 and colours.max() <= 255
    except (ValueError, TypeError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"palette is {palette!r}; it must be a list of [red, green, blue], 0..255")
    for name, values in (("classes", classes), ("palette", palette)):
        if len(values) != count:
            raise ValueError(f"{name} has {len(values)} entries, but model.num_classes is {count}")
    return tuple(classes), tuple(tuple(int(v) for v in colour) for colour in palette)


def _class_weights(metadata: Mapping[str, Any], count: int) -> np.ndarray | None:
    given = metadata.get("class_weights")
    if given is None:
        return None
    try:
        weights = np.array(given, np.float32)
        fits = weights.shape == (count,) and np.isfinite(weights).all()
    except (ValueError, TypeError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"class_weights is {given!r}; it must be {count} numbers")
    return weights
