"""The one reader of text files: lists of images, class lists."""

import codecs
import csv
import json
import pathlib
import re
from typing import NamedTuple

from segjax.data.images import DataError

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Line(NamedTuple):
    """A line of a text file that says something."""

    number: int  # from 1 on, as editors count
    text: str  # without blanks around it


def read_text(file: pathlib.Path) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
      DataError: the file cannot be read, or is in another encoding.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    encoding = next((name for mark, name in BOMS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        hint = "UTF-16 without a mark" if b"\0" in content else "Latin-1 or Windows-1252"
        raise DataError(
            f"{file}, line {line}: byte {content[error.start]:#04x} is no UTF-8; the file is "
            f"probably {hint}. Save it as UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{file} holds zero bytes: it is no text, or UTF-16 without a mark")
    return text


def read_lines(file: pathlib.Path) -> list[Line]:
    """Returns the lines of a text file that are neither empty nor comments, `#` and after.

    Raises:
      DataError: as `read_text`.
    """
    lines = [
        Line(number, line.strip())
        for number, line in enumerate(re.split(r"\r\n|\r|\n", read_text(file)), start=1)
    ]
    return [line for line in lines if line.text and not line.text.startswith("#")]


def columns(line: str) -> list[str]:
    """Returns the one or two paths of a line of a list: parted by a tab, a comma, or blanks.

    A name may hold blanks where it is quoted, or where a tab or a comma parts the columns.
    """
    for delimiter in ("\t", ",", ";"):
        if delimiter in line:
            row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
            return [word.strip() for word in row if word.strip()]
    if line.startswith(('"', "'")):
        return [
            word
            for pair in re.findall(r"\"([^\"]*)\"|'([^']*)'|(\S+)", line)
            for word in pair
            if word
        ]
    return line.split()


class ClassLine(NamedTuple):
    """A class of a list: where it stands, its name, and its colour where there is one."""

    number: int
    name: str
    colour: tuple[int, int, int] | None


def read_class_list(file: pathlib.Path) -> list[ClassLine]:
    """Reads the class lists that people have.

    - a name a line, with a colour after it or before it: `road 128 64 128`, `128 64 128<tab>road`,
      `road,128,64,128`, the columns of a CSV file with a header `name,r,g,b`
    - CVAT's labelmap.txt, `# label:color_rgb:parts:actions` and `road:128,64,128::`
    - a JSON list of names, or of objects with "name" and "color"

    Raises:
      DataError: a line is none of these; the message has file and line.
    """
    if file.suffix.lower() == ".json" or read_text(file).lstrip().startswith("["):
        return _from_json(file)
    found = []
    for number, text in read_lines(file):
        if _is_header(text):
            continue
        found.append(_class_of(file, number, text))
    return found


def _is_header(text: str) -> bool:
    words = re.split(r"[\s,;:]+", text.strip().lower())
    return {"r", "g", "b"} <= set(words) or {"red", "green", "blue"} <= set(words)


def _class_of(file: pathlib.Path, number: int, text: str) -> ClassLine:
    cvat = re.fullmatch(r"([^:]+):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:.*)?", text)
    if cvat:
        name, colour = cvat[1].strip(), cvat.group(2, 3, 4)
    else:
        after = re.fullmatch(r"(.*?)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)", text)
        before = re.fullmatch(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(.*)", text)
        if after:
            name, colour = after[1].strip(), after.group(2, 3, 4)
        elif before:
            name, colour = before[4].strip(), before.group(1, 2, 3)
        else:
            name, colour = text, None
    name = name.strip().strip("\"'").strip()
    rgb = None if colour is None else tuple(map(int, colour))
    at = f"{file}, line {number}: "
    if not name or (rgb and max(rgb) > 255):
        raise DataError(f"{at}{text!r} is no class; write a name, or a name and a colour of 0..255")
    if re.fullmatch(r"[\d\s,;:]+", name) or "," in name or ";" in name or ":" in name:
        raise DataError(
            f"{at}{text!r} is no class: write the name alone, 'road', or with its colour, "
            "'road 128 64 128'"
        )
    return ClassLine(number, name, rgb)


def _from_json(file: pathlib.Path) -> list[ClassLine]:
    try:
        values = json.loads(read_text(file))
    except ValueError as error:
        raise DataError(f"{file} is no JSON: {error}") from error
    found = []
    for number, value in enumerate(values if isinstance(values, list) else [], start=1):
        name = value.get("name") if isinstance(value, dict) else value
        colour = value.get("color") if isinstance(value, dict) else None
        if isinstance(colour, list) and len(colour) == 3 and all(type(c) is int for c in colour):
            colour = tuple(colour)
        elif colour is not None:
            raise DataError(f"{file}, entry {number}: color is {colour!r}; write [128, 64, 128]")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{file}, entry {number}: {value!r} is no class; a name is needed")
        found.append(ClassLine(number, name.strip(), colour))
    if not found:
        raise DataError(f'{file} is no list of classes; write ["background", "road"]')
    return found
