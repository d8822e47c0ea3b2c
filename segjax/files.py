"""The one way in which segjax writes a file: whole, or not at all; and copies out of a bucket."""

import concurrent.futures
import contextlib
import fcntl
import io
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import Any, BinaryIO

from segjax import paths

THREADS = 16  # that copy


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name when it is complete, or not at all.

    It is written in the same folder under a name of its own, so several writers of one path do not
    disturb each other: the last one stays. Missing folders are made. In a bucket the file is held
    in memory and sent when it is complete; a bucket shows nothing of a file before its end.

    Args:
      path: of the file.

    Raises:
      ValueError: the file cannot be written, for example because the disk is full.
    """
    if paths.in_bucket(path):
        buffer = io.BytesIO()
        yield buffer
        with _written(path):
            paths.of(path).write_bytes(buffer.getvalue())
        return
    path = pathlib.Path(path)
    part = path.with_name(f".{secrets.token_hex(8)}.part")
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


def upload(file: pathlib.Path, path: pathlib.Path) -> None:
    """Copies a file of this machine, of any size, into a bucket.

    Raises:
      ValueError: it cannot be written there.
    """
    with _written(path):
        paths.gcs().put_file(os.fspath(file), os.fspath(path))


def fetch(path: pathlib.Path) -> pathlib.Path:
    """Returns a file of this machine: the path, or a copy in `paths.cached` of what is in a bucket.

    Raises:
      ValueError: the copy cannot be made.
    """
    if paths.in_bucket(path):
        with _read(path):
            _copy(path, paths.described(path))
    return paths.cached(path)


def mirror(folder: pathlib.Path, endings: tuple[str, ...] = ("",)) -> pathlib.Path:
    """Returns a folder of this machine with the files of one in a bucket, in `paths.cached`.

    Names, sizes and times are those of the bucket. What is there already is not copied again. A
    folder of this machine is returned as it is.

    Args:
      folder: of a data set.
      endings: of the files that are copied, in lower case; by default all. The others are
        placeholders of their size, which take no room on the disk and cannot be read.

    Raises:
      ValueError: the folder is empty or cannot be read, a name in it cannot be one of a file here,
        or the disk is full.
    """
    if not paths.in_bucket(folder):
        return folder
    place = paths.cached(folder)
    with _read(folder):
        found = paths.objects(folder)
    if not found:
        raise ValueError(f"{folder} does not exist, or holds nothing")
    for name in found:
        if {"", ".", ".."} & set(name.split("/")):
            raise ValueError(f"{folder} holds {name!r}, which cannot be the name of a file here")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with place.with_name(f".{place.name}.lock").open("w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            for path in place.rglob("*"):
                if not path.is_dir() and path.relative_to(place).as_posix() not in found:
                    path.unlink()

            def take(name: str) -> None:
                make = _copy if name.lower().endswith(endings) else _hold_place
                make(folder / name, found[name])

            with _read(folder), concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(take, found))
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be copied to {place}: {error.strerror or error}"
        ) from error
    return place


def _copy(path: pathlib.Path, about: paths.Object) -> None:
    """Copies a file out of a bucket, unless the copy is there."""
    place = paths.cached(path)
    if _is_of(place, about) and place.stat().st_mode & 0o777:
        return
    with path.open("rb") as source, whole_file(place) as file:
        shutil.copyfileobj(source, file, 2**20)
    os.utime(place, ns=(about.time, about.time))


def _hold_place(path: pathlib.Path, about: paths.Object) -> None:
    """Makes a file of the size and time of one in a bucket, without permissions or content."""
    place = paths.cached(path)
    if _is_of(place, about):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    with place.open("xb") as file:
        file.truncate(about.size)
    os.utime(place, ns=(about.time, about.time))
    place.chmod(0)


def _is_of(place: pathlib.Path, about: paths.Object) -> bool:
    if not place.exists():
        return False
    status = place.stat()
    return (status.st_size, status.st_mtime_ns) == (about.size, about.time)


@contextlib.contextmanager
def _written(path: pathlib.Path) -> Iterator[None]:
    """Turns what a bucket raises, which is of many types, into one error."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} cannot be written: {paths.why(error)}") from error


@contextlib.contextmanager
def _read(path: pathlib.Path) -> Iterator[None]:
    """The same for reading; what is wrong with the disk here stays as it is."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} cannot be read: {paths.why(error)}") from error
