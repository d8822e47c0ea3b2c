"""Lists of classes, as people and annotation tools write them."""

import csv
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from segjax.data import text
from segjax.data.folders import printable
from segjax.data.images import DataError
from segjax.data.labels import Colour
from segjax.ops import IGNORE_LABEL

# Names of files that list classes: ours, of CVAT, of labelme, of CamVid and its copy on Kaggle, of
# Roboflow.
FILES = (
    *("classes.txt", "classes.csv", "classes.json", "labelmap.txt", "class_names.txt"),
    *("label_colors.txt", "class_dict.csv", "labels.txt", "_classes.csv"),
)
# Names of what is ignored. labelme's __ignore__ has no number of its own.
VOID = ("void", "ignore", "ignored", "__ignore__")
COLUMNS = {  # words of a head line: what the column holds
    **dict.fromkeys(("name", "class", "label", "title", "category", "classname"), "name"),
    **dict.fromkeys(("class_name", "label_name", "class name"), "name"),
    **{"r": "r", "g": "g", "b": "b", "red": "r", "green": "g", "blue": "b"},
    **dict.fromkeys(
        ("id", "index", "value", "number", "class_id", "label_id", "pixel value"), "number"
    ),
    **dict.fromkeys(("color", "colour", "hex", "rgb", "color_rgb"), "colour"),
}
CVAT = re.compile(r"(?P<name>[^:]*):(?P<colour>(\d+ *, *\d+ *, *\d+)?):[^:]*:[^:]*")
NUMBERED = re.compile(r"(\d{1,18})\s*[:.)=]\s*(\D.*)")
FORMS = (
    "a name a line; or 'name R G B', 'R G B name', 'name,R,G,B'; or these with the id in front; or "
    "CVAT's labelmap.txt; or JSON"
)


class Row(NamedTuple):
    """A class as a list has it."""

    at: str  # "classes.txt, line 3"
    name: str
    number: int | None  # in a mask
    colour: Colour | None  # in a mask


def read_classes(file: pathlib.Path) -> tuple[tuple[str, ...], dict[int | Colour, int]]:
    """Reads a list of classes.

    A class has the number that its line gives, or that of its place in the list. Classes called
    void or ignore, and labelme's `__ignore__`, are ignored.

    Returns:
        The names by train id, and the train id, or 255, of each number and colour of a mask.

    Raises:
        DataError: a line cannot be understood; the message names it.
    """
    content = text.read_text(file)
    if content.lstrip()[:1] in ("[", "{"):
        rows = list(_of_json(file, content))
    else:
        rows = _of_lines(file, text.read_lines(file))
    _check(file, rows)
    numbered = [row for row in rows if row.number is not None]
    if numbered:
        rows = sorted(rows, key=lambda row: row.number)
    names: list[str] = []
    codes: dict[int | Colour, int] = {IGNORE_LABEL: IGNORE_LABEL}
    place = 0
    for row in rows:
        void = row.name.casefold() in VOID
        train_id = IGNORE_LABEL if void else len(names)
        if row.name != "__ignore__":
            codes[place if row.number is None else row.number] = train_id
            place += 1
        if row.colour is not None:
            codes[row.colour] = train_id
        if not void:
            names.append(row.name)
    return tuple(names), codes


def _check(file: pathlib.Path, rows: list[Row]) -> None:
    classes = [row for row in rows if row.name.casefold() not in VOID]
    if not 1 <= len(classes) <= IGNORE_LABEL:
        raise DataError(
            f"{printable(file)} names {len(classes)} classes; 1 to 255 are needed: {FORMS}"
        )
    for i, row in enumerate(rows):
        if row in classes and any(row.name == other.name for other in rows[:i]):
            raise DataError(f"{row.at}: the class {row.name!r} is there twice")
        if row in classes and (row.colour is None) != (classes[0].colour is None):
            raise DataError(f"{row.at}: either every class has a colour or none, 'road 128 64 128'")
        if (row.number is None) != (rows[0].number is None):
            raise DataError(f"{row.at}: either every class has a number or none, '0: road'")
        if row.number is not None and row.number > IGNORE_LABEL:
            raise DataError(f"{row.at}: the number {row.number} is above 255")
        if row.number is not None and any(row.number == other.number for other in rows[:i]):
            raise DataError(f"{row.at}: the number {row.number} is taken by another line")
        if row.colour is not None and (
            max(row.colour) > 255 or any(row.colour == other.colour for other in rows[:i])
        ):
            raise DataError(
                f"{row.at}: the colour {row.colour} is above 255 or taken by another line"
            )


def _of_lines(file: pathlib.Path, lines: list[tuple[int, str]]) -> list[Row]:
    """Returns the classes of a text file."""
    lines = [(number, line) for number, line in lines if not line.startswith("#")]
    at = {number: f"{printable(file)}, line {number}" for number, _ in lines}
    if lines and all(CVAT.fullmatch(line) for _, line in lines):
        matches = [(at[number], CVAT.fullmatch(line)) for number, line in lines]
        return [Row(at, m["name"].strip(), None, _colour(at, m["colour"])) for at, m in matches]
    cells = {number: _cells(line) for number, line in lines}
    if len(lines) == 1 and len(row := cells[lines[0][0]]) > 1 and not any(map(_digits, row)):
        return [Row(at[lines[0][0]], name, None, None) for name in row]  # "sky,building"
    head: list[str] = []
    if lines:
        first = lines[0][0]
        words = cells[first] if len(cells[first]) > 1 else lines[0][1].split()
        if len(words) > 1 and all(word.lower() in COLUMNS for word in words):
            head = [COLUMNS[word.lower()] for word in words]
            lines = lines[1:]
    if head and "name" in head:
        return [_by_columns(at[n], head, cells[n], line) for n, line in lines]
    # "2 wheeler" has a number of a name; where all lines begin with one it is that of the class.
    numbered = all(re.match(r"\d+\s+\D", line) for _, line in lines)
    return [_row(at[n], cells[n], line, numbered=numbered) for n, line in lines]


def _cells(line: str) -> list[str]:
    """Returns the cells of a line that tabs, semicolons or commas divide; else the line."""
    for sign in "\t;,":
        if sign in line:
            found = next(csv.reader([line], delimiter=sign, skipinitialspace=True))
            cells = [cell.strip() for cell in found]
            while cells and not cells[-1]:
                cells.pop()
            return cells
    return [line.strip().strip('"')]


def _by_columns(at: str, head: list[str], cells: list[str], line: str) -> Row:
    if len(cells) == 1:
        cells = line.split()
    if len(cells) != len(head):
        raise DataError(f"{at}: {line!r} has {len(cells)} columns, the first line {len(head)}")
    values = dict(zip(head, cells))
    colour = values.get("colour")
    if {"r", "g", "b"} <= values.keys():
        colour = " ".join(values[channel] for channel in "rgb")
    number = values.get("number")
    if number is not None and not number.isdecimal():
        raise DataError(f"{at}: {number!r} is no number of a class")
    return Row(at, values["name"], None if number is None else int(number), _colour(at, colour))


def _row(at: str, cells: list[str], line: str, *, numbered: bool) -> Row:
    """Returns the class of a line: its numbers stand before or after the name."""
    single = len(cells) == 1
    if match := NUMBERED.fullmatch(line) if single else None:
        row = _row(at, _cells(match[2]), match[2], numbered=False)
        return row._replace(number=int(match[1]))
    words = cells[0].split() if single else [w for c in cells for w in _split(c)]
    left = right = 0
    while left < len(words) and _digits(words[left]):
        left += 1
    while right < len(words) - left and _digits(words[-1 - right]):
        right += 1
    name = " ".join(words[left : len(words) - right])
    hexes = [w for w in words if re.fullmatch(r"#[0-9a-fA-F]{6}", w)]
    if len(hexes) == 1 and not left + right:
        return Row(at, " ".join(w for w in words if w not in hexes), None, _colour(at, hexes[0]))
    if single and left == 1 and not numbered:  # "2 wheeler", "2 wheeler 0 0 255"
        name, left = f"{words[0]} {name}", 0
    if single and right == 1 and left in (0, 1):  # "class 1"
        name, right = f"{name} {words[-1]}", 0
    numbers = [int(w.strip("()[]")) for w in (*words[:left], *words[len(words) - right :])]
    if (
        not name
        or (not single and len(words) - left - right > 1)
        or (left, right) not in (*((0, 0), (3, 0), (0, 3), (1, 0), (0, 1), (4, 0), (1, 3)),)
    ):
        raise DataError(f"{at}: {line!r} is no class; written are {FORMS}")
    colour = tuple(numbers[-3:]) if len(numbers) >= 3 else None
    return Row(at, name, numbers[0] if len(numbers) in (1, 4) else None, colour)


def _split(cell: str) -> list[str]:
    """Returns the numbers of a cell like "128 64 128"; another cell is one name."""
    words = cell.split()
    return words if words and all(map(_digits, words)) else [cell]


def _digits(word: str) -> bool:
    digits = word.strip("()[]")
    return digits.isdecimal() and len(digits) < 19  # Python reads no number of thousands


def _colour(at: str, value: Any) -> Colour | None:
    """Returns the colour that a text or a list of numbers gives, None for nothing."""
    if value in (None, "", []):
        return None
    if isinstance(value, str) and re.fullmatch(r"#?[0-9a-fA-F]{6}", value):
        return tuple(bytes.fromhex(value.lstrip("#")))
    numbers = re.findall(r"[\d.]+", value) if isinstance(value, str) else value
    try:
        colour = tuple(int(str(number)) for number in numbers)
    except (ValueError, TypeError):
        colour = ()
    if len(colour) != 3 or min(colour) < 0:
        raise DataError(f"{at}: {value!r} is no colour; write '128 64 128' or '#804080'")
    return colour


def _of_json(file: pathlib.Path, content: str) -> Iterator[Row]:
    """Yields the classes of a JSON file: a list, or a dictionary by name or number."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{printable(file)} is no JSON: {error}") from error
    for name in ("classes", "categories", "labels", "names"):
        if isinstance(values, dict) and isinstance(values.get(name), list | dict):
            values = values[name]
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        at = f"{printable(file)}, {key}"
        if isinstance(value, dict):
            of = {COLUMNS.get(str(k).lower()): v for k, v in value.items()}
            name, number, colour = of.get("name"), of.get("number"), of.get("colour")
        elif isinstance(value, str) and isinstance(values, list):
            name, number, colour = value, None, None
        elif isinstance(value, str) and str(key).isdecimal():
            name, number, colour = value, int(key), None
        elif isinstance(value, int):
            name, number, colour = key, value, None
        else:
            name, number, colour = key, None, value
        if not isinstance(name, str) or not isinstance(number, int | None):
            raise DataError(f"{at}: {value!r} is no class; it has no name")
        yield Row(at, name.strip(), number, _colour(at, colour))
