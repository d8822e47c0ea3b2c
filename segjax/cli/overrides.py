"""The command line of a configuration: `--config=FILE --config.optim.lr=0.02`.

FILE is a path, or the name of a configuration that `segjax configs` lists.
"""

import ast
import copy
import dataclasses
import difflib
import runpy
from collections.abc import Sequence
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from segjax import config as config_lib
from segjax import log, paths
from segjax.cli import configs
from segjax.config import Config


def read(path: str, changes: Sequence[str] = ()) -> Config:
    """Returns the configuration of a file.

    Args:
      path: of the file, or the name of a shipped one.
      changes: "--config.field=value" each.

    Raises:
      ValueError: there is no such file, or no such field, or it has another type.
    """
    _settle_absl()
    argv = _with_path(["", f"--config={path}", *_last(changes)])
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        _parse(values, argv)
    except flags.Error as error:
        raise ValueError(str(error)) from error
    return holder.value


def changed(config: Config, changes: Sequence[str]) -> Config:
    """Returns the configuration of a run with explicit changes, which are printed.

    Args:
      config: of the run; it stays as it is.
      changes: "--config.field=value" each.

    Raises:
      ValueError: there is no such field, or it has another type.
    """
    _settle_absl()
    if not changes:
        return config
    argv, values, new = ["", *_last(changes)], flags.FlagValues(), copy.deepcopy(config)
    try:
        holder = config_flags.DEFINE_config_dataclass(
            "config", new, flag_values=values, sys_argv=argv
        )
        _parse(values, argv, new)
        new = holder.value
    except flags.Error as error:
        raise ValueError(str(error)) from error
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(_explain(argv, config) or error) from error
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


def _settle_absl() -> None:
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for that
    logging.set_verbosity(logging.ERROR)  # Orbax reports every file that it reads or writes
    config_flags.register_flag_parser_for_type(dict, _Dictionary())


def _parse(values: flags.FlagValues, argv: list[str], config: Config | None = None) -> None:
    path = value_of(argv, "config")
    if path is not None and not paths.local(path, "--config").is_file():
        raise ValueError(
            f"--config is {path}: no such file; give a file, or one of "
            f"{', '.join(configs.shipped())}, which segjax configs NAME FILE copies for editing"
        )
    try:
        values(argv)
    except SyntaxError as error:
        raise ValueError(f"--config is {path}: not Python: {error}") from error
    except ValueError as error:  # of a value, or of what stands in [], which it does not name
        indexed = any("[" in word.split("=", 1)[0] for word in argv)
        wrong = indexed and _explain(argv, config or _of_file(argv))
        raise ValueError(wrong or f"{' '.join(argv[1:])}: {error}") from error
    except (KeyError, AttributeError, TypeError, IndexError, OSError) as error:
        raise ValueError(_explain(argv, config or _of_file(argv)) or error) from error


def _with_path(argv: Sequence[str]) -> list[str]:
    """Returns the words with the name of a shipped configuration as the path of its file."""
    known, words = configs.shipped(), list(argv)
    for i, word in enumerate(words):
        option, equals, name = word.partition("=")
        if option in ("--config", "-config"):
            name = name if equals else "".join(words[i + 1 : i + 2])
            if name in known:
                words[i : i + 2 - len(equals)] = [f"--config={known[name]}"]
                break
    return words


def value_of(argv: list[str], name: str) -> str | None:
    """Returns the value of `--name=value` or `--name value`, before flags are parsed."""
    for i, word in enumerate(argv):
        if word.startswith((f"--{name}=", f"-{name}=")):
            return word.split("=", 1)[1]
        if word in (f"--{name}", f"-{name}") and i + 1 < len(argv):
            return argv[i + 1]
    return None


def _of_file(argv: list[str]) -> Config:
    path = value_of(argv, "config")
    if path is None:
        raise ValueError("--config is missing; give a file, or a name that segjax configs lists")
    values = runpy.run_path(path)
    if "get_config" not in values:
        raise ValueError(f"--config is {path}: it has no function get_config()")
    return values["get_config"]()


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
            fields = _fields(holder)
            if name not in fields:
                near = difflib.get_close_matches(name, fields, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                return (
                    f"{word}: {type(holder).__name__} has no field {name!r}.{hint} Its fields: "
                    f"{', '.join(fields) or 'none'}."
                )
            holder = getattr(holder, name)
    return None


def _fields(holder: Any) -> list[str]:
    if not dataclasses.is_dataclass(holder):
        return []
    names = [f.name for f in dataclasses.fields(holder)]
    module = set(config_lib.FLAX) <= set(names)
    return [name for name in names if not (module and name in config_lib.FLAX)]
