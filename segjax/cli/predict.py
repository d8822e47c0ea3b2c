"""segjax predict: the label maps of pictures."""

import argparse
import collections
import csv
import io
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from segjax import paths
from segjax.cli import arguments as shared

AHEAD = 4  # pictures read while one is predicted
FAILED = 1  # exit code
SHARES = "shares.csv"  # in the folder of the outputs
LEVELS = 40  # of names, from the shortest to one with many folders

EXAMPLES = """\
  segjax predict runs/a street.jpg photos/ --out labels --overlay
  segjax predict runs/a photos/ --crf --probs
  segjax predict runs/deeplab JPEGImages/ --protocol deeplab_v3 --crf --submission voc

files in --out, for photos/day/a.jpg in a given folder photos/:
  day/a.png          class ids, in the colours of the classes
  day/a_overlay.png  with --overlay: the picture under these colours
  day/a.npz          with --probs: "probs", float16 [H, W, C], and "classes"
  shares.csv         of every picture: its label map, and the share of each class
A picture given by itself has no subfolder. Two pictures that would have one name keep their
endings, a.jpg.png and a.png.png, or stand in folders of the names of theirs, left/a.png and
right/a.png. Files that segjax predict did not write are not replaced.
"""


class Job(NamedTuple):
    """A picture and the files to be written for it."""

    name: str  # id
    picture: pathlib.Path
    label_map: pathlib.Path
    overlay: pathlib.Path | None
    probs: pathlib.Path | None

    def outputs(self) -> list[pathlib.Path]:
        """The files that are written."""
        return [path for path in self[2:] if path is not None]


def main(argv: Sequence[str]) -> int:
    """Writes label maps of pictures; unreadable ones are reported at the end.

    Returns:
      0, or 1 where some pictures could not be read.
    """
    arguments = parser().parse_args(shared.with_names(argv))
    out = paths.local(arguments.out, "--out")
    jobs = plan(arguments, out)
    import warnings

    import segjax
    from segjax import files, log
    from segjax.predict import crf_choice, label_files, protocols
    from segjax.predict.images import read

    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a file is told at the end
    protocol = protocols.find(arguments.protocol)
    seg = segjax.load(arguments.run_folder, step=arguments.step)
    kernels = crf_choice.choose(arguments.crf, protocol, seg.config.model, seg.crfs)
    write = label_files.writer(arguments.submission, out, seg.classes, seg.palette)
    failed: list[str] = []
    rows = []
    with log.progress() as bar:
        task = bar.add_task("predict", total=len(jobs), text="")

        def readable() -> Iterator[tuple[Job, Any]]:
            for job, found in _ahead(read, jobs):
                try:
                    yield job, found.result()
                except ValueError as error:
                    failed.append(str(error))
                    bar.advance(task)

        found = readable()
        while chunk := list(itertools.islice(found, seg.batch_size)):
            images = [image for _, image in chunk]
            predictions = seg(images, protocol=protocol, crf=kernels, probs=arguments.probs)
            for (job, _), prediction in zip(chunk, predictions, strict=True):
                write(job.name, prediction.labels)
                if job.overlay:
                    label_files.save_picture(
                        job.overlay, prediction.overlay(arguments.alpha, legend=True)
                    )
                if job.probs:
                    label_files.save_probs(job.probs, prediction.probs, seg.classes)
                rows.append((job, prediction.shares))
                bar.advance(task)
    if rows and not arguments.submission:
        files.write_text(out / SHARES, _table(rows, seg.classes))
    print(f"{len(rows)} label map{'' if len(rows) == 1 else 's'} in {out}")
    if rows:
        first = rows[0][0]
        print(f"look at {first.overlay or first.label_map}")
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
        "--overlay",
        action="store_true",
        help="also write each picture under the colours of its classes, with a legend; a class 0 "
        "called background is not coloured",
    )
    parser.add_argument(
        "--alpha",
        type=_alpha,
        default=0.5,
        metavar="X",
        help="how much of the colours an overlay shows, 0 to 1 [0.5]",
    )
    parser.add_argument(
        "--probs", action="store_true", help="also write the probabilities of each picture"
    )
    shared.step(parser)
    parser.add_argument(
        "--submission",
        default="",
        choices=("voc", "cityscapes"),
        help="name and number the label maps as that test server wants them",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that segjax predict did not write"
    )
    return parser


def _alpha(text: str) -> float:
    try:
        if 0 <= (value := float(text)) <= 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is no number from 0 to 1")


def plan(arguments: argparse.Namespace, out: pathlib.Path) -> list[Job]:
    """Returns every picture with the files to be written for it.

    Raises:
      ValueError: a picture is missing, two outputs would be one file, or a file would be lost.
    """
    from segjax.predict import label_files

    pictures = _pictures(arguments.images)

    def job(picture: pathlib.Path, name: str) -> Job:
        return Job(
            name,
            picture,
            label_files.path_of(arguments.submission, out, name),
            out / f"{name}_overlay.png" if arguments.overlay else None,
            out / f"{name}.npz" if arguments.probs else None,
        )

    levels = [0] * len(pictures)
    highest = 0 if arguments.submission else LEVELS  # a test server wants the names as they are
    while True:
        jobs = [job(p, _name(p, folder, level)) for (p, folder), level in zip(pictures, levels)]
        clashing = _clashing(jobs)
        if not clashing:
            break
        first, second = (jobs[i] for i in clashing[0][:2])
        if levels[clashing[0][0]] == highest:
            raise ValueError(
                f"{first.picture} and {second.picture} would both become {first.label_map}; rename "
                "one, or give them in two commands with another --out each"
            )
        for i in {i for group in clashing for i in group}:
            levels[i] += 1
    _refuse_losses(jobs, [] if arguments.submission else [out / SHARES], arguments.overwrite)
    return jobs


def _pictures(given: Sequence[str]) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Returns each picture and the folder it was found in, its own where given by itself.

    Raises:
      ValueError: there is no such file, or no picture in a folder.
    """
    from segjax.data.folders import IMAGES, Walk, near_miss
    from segjax.predict import label_files

    found: dict[Any, tuple[pathlib.Path, pathlib.Path]] = {}
    written = 0
    for text in given:
        path = paths.local(text, "a picture")
        if path.is_dir():
            walk = Walk(path)
            for line in walk.skipped:
                print(line, file=sys.stderr)
            pictures = walk.files
            own = [p for p in pictures if label_files.is_own(p)]
            written += len(own)
            pairs = [(p, path) for p in pictures if p not in set(own)]
            if not pairs:
                raise ValueError(f"{text} holds no pictures; endings are {', '.join(IMAGES)}")
        elif path.exists():
            pairs = [(path, path.parent)]
        else:
            near = near_miss(path)
            raise ValueError(f"{text} does not exist" + (f" ({near})" if near else ""))
        for picture, folder in pairs:
            # A picture that is given twice, in whatever spelling, is predicted once.
            same = picture.parent.resolve() / picture.name, _name(picture, folder, 0)
            found.setdefault(same, (picture, folder))
    if written:
        print(f"skipped {written} files that segjax predict wrote", file=sys.stderr)
    return list(found.values())


def _name(picture: pathlib.Path, folder: pathlib.Path, level: int) -> str:
    """Returns the id of a picture: its path below the folder, without its ending.

    At odd levels it keeps its ending; every second level adds a folder before it.
    """
    below = picture.relative_to(folder)
    above = pathlib.Path(os.path.abspath(folder)).parts[1:]
    name = pathlib.PurePath(*above[max(len(above) - level // 2, 0) :], below)
    return (name if level % 2 else name.with_suffix("")).as_posix()


def _clashing(jobs: Sequence[Job]) -> list[list[int]]:
    """Returns the numbers of the jobs that would write the same file, together."""
    writers: dict[pathlib.Path, list[int]] = collections.defaultdict(list)
    for i, job in enumerate(jobs):
        for path in job.outputs():
            writers[path].append(i)
    return [group for group in writers.values() if len(group) > 1]


def _refuse_losses(jobs: Sequence[Job], others: Sequence[pathlib.Path], overwrite: bool) -> None:
    """Raises ValueError where an output is a picture to predict, or a file of somebody else."""
    from segjax.predict import label_files

    inputs = {_identity(job.picture): job.picture for job in jobs}
    outputs = [*others, *(path for job in jobs for path in job.outputs())]
    there = [path for path in outputs if path.exists() or path.is_symlink()]
    for path in there:
        if picture := inputs.get(_identity(path)):
            raise ValueError(
                f"{path} would be written over the picture {picture}; choose another --out"
            )
    foreign = [p for p in there if not (overwrite or label_files.is_own(p))]
    if foreign:
        more = f" and {len(foreign) - 1} other files" if len(foreign) > 1 else ""
        raise ValueError(
            f"{foreign[0]}{more} would be replaced, which segjax predict did not write; choose "
            "another --out, or write --overwrite"
        )


def _identity(path: pathlib.Path) -> tuple[int, int] | None:
    """Returns what all links to a file share; None for a broken link."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _table(rows: Sequence[tuple[Job, Any]], classes: Sequence[str]) -> str:
    """Returns CSV: each picture, its label map, and the share of each class in its pixels."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["picture", "label_map", *classes])
    for job, shares in rows:
        writer.writerow([job.picture, job.label_map, *(f"{share:.6f}" for share in shares)])
    return buffer.getvalue()


def _ahead(
    read: Callable[[pathlib.Path], Any], jobs: Sequence[Job]
) -> Iterator[tuple[Job, futures.Future]]:
    """Yields each picture's future, while a few more are read."""
    with futures.ThreadPoolExecutor(AHEAD) as pool:
        waiting: collections.deque[tuple[Job, futures.Future]] = collections.deque()
        for job in jobs:
            waiting.append((job, pool.submit(read, job.picture)))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting
