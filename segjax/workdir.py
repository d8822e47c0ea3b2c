"""The folder of a run: opened to read what was trained, or held to train in it."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from segjax import checkpoint, crf, crf_rnn, files, log, models, pretrained, state
from segjax import config as config_lib
from segjax.config import Config
from segjax.crf_rnn import Kernels
from segjax.data.labels import colour_map
from segjax.pretrained.files import WEIGHTS

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
    """

    folder: pathlib.Path
    step: int | None
    config: Config
    variables: dict[str, Any]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    crfs: dict[str, Kernels]


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
    path = pathlib.Path(path).expanduser().absolute()
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the folder of a run, or of weights")
    folder, number, variables, metadata = _stored(path, str(step))
    described = metadata.get("config") if isinstance(metadata, dict) else None
    if not isinstance(described, dict) or "model" not in described:
        raise ValueError(
            f"{path} is no network of segjax, or only a part of one: nothing in it describes a "
            "network. Train from it with --config.train.init_from"
        )
    try:
        config = config_lib.from_dict(described, model_classes())
        variables = _fitting(path, config, variables)
    except TypeError as error:  # a value of another type than the field's
        raise ValueError(f"{path} describes its network wrongly: {error}") from error
    count = config.model.num_classes
    return Run(
        folder=folder,
        step=number,
        config=config,
        variables=variables,
        classes=tuple(metadata.get("classes") or (f"class {i}" for i in range(count))),
        palette=tuple(tuple(c) for c in metadata.get("palette") or colour_map(count)),
        crfs=own_crfs(config, variables, folder),
    )


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
def only_one(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other training runs out of the folder, as long as this process lives.

    Of several processes the first one does; where it fails, the others end when they miss it.

    Raises:
      ValueError: there is another one, or the folder cannot be written.
    """
    if jax.process_index() != 0:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((workdir / ".lock").open("w"))
        except OSError as error:
            raise ValueError(
                f"--workdir {workdir} cannot be written: {error.strerror}; choose another"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{workdir} is in use: another train.py writes there; wait for it, or choose "
                "another --workdir"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def begin(config: Config, workdir: pathlib.Path, step: int) -> None:
    """Writes config.json and env.json, and says what goes on or has changed.

    Raises:
      ValueError: the folder cannot be written, or holds a run of another network or data set.
    """
    values = json.loads(json.dumps(config_lib.to_dict(config)))
    if step:
        with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
            trained = checkpoints.metadata(step)["config"]
        changes = list(config_lib.differences(trained, values))
        for line in changes:
            if line.startswith(("model.num_classes", "data.name", "data.label_map")):
                raise ValueError(
                    f"{workdir} holds a run with other data ({line}); choose another --workdir"
                )
        changed = f"; changed: {', '.join(changes)}" if changes else ""
        log.console.print(f"{workdir}: going on after step {step}{changed}", highlight=False)
    if jax.process_index() == 0:
        files.write_json(workdir / "config.json", values)
        files.write_json(workdir / "env.json", log.environment())


def _stored(
    path: pathlib.Path, step: str
) -> tuple[pathlib.Path, int | None, dict[str, Any], dict[str, Any]]:
    """Returns folder, step, variables and metadata of a run, a checkpoint or weights."""
    if path.is_file() and path.name != WEIGHTS:
        raise ValueError(
            f"{path} is a file; give the folder of a run, or a file {WEIGHTS} with its config.json "
            "beside it. Published weights: segjax convert FILE FOLDER"
        )
    if path.is_file() or (path / WEIGHTS).is_file():
        return path.parent if path.is_file() else path, None, *pretrained.load_weights(path)
    if path.parent.name == "checkpoints" and path.name.isdigit():
        path, step = path.parent.parent, path.name
    elif path.name == "checkpoints":
        path = path.parent
    with checkpoint.Checkpoints(path, read_only=True) as checkpoints:
        number = checkpoints.find(step)
        return path, number, checkpoints.variables(number), checkpoints.metadata(number)


def _fitting(path: pathlib.Path, config: Config, variables: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables as the network has them; raises ValueError where they differ."""
    init = functools.partial(state.init_variables, config.model, size=(64, 64), crf=config.crf)
    fitted, report = pretrained.merge(jax.eval_shape(init, jax.random.key(0)), variables)
    if report.new or report.unused:
        raise ValueError(f"{path} does not fit the network it describes: {report}")
    return fitted
