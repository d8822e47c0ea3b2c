"""The one walk of a folder, and what to say where a file is not there."""

import difflib
import os
import pathlib
import unicodedata
from collections.abc import Collection, Sequence

from segjax.data.images import DataError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
SYSTEM = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"}  # in small letters
SHOWN = 5  # names that a message lists


class Walk:
    """The files below a folder with one of some endings, in whatever case, sorted by path.

    Links are followed, but not back into a folder that they lie in. Hidden files and those of
    operating systems and tools are skipped: a leading dot, `._x`, `.ipynb_checkpoints`, Thumbs.db.

    Attributes:
      files: what was found.
      skipped: sentences on what lies there and is not among the files, for people.
    """

    def __init__(self, folder: pathlib.Path, endings: Collection[str] = IMAGES) -> None:
        """Walks through a folder; one that is not there has no files."""
        self.folder, self._endings = folder, tuple(endings)
        self.files: list[pathlib.Path] = []
        self._hidden: list[pathlib.Path] = []
        self._broken: list[pathlib.Path] = []
        self._loops: list[pathlib.Path] = []
        self._enter(folder, ())
        self.files.sort(key=lambda path: path.relative_to(folder).as_posix())

    @property
    def skipped(self) -> list[str]:
        """One sentence for each reason that files were skipped for."""
        reasons = {
            "hidden or of the system": self._hidden,
            "links to nothing": self._broken,
            "links back to a folder that they lie in": self._loops,
        }
        return [
            f"{self.folder}: skipped {len(paths)} {reason} ({self._names(paths)})"
            for reason, paths in reasons.items()
            if paths
        ]

    def by_stem(self) -> dict[str, pathlib.Path]:
        """Returns the files by their path below the folder without its ending.

        Raises:
          DataError: two files have one.
        """
        found: dict[str, pathlib.Path] = {}
        for path in self.files:
            stem = path.relative_to(self.folder).with_suffix("").as_posix()
            if other := found.get(stem):
                raise DataError(
                    f"{other} and {path.name} are both called {stem}: which one is meant? Keep one"
                )
            found[stem] = path
        return found

    def _enter(self, folder: pathlib.Path, above: tuple[str, ...]) -> None:
        real = os.path.realpath(folder)
        if real in above:
            self._loops.append(folder)
            return
        if not folder.is_dir():
            return
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            path = folder / entry.name
            if _is_hidden(entry.name):
                self._hidden.append(path)
            elif entry.is_dir():
                self._enter(path, (*above, real))
            elif entry.name.lower().endswith(self._endings):
                (self.files if path.exists() else self._broken).append(path)

    def _names(self, paths: Sequence[pathlib.Path]) -> str:
        names = [printable(path.relative_to(self.folder).as_posix()) for path in paths[:SHOWN]]
        return ", ".join(names) + (", ..." if len(paths) > SHOWN else "")


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in a folder that people put there, sorted."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name))


def near_miss(path: pathlib.Path) -> str:
    """Says why a file is not there, or which one was probably meant; "" where nothing is near."""
    if path.is_symlink():
        return f"it is a link to {os.readlink(path)}, which is not there"
    folder = path.parent
    if not folder.is_dir():
        return f"{folder} is no folder"
    names = sorted(entry.name for entry in os.scandir(folder))
    same = [n for n in names if _plain(n) == _plain(path.name)]
    stem = [n for n in names if _plain(pathlib.PurePath(n).stem) == _plain(path.stem)]
    whole = [n for n in names if _plain(path.name) == _plain(pathlib.PurePath(n).stem)]
    whole += [n for n in names if _plain(path.stem) == _plain(n)]
    close = difflib.get_close_matches(path.name, names, 1, 0.85)
    found = same or stem or whole or close
    return f"{printable(found[0])} is there" if found else ""


def printable(name: str) -> str:
    """Returns a file name as text that every console takes; bytes that are no UTF-8 as escapes."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def _plain(name: str) -> str:
    """A name without what people overlook: case, blanks around it, composed accents."""
    return unicodedata.normalize("NFC", name).strip().lower()
