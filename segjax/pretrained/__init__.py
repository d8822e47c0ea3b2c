"""Published weights, and weights of another network, as variables of segjax.models.

    variables, report = pretrained.load("weights.safetensors", model, variables)
    variables, report = pretrained.merge(variables, others)  # takes what fits of another network

`segjax convert FILE FOLDER` writes a file in segjax's own form, once for all later uses.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax.models import Norm
from segjax.pretrained import files, sources
from segjax.pretrained.files import load_weights, save_weights
from segjax.pretrained.sources import SOURCES, Source

__all__ = [
    "SOURCES",
    "Report",
    "Source",
    "convert",
    "load",
    "load_weights",
    "merge",
    "save_weights",
]
OWN = "segjax"  # the source of files whose tensors are named by variables already
SHOWN = 20  # names that a message lists


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of each variable and each tensor; as a string, the lines to print."""

    loaded: tuple[str, ...]  # paths of variables that got a value
    new: tuple[str, ...]  # paths of variables left as they were
    unused: tuple[str, ...]  # tensors without a variable
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # path: (given, needed) shape
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        line = f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.new)} tensors"
        if self.new:
            line += f", initialised afresh: {_listed(self.new)}"
        # Only the last axis differs, everywhere alike: the number of classes.
        heads = {
            (given[-1], needed[-1]) if given and given[:-1] == needed[:-1] else None
            for given, needed in self.reshaped.values()
        }
        if len(heads) == 1 and None not in heads:
            [(given, needed)] = heads
            line = f"checkpoint head has {given} classes, model has {needed}: {line}"
        elif self.reshaped:
            line += f"; of another shape: {_listed(_shapes(self))}"
        if self.unused:
            line += f"; not used: {_listed(self.unused)}"
        return "\n".join((line, *self.notes))


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    variables: dict[str, Any],
    source: str = "auto",
    *,
    strict: bool = True,
    seed: int = 0,
) -> tuple[dict[str, Any], Report]:
    """Returns the variables of a network with the weights of a file.

    Args:
      path: a published file (.pth, .pt, .safetensors, .npz, .caffemodel) or a folder of
        `save_weights`.
      model: the network.
      variables: of the network, nested dictionaries; their types and shapes are kept.
      source: a key of `SOURCES`, "segjax", or "auto" to tell by the names in the file.
      strict: a variable without a tensor, a tensor without a variable and another shape are
        errors. Otherwise what fits is loaded and the report says what was left.
      seed: of the draw of filters where VGG16's fully connected layers are decimated.

    Raises:
      ValueError: the file cannot be read, is of no known source, or does not fit.
    """
    tensors = files.read(path)
    chosen = _source(path, tensors, source)
    advice = " (strict=False loads what fits)"
    return _load(path, tensors, chosen, model, variables, strict, seed, advice)


def merge(variables: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], Report]:
    """Returns `variables` with every value of `new` that has the same path and shape.

    A pure function of nested dictionaries, for starting from a network with other classes or
    another head. Types stay those of `variables`.

    Raises:
      ValueError: nothing fits.
    """
    given = files.flatten(new)
    loaded, kept, reshaped = [], [], {}

    def choose(key_path: Any, old: Any) -> Any:
        path = files.name_of(key_path)
        if path in given and np.shape(given[path]) == np.shape(old):
            loaded.append(path)
            return jnp.asarray(given[path], old.dtype)
        kept.append(path)
        if path in given:
            reshaped[path] = (np.shape(given[path]), np.shape(old))
        return old

    merged = jax.tree.map_with_path(choose, variables)
    used = {*loaded, *reshaped}
    unused = tuple(path for path in given if path not in used)
    report = Report(tuple(loaded), tuple(kept), unused, reshaped)
    if not loaded:
        raise ValueError(f"nothing of these weights fits the network: {report}")
    return merged, report


def convert(
    path: str | os.PathLike[str], source: str = "auto", *, seed: int = 0
) -> tuple[nn.Module, dict[str, Any], Source, Report]:
    """Returns the network that a published file is of, its variables, its source and the report.

    Of a classifier's file the variables are only those that it fills, the body of a network.

    Args:
      path: of the file.
      source: a key of `SOURCES`, or "auto" to tell by the names in the file.
      seed: as in `load`.

    Raises:
      ValueError: as `load`; or the file is in segjax's own form already.
    """
    tensors = files.read(path)
    chosen = _source(path, tensors, source)
    if chosen is None:
        raise ValueError(f"{path} is in segjax's own form already")
    try:
        model = chosen.build({chosen.canonical(name): array for name, array in tensors.items()})
    except KeyError as error:  # a part of the file, another source, or a variant of the network
        raise ValueError(
            f"{path} is not {chosen.about}, or a part of it: it has no tensor {error}"
        ) from error
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is not {chosen.about}: {error}") from error
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    merged, report = _load(path, tensors, chosen, model, shapes, True, seed)
    values = files.flatten(merged)
    return model, files.unflatten({p: values[p] for p in report.loaded}), chosen, report


def _load(
    path: str | os.PathLike[str],
    tensors: dict[str, np.ndarray],
    source: Source | None,
    model: nn.Module,
    variables: dict[str, Any],
    strict: bool,
    seed: int,
    advice: str = "",
) -> tuple[dict[str, Any], Report]:
    if source is None:
        merged, report = merge(variables, files.unflatten(tensors))
        missing = report.new
    else:
        shapes = {p: np.shape(leaf) for p, leaf in files.flatten(variables).items()}
        epsilon = getattr(model, "norm", Norm()).epsilon
        values, unused = sources.translate(source, tensors, shapes, epsilon=epsilon, seed=seed)
        merged, report = merge(variables, files.unflatten(values))
        report = dataclasses.replace(
            report, unused=tuple(unused), notes=tuple(_notes(source, model, report))
        )
        missing = [p for p in report.new if source.needs(p, report.loaded)]
    if strict and (missing or report.unused):
        problems = {
            "no tensor for": [p for p in missing if p not in report.reshaped],
            "no variable for": report.unused,
            "another shape:": list(_shapes(report)),
        }
        lines = [f"  {what} {_listed(names)}" for what, names in problems.items() if names]
        raise ValueError(
            f"{path} does not fit {type(model).__name__} as it is{advice}:\n" + "\n".join(lines)
        )
    return merged, report


def _source(
    path: str | os.PathLike[str], tensors: dict[str, np.ndarray], name: str
) -> Source | None:
    """Returns the source of a file, None for segjax's own form."""
    if name == "auto":
        own = all(n.startswith(("params/", "batch_stats/")) for n in tensors)
        name = OWN if own else sources.detect(tensors)
        if name is None:
            known = "\n".join(f"  {key}: {s.about}" for key, s in SOURCES.items())
            raise ValueError(
                f"{path} holds weights of no known network ({_listed(list(tensors)[:6])}, ...); "
                f"known are\n{known}"
            )
    if name != OWN and name not in SOURCES:
        raise ValueError(f"source={name!r}; accepted are auto, {OWN}, {', '.join(SOURCES)}")
    return SOURCES.get(name)


def _notes(source: Source, model: nn.Module, report: Report) -> Iterator[str]:
    """Yields warnings about what shapes cannot tell."""
    if source.note:
        yield source.note
    if caution := source.caution(model):
        yield caution
    if report.loaded:
        order = "blue, green, red" if source.input.bgr else "red, green, blue"
        yield (
            f"these weights expect {order} with mean {source.input.mean} and std "
            f"{source.input.std} (of red, green, blue in 0..255); set config.input so"
        )


def _shapes(report: Report) -> Iterator[str]:
    for path, (given, needed) in report.reshaped.items():
        yield f"{path} is {given} in the file and {needed} in the network"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
