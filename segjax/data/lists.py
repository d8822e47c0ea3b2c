"""Lists of images, as people write them: a name, a path, or image and mask on a line."""

import csv
import os
import pathlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping

from segjax.data import text
from segjax.data.examples import Pair
from segjax.data.folders import composed, key, printable
from segjax.data.images import DataError

HEAD = re.compile(r"(image|img|file|mask|label|annotation|seg|gt|id|name|path)[a-z_ ]*", re.I)


class Index:
    """Finds files by what a line of a list may call them.

    Args:
        files: that a line may mean.
        folder: they lie in; lines may be paths from there or from `root`.
        root: of the data set.
        ending: of a file that is expected but not there.
        suffix: of the names, that a line may leave out.
    """

    def __init__(
        self,
        files: Iterable[pathlib.Path],
        folder: pathlib.Path,
        root: pathlib.Path,
        ending: str,
        suffix: str = "",
    ) -> None:
        self.folder, self.root, self.ending = folder, root, ending
        self._by_name: dict[str, pathlib.Path] = {}
        for path in files:
            for start in (folder, root):
                name = composed(path.relative_to(start).as_posix())
                for form in (name, key(path, start), key(path, start, suffix)):
                    self._by_name.setdefault(form, path)

    def find(self, name: str) -> pathlib.Path | None:
        """Returns the file that a name means, or None."""
        name = self._clean(name)
        if path := self._by_name.get(composed(name)):
            return path
        inside = name and name.split("/")[0] != ".."
        return self.root / name if inside and os.path.isfile(self.root / name) else None

    def expect(self, name: str) -> pathlib.Path:
        """Returns where the file of a name would be."""
        name = self._clean(name)
        below = self.folder.relative_to(self.root).as_posix() + "/"
        path = self.root / name if name.startswith(below) else self.folder / name
        return path if path.suffix else path.with_name(path.name + self.ending)

    def _clean(self, name: str) -> str:
        name = name.strip().strip("\"'").replace("\\", "/")
        name = name.removeprefix(self.root.as_posix() + "/")
        return posixpath.normpath(name.lstrip("/")) if name.strip("/") else ""


def read_list(
    file: pathlib.Path, images: Index, masks: Index, mask_of: Mapping[str, pathlib.Path]
) -> list[Pair]:
    """Returns the pairs that a list names.

    A line is the name or the path of an image, with or without its ending, alone or with the path
    of its mask after blanks, a tab, a comma or a semicolon. Names may be quoted, and hold blanks.

    Args:
        file: the list.
        images: that a line may name.
        masks: that a line may name.
        mask_of: the mask of an image by its key, where the line names none.

    Raises:
        DataError: the list is empty, names an image twice, or a file outside the data set.
    """
    pairs: list[Pair] = []
    lines: dict[pathlib.Path, int] = {}
    for number, line in text.read_lines(file, file_names=True):
        at = f"{printable(file)}, line {number}"
        image, mask = _resolve(line, images, masks)
        if image is None:
            if line.startswith("#") or (number == 1 and all(map(HEAD.fullmatch, _words(line)))):
                continue
            image, mask = _expected(at, line, images, masks)
        if image in lines:
            raise DataError(
                f"{at}: {printable(image)} is there already, in line {lines[image]}; remove one"
            )
        lines[image] = number
        name = _key(image, images)
        if mask is None:
            mask = mask_of.get(name, masks.folder / f"{name}{masks.ending}")
        pairs.append(Pair(printable(name), image, mask, f"{file.name}, line {number}"))
    if not pairs:
        raise DataError(f"{printable(file)} is empty; it has to name an image a line")
    return pairs


def _resolve(
    line: str, images: Index, masks: Index
) -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """Returns the files that exist under the names of a line."""
    if path := images.find(line):
        return path, None
    for left, right in _halves(line):
        image, mask = images.find(left), masks.find(right)
        if image and mask:
            return image, mask
    return None, None


def _halves(line: str) -> Iterator[tuple[str, str]]:
    """Yields the ways in which a line can be two names."""
    for sign in "\t,;":
        cells = next(csv.reader([line], delimiter=sign, skipinitialspace=True))
        if len(cells) == 2:
            yield cells[0], cells[1]
    if match := re.fullmatch(r"(\"[^\"]+\"|'[^']+')\s+(.+)|(.+?)\s+(\"[^\"]+\"|'[^']+')", line):
        left, right = [group for group in match.groups() if group]
        yield left, right
    for blank in re.finditer(r"\s+", line):
        yield line[: blank.start()], line[blank.end() :]


def _expected(
    at: str, line: str, images: Index, masks: Index
) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Returns where the files of a line would be, one of which is not there.

    Raises:
        DataError: that would be outside the data set.
    """
    halves = [h for h in _halves(line) if images.find(h[0]) or masks.find(h[1])]
    words = _words(line)
    if not halves and len(words) == 2 and all(pathlib.PurePath(w).suffix for w in words):
        halves = [(words[0], words[1])]
    names = halves[0] if halves else (line,)
    for name in names:
        inside = posixpath.normpath(name.strip("\"' ").replace("\\", "/"))
        if inside.split("/")[0] == ".." or (
            os.path.isabs(inside)
            and pathlib.Path(inside).parents[-2:-1] != ()
            and os.path.exists(inside)
        ):
            raise DataError(
                f"{at}: {printable(name)} leaves {printable(images.root)}; paths of a list are "
                "below the folder of the data set (a link in it may lead elsewhere)"
            )
    found = images.find(names[0]) or images.expect(names[0])
    if len(names) == 1:
        return found, None
    return found, masks.find(names[1]) or masks.expect(names[1])


def _words(line: str) -> list[str]:
    return [word.strip("\"'") for word in re.split(r"[\s,;]+", line) if word]


def _key(image: pathlib.Path, images: Index) -> str:
    below = image.is_relative_to(images.folder)
    return key(image, images.folder if below else images.root)
