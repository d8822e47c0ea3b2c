"""Paths that a user names: of this machine, or in a bucket of Google Cloud Storage.

A path of this machine is a `pathlib.Path`. One in a bucket, gs://BUCKET/FOLDER, is a path of etils
with the same methods, over gcsfs. Nothing is remembered of what a bucket was seen to hold: other
hosts write there, and Orbax and ArrayRecord go there by ways of their own.
"""

import base64
import contextlib
import functools
import logging
import os
import pathlib
import re
import sys
import threading
from typing import Any, NamedTuple

GCS = "gs://"
LOGIN = (
    "log in by `gcloud auth application-default login`, or name the key of a service account, "
    "GOOGLE_APPLICATION_CREDENTIALS=FILE"
)

SLOW = 3.0  # seconds after which it is said that a bucket has not answered yet

# etils takes TensorFlow for buckets where it happens to be installed; it asks once, at the first
# path of anyone.
os.environ["EPATH_USE_TF"] = "false"

_NOT_HERE = re.compile(r"gs:/+|\w+://")  # pathlib makes gs:/BUCKET of gs://BUCKET
_reached: set[str] = set()  # buckets that could be listed


class Object(NamedTuple):
    """A file in a bucket."""

    size: int  # bytes
    time: int  # when it was written, nanoseconds since 1970
    md5: str  # of its bytes, hexadecimal; "" where the bucket does not know it


def of(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path that a user names; "~" and "~name", where there is such a home, in full.

    Args:
      path: of this machine, or gs://BUCKET/...

    Raises:
      ValueError: it is of another kind, or in a bucket and with a part that is empty, . or ..; or
        its bucket, which is asked when it is first named, does not exist or cannot be read.
    """
    text = os.fspath(path)
    kind = _NOT_HERE.match(text)
    if kind is None:
        with contextlib.suppress(RuntimeError):  # a file ~name, and no home
            return pathlib.Path(text).expanduser()
        return pathlib.Path(text)
    name = text[kind.end() :].rstrip("/")
    if not kind[0].startswith("gs:") or not name:
        raise ValueError(f"{text}: accepted are paths of this machine, and gs://BUCKET/FOLDER")
    if {"", ".", ".."} & set(name.split("/")):  # a bucket takes them for names, a disk does not
        raise ValueError(f"{text}: no part of an address in a bucket may be empty, . or ..")
    _reach(name)
    from etils import epath

    return epath.Path(GCS + name)


def absolute(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns `of` it, from the root on."""
    path = of(path)
    return path if in_bucket(path) else path.absolute()


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith("gs:/")


def local(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """Returns a path that must be of this machine; raises ValueError for any other.

    Args:
      path: as a user names it.
      what: names it in the error: "--out".
    """
    if _NOT_HERE.match(os.fspath(path)):
        raise ValueError(f"{what} is {os.fspath(path)}: it must be on a disk of this machine")
    return of(path)


def cached(path: pathlib.Path, kind: str = "buckets") -> pathlib.Path:
    """Returns the place on this machine for what belongs to a path in a bucket, below
    ~/.cache/segjax; a path of this machine is its own.

    Args:
      path: any.
      kind: "buckets" for copies, other folders for what is not in the bucket.
    """
    if not in_bucket(path):
        return path
    home = local(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME")
    return home / "segjax" / kind / os.fspath(path).removeprefix(GCS)


def objects(folder: pathlib.Path) -> dict[str, Object]:
    """Returns all files below a folder in a bucket by their path in it, sorted; none where there
    is no such folder."""
    start = os.fspath(folder).removeprefix(GCS) + "/"
    found = gcs().find(start, detail=True)
    names = {name.removeprefix(start): about for name, about in sorted(found.items())}
    return {name: _object(about) for name, about in names.items() if not name.endswith("/")}


def described(file: pathlib.Path) -> Object:
    """Returns what a bucket says of one file; raises FileNotFoundError where there is none."""
    return _object(gcs().info(os.fspath(file)))


def modified(file: pathlib.Path) -> int:
    """Returns when a file was written, nanoseconds since 1970."""
    return described(file).time if in_bucket(file) else file.stat().st_mtime_ns


@functools.cache
def gcs() -> Any:
    """Returns the file system of all buckets, the same that etils uses.

    Raises:
      ValueError: gcsfs is not installed.
    """
    # Another protocol besides, which buckets of one zone need and all others do without.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import gcsfs  # noqa: F401, fsspec finds it by its name
    except ImportError as error:
        raise ValueError(f"{GCS} needs gcsfs: pip install '.[gcs]' ({error})") from error
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints what it raises, too
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gcs", finalize_on_close=True)


def why(error: Exception) -> str:
    """Returns what to tell of an error of a bucket, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket, or nothing of that name in it"
    if getattr(error, "code", None) in (401, 403) or lines[0].startswith("Forbidden"):
        return f"these credentials may not do it ({lines[-1]}); {LOGIN}"
    return f"{type(error).__name__}: {lines[0]}"


def _reach(name: str) -> None:
    """Raises ValueError unless what is in a bucket, name "BUCKET/FOLDER", can be listed."""
    bucket, _, prefix = name.partition("/")
    if bucket in _reached:
        return
    key = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if key and not os.path.isfile(key):
        raise ValueError(f"GOOGLE_APPLICATION_CREDENTIALS={key}: there is no such file; {LOGIN}")
    files = gcs()
    line = f"waiting for {GCS}{bucket}, which does not answer yet"
    slow = threading.Timer(SLOW, print, [line], {"file": sys.stderr})
    slow.start()
    try:
        files.call("GET", "b/{}/o", bucket, prefix=prefix, maxResults=1)
    except Exception as error:  # of gcsfs, aiohttp and google.auth
        raise ValueError(f"{GCS}{name} cannot be read: {why(error)}") from error
    finally:
        slow.cancel()
    _reached.add(bucket)


def _object(about: dict[str, Any]) -> Object:
    time = round(about["mtime"].timestamp() * 1e6) * 1000  # the bucket tells microseconds
    return Object(about["size"], time, base64.b64decode(about.get("md5Hash", "")).hex())
