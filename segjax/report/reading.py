"""Reads the files that a run left in its folder; a damaged one is refused by its name."""

import csv
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

KINDS = ("best", "worst", "random")  # why a picture is kept
SCORES = ("mean_iou", "global_accuracy", "class_average", "frequency_weighted_iou")


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """Returns what config.json says of a run.

    Raises:
      ValueError: the file is damaged.
    """
    values = _json(path)
    if not _is_config(values):
        raise ValueError(f"{path} is no configuration of a run: it has no model or no data")
    return values


def read_environment(path: pathlib.Path) -> dict[str, Any]:
    """Returns what env.json says of a run, nothing where there is none.

    Raises:
      ValueError: the file is damaged.
    """
    values = _json(path) if path.exists() else {}
    if not isinstance(values.get("command", ""), str):
        raise ValueError(f"{path} is damaged: the command is no text; remove the file")
    return values


def read_metrics(path: pathlib.Path) -> list[dict[str, str]]:
    """Returns the rows of metrics.csv, cells by column; none where there is no file.

    A kill may have left a part of a last row, which is left out.

    Raises:
      ValueError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        first, *lines = csv.reader(path.read_text().splitlines())
    except (ValueError, csv.Error) as error:  # no text, or no line
        raise ValueError(f"{path} is no table: {error}; remove it") from error
    if "step" not in first:
        raise ValueError(f"{path} is no table of a run: it has no column 'step'; remove it")
    rows = []
    for number, line in enumerate(lines, 2):
        whole = len(line) == len(first) and all(_is_number(cell) for cell in line if cell)
        if whole and line[first.index("step")]:
            rows.append(dict(zip(first, line, strict=True)))
        elif number <= len(lines):
            raise ValueError(f"{path} is damaged in line {number}: remove that line")
    return rows


def read_evaluation(path: pathlib.Path) -> dict[str, Any]:
    """Returns the values of an evaluation, as `evaluation_files.write_evaluation` wrote them.

    Raises:
      ValueError: the file is damaged, or another version of segjax wrote it.
    """
    values = _json(path)
    wrong = _wrong(values)
    if wrong is None and "crf" in values:
        refined = values["crf"]
        wrong = "crf" if not isinstance(refined, dict) else _wrong_scores(refined)
        if wrong is None and list(refined["per_class"]) != list(values["per_class"]):
            wrong = "crf.per_class"
        if wrong is None and ("boundary_f1" in refined) != ("boundary_f1" in values):
            wrong = "crf.boundary_f1"
    if wrong is not None:
        raise ValueError(
            f"{path} is damaged or of another version ({wrong} is missing or wrong): remove it, or "
            "run segjax eval again"
        )
    return values


def _wrong(values: Mapping[str, Any]) -> str | None:
    """Returns the name of a value that is missing or of a wrong kind, None where all are right."""
    wrong = _wrong_scores(values)
    if wrong is not None:
        return wrong
    count = len(values["per_class"])
    suffixes = ("", "_crf") if "crf" in values else ("",)
    picture = {
        **{name: _is_text for name in ("file", "id")},
        "kind": lambda value: value in KINDS,
        **{
            f"{name}{suffix}": _is_score for name in ("mean_iou", "accuracy") for suffix in suffixes
        },
    }
    colour = lambda value: _is_list(value, lambda part: _is_count(part) and part < 256, 3)
    needed = {
        "palette": lambda value: _is_list(value, colour, count),
        "gallery": lambda value: _is_list(value, lambda entry: not _faults(entry, picture)),
    }
    optional = {
        **{name: _is_text for name in ("split", "protocol", "command")},
        **{name: _is_count for name in ("step", "split_images")},
        "config": _is_config,
        "train_share": lambda value: _is_list(value, _is_score, count),
    }
    faults = _faults(values, needed, optional)
    return faults[0] if faults else None


def _wrong_scores(values: Mapping[str, Any]) -> str | None:
    """The same for the scores of the network, or of network and CRF."""
    classes = values.get("per_class")
    count = len(classes) if isinstance(classes, dict) else 0
    boundary = ("boundary_f1",) if "boundary_f1" in values else ()
    row = {name: _is_score for name in ("iou", "accuracy", "share", *boundary)}
    cells = lambda value: _is_list(value, _is_count, count)
    needed = {
        "images": _is_count,
        "per_class": lambda value: (
            bool(count) and all(not _faults(scores, row) for scores in value.values())
        ),
        "confusion": lambda value: _is_list(value, cells, count),
        **{name: _is_score for name in SCORES},
    }
    bands = [name for name in values if name.startswith("trimap_")]
    optional = {name: _is_score for name in ("boundary_f1", "val_loss", *bands)}
    faults = _faults(values, needed, optional)
    return faults[0] if faults else None


def _faults(
    values: Any,
    needed: Mapping[str, Callable[[Any], bool]],
    optional: Mapping[str, Callable[[Any], bool]] | None = None,
) -> list[str]:
    """Returns the names of values that are missing or fail their test."""
    if not isinstance(values, dict):
        return ["it"]
    present = {name: test for name, test in (optional or {}).items() if name in values}
    tests = {**needed, **present}
    return [name for name, test in tests.items() if name not in values or not test(values[name])]


def _is_config(value: Any) -> bool:
    parts = [value.get("model"), value.get("data")] if isinstance(value, dict) else [None]
    return all(isinstance(part, dict) for part in parts)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_score(value: Any) -> bool:
    """Null stands for a score that is not known."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and abs(value) <= 1e9)


def _is_list(value: Any, test: Callable[[Any], bool], count: int | None = None) -> bool:
    fits = isinstance(value, list) and count in (None, len(value))
    return fits and all(map(test, value))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
        json.dumps(values, ensure_ascii=False).encode()  # half a character is no text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; remove it or make it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object; remove it or make it again")
    return values
