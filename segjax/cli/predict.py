"""segjax predict: the label maps of pictures."""

import argparse
import collections
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

from segjax.cli import arguments as shared

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
AHEAD = 4  # pictures read while one is predicted
FAILED = 1  # exit code

EXAMPLES = """\
  segjax predict runs/a street.jpg photos/ --out labels --overlay
  segjax predict runs/deeplab JPEGImages/ --protocol deeplab_v3 --crf --submission voc
"""


def main(argv: Sequence[str]) -> int:
    """Writes label maps of pictures; unreadable ones are reported at the end.

    Returns:
      0, or 1 where some pictures could not be read.
    """
    arguments = parser().parse_args(shared.with_names(argv))
    import warnings

    import segjax
    from segjax import log
    from segjax.predict import crf_choice, label_files, protocols
    from segjax.predict import images as inputs
    from segjax.report import pictures

    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a file is told at the end
    protocol = protocols.find(arguments.protocol)
    jobs = _jobs(arguments.images)
    seg = segjax.load(arguments.run_folder, step=arguments.step)
    kernels = crf_choice.choose(arguments.crf, protocol, seg.config.model, seg.crfs)
    out = pathlib.Path(arguments.out).expanduser()
    write = label_files.writer(arguments.submission, out, seg.classes, seg.palette)
    failed: list[str] = []
    with log.progress() as bar:
        task = bar.add_task("predict", total=len(jobs), text="")

        def readable() -> Iterator[tuple[str, Any]]:
            for name, found in _ahead(inputs.read, jobs):
                try:
                    yield name, found.result()
                except ValueError as error:
                    failed.append(str(error))
                    bar.advance(task)

        for chunk in _chunks(readable(), seg.batch_size):
            predictions = seg([image for _, image in chunk], protocol=protocol, crf=kernels)
            for (name, _), prediction in zip(chunk, predictions, strict=True):
                write(name, prediction.labels)
                if arguments.overlay:
                    pictures.write(out / f"{name}_overlay.png", prediction.overlay())
                bar.advance(task)
    written = len(jobs) - len(failed)
    print(f"{written} label map{'' if written == 1 else 's'} in {out}")
    if failed:
        lines = "\n  ".join(failed)
        print(f"skipped {len(failed)} of {len(jobs)}:\n  {lines}", file=sys.stderr)
    return FAILED if failed else 0


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = shared.parser("predict", EXAMPLES)
    shared.run(parser, " or of converted weights")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE_OR_FOLDER", help="folders are searched for pictures"
    )
    parser.add_argument("--out", default="predictions", help="folder [predictions]")
    shared.crf(parser)
    shared.protocol(parser)
    parser.add_argument(
        "--overlay", action="store_true", help="also write each picture under its classes' colours"
    )
    shared.step(parser)
    parser.add_argument(
        "--submission",
        default="",
        choices=("voc", "cityscapes"),
        help="name and number the label maps as that test server wants them",
    )
    return parser


def _jobs(given: Sequence[str]) -> dict[str, pathlib.Path]:
    """Returns the pictures by the names of their label maps, without ending.

    A picture found in a folder keeps its path below that folder.

    Raises:
      ValueError: there is no such file, no picture in a folder, or two would have one name.
    """
    jobs: dict[str, pathlib.Path] = {}
    for text in given:
        path = pathlib.Path(text).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES)
            found = [p for p in found if not any(part.startswith(".") for part in _below(p, path))]
            if not found:
                raise ValueError(f"{text} holds no pictures; endings are {', '.join(IMAGES)}")
            named = {p: "/".join(_below(p.with_suffix(""), path)) for p in found}
        elif path.exists():
            named = {path: path.stem}
        else:
            raise ValueError(f"{text} does not exist")
        for picture, name in named.items():
            if name in jobs:
                raise ValueError(
                    f"{jobs[name]} and {picture} would both become {name}.png; give them in two "
                    "commands with another --out each"
                )
            jobs[name] = picture
    return jobs


def _below(path: pathlib.Path, folder: pathlib.Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts


def _ahead(
    read: Callable[[pathlib.Path], Any], jobs: dict[str, pathlib.Path]
) -> Iterator[tuple[str, futures.Future]]:
    """Yields each picture's future, while a few more are read."""
    with futures.ThreadPoolExecutor(AHEAD) as pool:
        waiting: collections.deque[tuple[str, futures.Future]] = collections.deque()
        for name, path in jobs.items():
            waiting.append((name, pool.submit(read, path)))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
