"""The one walk of a folder, and what to say where a file is not there."""

import difflib
import os
import pathlib
import unicodedata
from collections.abc import Iterable

from segjax.data.images import DataError

# Endings of the pictures that a walk finds; a picture given by its own name may have any.
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")

# What systems and programs leave in folders, besides names that begin with a dot.
SYSTEM = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
}
SHOWN = 3  # names in one line of text


class Walk:
    """The files below a folder with one of some endings, in upper case or lower, sorted by path.

    Links are followed; one that leads back to a folder it lies in is not. Hidden files, and what
    systems leave behind, are skipped. A broken link with one of the endings is among the files, so
    that reading it names it.

    Attributes:
        folder: where it began.
        files: what was found.
    """

    def __init__(
        self, folder: pathlib.Path, endings: Iterable[str] = IMAGES, *, deep: bool = True
    ) -> None:
        """Walks through a folder; one that is not there has no files.

        Args:
            folder: where to begin.
            endings: accepted ones, in lower case.
            deep: also look into the folders below.

        Raises:
            DataError: a folder cannot be read, or a link that may be one is broken.
        """
        self.folder, self._endings, self._deep = folder, tuple(endings), deep
        self.files: list[pathlib.Path] = []
        self._skipped: dict[str, list[pathlib.Path]] = {}
        if folder.is_dir():
            start = folder.resolve()
            self._enter(folder, frozenset(map(_identity, (start, *start.parents))))
        self.files.sort(key=lambda path: path.relative_to(folder).as_posix())

    @property
    def skipped(self) -> list[str]:
        """Sentences on what lies there and is not among the files, one for each reason."""
        return [
            f"{printable(self.folder)}: skipped {len(paths)} {reason} "
            f"({some(path.relative_to(self.folder) for path in paths)})"
            for reason, paths in self._skipped.items()
        ]

    def by_stem(self, suffix: str = "") -> dict[str, pathlib.Path]:
        """Returns the files by their `key`, those alone whose names end in a suffix.

        Raises:
            DataError: two files have the same; the message names both.
        """
        found: dict[str, pathlib.Path] = {}
        for path in self.files:
            if not path.stem.endswith(suffix):
                continue
            name = key(path, self.folder, suffix)
            if other := found.get(name):
                raise DataError(
                    f"{printable(other)} and {printable(path.name)} are both called "
                    f"{printable(name)}: which one is meant? Keep one"
                )
            found[name] = path
        return found

    def _enter(self, folder: pathlib.Path, above: frozenset[tuple[int, int]]) -> None:
        for path in _entries(folder):
            if is_hidden(path.name):
                self._skip("hidden or of the system", path)
            elif path.is_dir():
                same = _identity(path)
                if same in above:
                    self._skip("links back to a folder that they lie in", path)
                elif self._deep:
                    self._enter(path, above | {same})
            elif path.suffix.lower() in self._endings:
                if path.is_file() or path.is_symlink():
                    self.files.append(path)
                else:
                    self._skip("that are no ordinary files", path)
            elif path.is_symlink() and not path.exists() and not path.suffix:
                raise DataError(
                    f"{printable(path)} is a link to {os.readlink(path)}, which is not there; mend "
                    "or remove it"
                )

    def _skip(self, reason: str, path: pathlib.Path) -> None:
        self._skipped.setdefault(reason, []).append(path)


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in a folder, links to folders too, sorted; hidden ones are left out."""
    return [p for p in _entries(folder) if p.is_dir() and not is_hidden(p.name)]


def subfiles(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files in a folder, sorted."""
    return [p for p in _entries(folder) if p.is_file()]


def names(folder: pathlib.Path) -> list[str]:
    """Returns the names of what lies in a folder, sorted, folders with a slash; no hidden ones."""
    found = [p for p in _entries(folder) if not is_hidden(p.name)]
    return [printable(p.name) + "/" * p.is_dir() for p in found]


def is_hidden(name: str) -> bool:
    """Whether a name is that of a hidden file, or of one that systems leave behind."""
    return name.startswith((".", "~$")) or name.lower() in SYSTEM


def key(path: pathlib.Path, folder: pathlib.Path, suffix: str = "") -> str:
    """Returns the key that pairs an image with its mask: the path below a folder, without endings.

    Letters with accents are composed, since systems write them in two ways.

    Args:
        path: of a file.
        folder: that it lies in, or below.
        suffix: of the name, before the ending, that is left out: "_mask".
    """
    text = path.relative_to(folder).with_suffix("").as_posix()
    return composed(text.removesuffix(suffix))


def composed(text: str) -> str:
    """Returns a name with composed letters (Unicode NFC)."""
    return unicodedata.normalize("NFC", text)


def near_miss(path: pathlib.Path) -> str:
    """Says why a file is not there, or which one was probably meant; "" where nothing is near."""
    if os.path.islink(path):  # which takes names that no system can have
        return f"it is a link to {os.readlink(path)}, which is not there"
    if os.path.exists(path) and not path.is_file():
        return "a folder, or no ordinary file, has that name"
    if not os.path.isdir(path.parent):
        above = near_miss(path.parent) if path.parent != path.parent.parent else ""
        return above or f"{printable(path.parent)} is no folder"
    there = [p.name for p in _entries(path.parent)]
    for name_of, wanted in (
        (str, path.name),
        (lambda name: pathlib.PurePath(name).stem, path.stem),
        (lambda name: pathlib.PurePath(name).stem, path.name),
        (str, path.stem),
    ):
        for name in there:
            if _plain(name_of(name)) == _plain(wanted):
                return f"{printable(name)} is there"
    close = difflib.get_close_matches(path.name, there, 1, 0.85)
    return f"{printable(close[0])} is there" if close else ""


def in_brackets(near: str) -> str:
    """Returns what `near_miss` says as a part of a sentence, with a blank before it, or ""."""
    return f" ({near})" if near else ""


def printable(path: pathlib.PurePath | str) -> str:
    """Returns a path as text that can be printed and stored; bytes that are no UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def some(paths: Iterable[pathlib.PurePath | str]) -> str:
    """Returns the first few of many names: "a.png, b.png, c.png, ..."."""
    texts = [printable(p if isinstance(p, str) else p.as_posix()) for p in paths]
    return ", ".join(texts[:SHOWN]) + ", ..." * (len(texts) > SHOWN)


def _plain(name: str) -> str:
    """Returns a name without what people overlook: case, blanks, the form of accents."""
    return "".join(composed(name).casefold().split())


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be read: {error.strerror}") from error


def _identity(path: pathlib.Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
