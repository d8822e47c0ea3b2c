"""The one way in which segjax writes a file: whole, or not at all."""

import contextlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any, BinaryIO


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name when it is complete, or not at all.

    It is written beside its place under a name of its own, so several writers of one path do not
    disturb each other: the last one stays. Missing folders are made.

    Args:
      path: of the file.

    Raises:
      ValueError: the file cannot be written, for example because the disk is full.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes bytes by `whole_file`."""
    with whole_file(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes text in UTF-8 by `whole_file`."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Writes JSON values by `whole_file`."""
    write_text(path, json.dumps(values, indent=1) + "\n")
