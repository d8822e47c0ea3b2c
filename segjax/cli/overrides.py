"""The command line of a configuration: `--config=FILE --config.optim.lr=0.02`.

FILE is a path, or the name of a configuration that `segjax configs` lists.
"""

import ast
import copy
import dataclasses
import difflib
import re
import runpy
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from segjax import config as config_lib
from segjax import log, models, paths
from segjax.cli import configs
from segjax.config import Config


def read(path: str, changes: Sequence[str] = ()) -> Config:
    """Returns the configuration of a file.

    Args:
      path: of the file, or the name of a shipped one.
      changes: "--config.field=value" each.

    Raises:
      ValueError: there is no such file, it fails or returns no `Config`; there is no such field, or
        it has another type.
    """
    return _changed(_of_file(path), changes)


def changed(config: Config, changes: Sequence[str]) -> Config:
    """Returns the configuration of a run with explicit changes, which are printed.

    Args:
      config: of the run; it stays as it is.
      changes: "--config.field=value" each.

    Raises:
      ValueError: there is no such field, or it has another type.
    """
    new = _changed(copy.deepcopy(config), changes)
    if changes:
        lines = config_lib.differences(config_lib.to_dict(config), config_lib.to_dict(new))
        log.say(f"changed for this command: {', '.join(lines) or 'nothing'}")
    return new


def _last(changes: Sequence[str]) -> list[str]:
    """Returns the last change of each field; flags would add up tuples that are given twice."""
    return list({change.partition("=")[0]: change for change in changes}.values())


class _Dictionary(flags.ArgumentParser):
    """Reads a dictionary of numbers, {"logits": 1.0, "aux": 0.4}."""

    def parse(self, argument: Any) -> dict[str, float]:
        if isinstance(argument, dict):
            return argument
        try:
            found = ast.literal_eval(argument)
            return {_word(name): float(number) for name, number in found.items()}
        except (ValueError, SyntaxError, TypeError, AttributeError) as error:
            raise ValueError(
                'write a dictionary of numbers, {"logits": 1.0, "aux": 0.4}'
            ) from error


def _word(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(name)
    return name


def _of_file(path: str) -> Config:
    """Returns what the function get_config() of a file returns."""
    file = paths.local(configs.shipped().get(path, path), "--config")
    path = str(file)
    if not file.is_file():
        raise ValueError(
            f"--config is {path}: no such file; give a file, or one of "
            f"{', '.join(configs.shipped())}, which segjax configs NAME FILE copies for editing"
        )
    try:
        found = runpy.run_path(path).get("get_config")
        config = found() if callable(found) else None
    except Exception as error:  # a stranger's file may fail in any way
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f"line {frame.lineno}, " for frame in frames if frame.filename == path]
        why = _unknown_argument(error) or f"{type(error).__name__}: {error}"
        raise ValueError(f"--config is {path}: {''.join(lines[-1:])}{why}") from error
    if not isinstance(config, Config):
        what = "has no function get_config()" if found is None else "get_config() returns no Config"
        raise ValueError(
            f"--config is {path}: {what}; the file must end in 'def get_config(): return "
            "Config(...)', as those that segjax configs NAME FILE copies"
        )
    return config


def _unknown_argument(error: Exception) -> str | None:
    """Says which field a dataclass lacks, where an error is of that kind."""
    wrong = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not wrong:
        return None
    holder = getattr(config_lib, wrong[1], None) or getattr(models, wrong[1], None)
    return holder and _lacks(holder, wrong[2])


def _changed(config: Config, changes: Sequence[str]) -> Config:
    """Returns a configuration with changes, which may be made in place."""
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for that
    logging.set_verbosity(logging.ERROR)  # Orbax reports every file that it reads or writes
    config_flags.register_flag_parser_for_type(dict, _Dictionary())
    if not changes:
        return config
    argv, values = ["", *_last(changes)], flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dataclass(
            "config", config, flag_values=values, sys_argv=argv
        )
        values(argv)
    except flags.Error as error:
        raise ValueError(str(error)) from error
    except ValueError as error:  # of a value, or of what stands in [], which it does not name
        indexed = any("[" in word.split("=", 1)[0] for word in argv)
        wrong = indexed and _explain(argv, config)
        raise ValueError(wrong or f"{' '.join(argv[1:])}: {error}") from error
    except (KeyError, AttributeError, TypeError, IndexError, OSError) as error:
        raise ValueError(_explain(argv, config) or error) from error
    return holder.value


def _explain(argv: list[str], config: Config) -> str | None:
    """Says which `--config.field` does not exist, and which do."""
    for word in argv:
        if not word.startswith("--config."):
            continue
        path = word.split("=", 1)[0].removeprefix("--config.").split(".")
        holder: Any = config
        for depth, name in enumerate(path):
            if isinstance(holder, dict):
                whole = ".".join(path[:depth])
                return f'{word}: has no {name!r}; write it whole, --config.{whole}="{holder}"'
            if name not in _fields(holder):
                return f"{word}: {_lacks(type(holder), name)}"
            holder = getattr(holder, name)
    return None


def _lacks(holder: type, name: str) -> str:
    fields = _fields(holder)
    near = difflib.get_close_matches(name, fields, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(fields) or "none"
    return f"{holder.__name__} has no field {name!r}.{hint} Its fields: {listed}."


def _fields(holder: Any) -> list[str]:
    if not dataclasses.is_dataclass(holder):
        return []
    names = [f.name for f in dataclasses.fields(holder)]
    module = set(config_lib.FLAX) <= set(names)
    return [name for name in names if not (module and name in config_lib.FLAX)]
