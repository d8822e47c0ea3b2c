"""The one reader of text files: lists of images, and lists of classes."""

import pathlib
import re

from segjax.data.folders import printable
from segjax.data.images import DataError

MARKS = (  # byte order marks; that of UTF-32 begins with that of UTF-16
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)


def read_text(file: pathlib.Path, *, file_names: bool = False) -> str:
    """Returns the text of a file: UTF-8, or UTF-16 or UTF-32 as Windows writes it.

    Args:
        file: to read.
        file_names: the text holds names of files, whose bytes need not be UTF-8; other bytes are
            kept as `os.fsdecode` keeps them.

    Raises:
        DataError: the file cannot be read, or has another encoding; the message has file and line.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(file)} cannot be read: {error.strerror}") from error
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), None)
    if encoding is None:
        # Without a mark: of letters in UTF-16 every other byte is zero.
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be" if data[:1] == b"\0" else None
    kept = "surrogateescape" if file_names and encoding is None else "strict"
    try:
        text = data.decode(encoding or "utf-8", kept)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        words = data.splitlines()[line - 1 : line] or [b""]
        raise DataError(
            f"{printable(file)}, line {line}: {words[0].decode('ascii', 'backslashreplace')!r} is "
            "not UTF-8; save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{printable(file)} is no text: it holds the character 0")
    return text.replace("\ufeff", "").rstrip("\x1a")  # marks between joined files; the end of DOS


def read_lines(file: pathlib.Path, *, file_names: bool = False) -> list[tuple[int, str]]:
    """Returns the numbers of the lines that hold something, from 1, and their text, stripped.

    Args:
        file: to read.
        file_names: as for `read_text`.

    Raises:
        DataError: as by `read_text`.
    """
    lines = enumerate(re.split(r"\r\n|\r|\n", read_text(file, file_names=file_names)), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]
