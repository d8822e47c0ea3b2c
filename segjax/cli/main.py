"""The command `segjax`: what is done with networks, beside training and evaluating them."""

import argparse
import collections
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

from segjax.cli import arguments as shared

# Everything slow to import is imported by the command that needs it.

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
AHEAD = 4  # pictures read while one is predicted
FAILED, MISTAKE, INTERRUPTED = 1, 2, 130  # exit codes
CONFIGURED = ("plan",)  # commands that take --config.FIELD=VALUE

# What is in the folder of a data set, in the order in which it is looked for.
LAYOUTS = {
    "cityscapes": ("leftImg8bit",),
    "voc_segmentation": ("JPEGImages",),
    "ade20k": ("annotations", "images"),
    "camvid": ("train", "trainannot"),
    "folder": ("images", "masks"),
}
NESTED = ("VOC2012", "VOCdevkit/VOC2012", "ADEChallengeData2016")

EXAMPLES = {
    "predict": """\
  segjax predict runs/a street.jpg photos/ --out labels --overlay
  segjax predict runs/deeplab JPEGImages/ --protocol deeplab_v3 --crf --submission voc
""",
    "check": """\
  segjax check CamVid
  segjax check my_data --name folder --label-map "{0:0,255:1}"
""",
    "plan": """\
  segjax plan --config=configs/pspnet_cityscapes.py --memory 80
  segjax plan --config=configs/segnet_camvid.py --crop 360x480 --batch 2 4 8 \\
      --config.model.dtype=bfloat16
""",
    "report": """\
  segjax report runs/a
  segjax report runs/a --evaluation test_040000
""",
    "export": """\
  segjax export runs/a model.stablehlo
  segjax export runs/deeplab model.stablehlo --size 513x513 --weights beside --platforms cuda
""",
    "tune-crf": """\
  segjax tune-crf runs/deeplab
  segjax tune-crf runs/deeplab --images 20 --alpha 40 60 80 --finer 1
  segjax predict runs/deeplab street.jpg --crf
""",
    "convert": """\
  segjax convert pspnet50_ade20k.pth weights/pspnet50_ade20k --dataset=ade20k
""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
      0, 1 where some files failed, 2 for a mistake of the user's.
    """
    arguments = shared.with_names(sys.argv[1:] if argv is None else argv)
    parser, commands = _parsers()
    if arguments[:1] == ["convert"]:  # it reads its arguments itself
        values, rest = argparse.Namespace(command="convert", run=convert, own=arguments[1:]), []
    else:
        values, rest = parser.parse_known_args(arguments)
    takes_changes = values.command in CONFIGURED
    changes = [word for word in rest if takes_changes and word.startswith("--config.")]
    if unknown := [word for word in rest if word not in changes]:
        commands[values.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    values.changes = changes
    try:
        return values.run(values) or 0
    except (ValueError, OSError) as error:
        print(f"segjax {values.command}: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print(f"segjax {values.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def predict(arguments: argparse.Namespace) -> int:
    """Writes label maps of pictures; unreadable ones are reported at the end."""
    import warnings

    import segjax
    from segjax import log
    from segjax.predict import crf_choice, protocols
    from segjax.predict import images as inputs
    from segjax.predict import label_files as submission
    from segjax.report import pictures

    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a file is told at the end
    protocol = protocols.find(arguments.protocol)
    jobs = _jobs(arguments.images)
    seg = segjax.load(arguments.run_folder, step=arguments.step)
    kernels = crf_choice.choose(arguments.crf, protocol, seg.config.model, seg.crfs)
    out = pathlib.Path(arguments.out).expanduser()
    write = submission.writer(arguments.submission, out, seg.classes, seg.palette)
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


def plan(arguments: argparse.Namespace) -> None:
    """Prints what a training step needs, compiled but not run."""
    import jax
    from rich.console import Console

    from segjax import config as config_lib
    from segjax import log
    from segjax import plan as plan_lib
    from segjax import training as runs
    from segjax.cli import overrides as flags

    config = flags.read(arguments.config, arguments.changes)
    config_lib.check(config)
    crops = [_size("--crop", text) for text in arguments.crop]
    if not crops:
        known = [s for s in (config.augment.crop, config.data.canvas) if min(s)]
        splits = (config.data.train_split, config.data.val_split)
        crops = known[:1] or [runs.prepare(config).canvas(*splits)]
    own = max(config.train.batch_size // jax.device_count(), 1)
    batches = arguments.batch or sorted({max(own // 2, 1), own, 2 * own})
    memory = None if arguments.memory is None else round(arguments.memory * plan_lib.GB)
    log.console.print(f"compiling {len(crops) * len(batches)} training steps...")
    made = plan_lib.make(config, crops, batches, memory=memory)
    network = type(config.model).__name__
    Console().print(made.table(f"{arguments.config}: {network}"))


def check(arguments: argparse.Namespace) -> None:
    """Reads every file of a data set, prints what there is and what to write for training."""
    from rich.console import Console

    from segjax import config as config_lib
    from segjax.data import datasets

    given = pathlib.Path(arguments.data).expanduser()
    name = arguments.name or layout(given)
    data = config_lib.Data(
        name=name,
        dir="" if name == arguments.data else str(given),
        label_map=arguments.label_map,
        options=arguments.options,
    )
    found = datasets.check(data, arguments.splits)
    console = Console()
    console.print(found.table())
    height, width = found.crop
    lines = [
        f"every file of {', '.join(found.summaries)} can be used; to train on it:",
        f"  --config.data.name={name}",
        *([f"  --config.data.dir={given}"] if data.dir else []),
        *([f'  --config.data.label_map="{data.label_map}"'] if data.label_map else []),
        *([f'  --config.data.options="{data.options}"'] if data.options else []),
        f"  --config.model.num_classes={found.dataset.num_classes}",
        f'  --config.augment.crop="({height}, {width})"',
        "  --config.loss.class_weights=median_frequency, which is "
        + ",".join(f"{weight:.4f}" for weight in found.class_weights),
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def report(arguments: argparse.Namespace) -> None:
    """Writes report.html anew."""
    from segjax import report as report_lib

    folder = pathlib.Path(arguments.run_folder).expanduser()
    print(report_lib.write(folder, arguments.evaluation))


def export(arguments: argparse.Namespace) -> None:
    """Writes a network as a program that JAX alone runs."""
    from segjax.predict import export as export_lib

    files = export_lib.export(
        arguments.run_folder,
        pathlib.Path(arguments.file).expanduser(),
        size=None if arguments.size is None else _size("--size", arguments.size),
        protocol=arguments.protocol,
        crf=arguments.crf,
        probs=arguments.probs,
        weights=arguments.weights,
        platforms=arguments.platforms,
    )
    for file in files:
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")


def tune_crf(arguments: argparse.Namespace) -> None:
    """Searches the parameters of a CRF behind a network."""
    from rich.console import Console

    from segjax.evaluate import tune_crf as tune

    given = {name: getattr(arguments, name) for name in ("w1", "alpha", "beta")}
    tuned = tune.tune(
        pathlib.Path(arguments.run_folder).expanduser(),
        grid=tune.Grid(
            **{name: tuple(values) for name, values in given.items() if values},
            w2=arguments.w2,
            gamma=arguments.gamma,
            finer=arguments.finer,
        ),
        images=arguments.images,
        split=arguments.split,
        step=arguments.step,
        protocol=arguments.protocol,
        data_dir=arguments.data,
    )
    console = Console()
    console.print(tuned.table())
    console.print(tuned.evaluation.table(tuned.classes, "the best point, as prediction runs it"))
    print(f"{tuned.path} is what --crf=tuned uses, and --crf if no CRF was learnt")


def convert(arguments: argparse.Namespace) -> None:
    """Converts a published file of weights."""
    from segjax.cli import convert as program

    given = program.parser("segjax convert").parse_args(arguments.own)
    program.convert(**vars(given))


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="segjax",
        description="What is done with networks, beside training (train.py) and evaluating "
        "(eval.py) them.",
        epilog="segjax COMMAND --help tells more about each. Exit code: 0, 1 where some files "
        "failed, 2 for a mistake in the arguments or in what they name.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands: dict[str, argparse.ArgumentParser] = {}

    def add(name: str, run: Callable[..., Any], about: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog="examples:\n" + EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=run)
        commands[name] = command
        return command

    command = add("predict", predict, "write the label maps of pictures")
    _run_argument(command, "or of converted weights")
    command.add_argument(
        "images", nargs="+", metavar="IMAGE_OR_FOLDER", help="folders are searched for pictures"
    )
    command.add_argument("--out", default="predictions", help="folder [predictions]")
    shared.crf(command)
    _protocol_argument(command)
    command.add_argument(
        "--overlay", action="store_true", help="also write each picture under its classes' colours"
    )
    command.add_argument("--step", default="best", help="best, latest or a number [best]")
    command.add_argument(
        "--submission",
        default="",
        choices=("voc", "cityscapes"),
        help="name and number the label maps as that test server wants them",
    )

    command = add(
        "plan", plan, "what training needs: parameters, operations, memory by crop and batch"
    )
    command.add_argument("--config", required=True, help="a file of configs/")
    command.add_argument("--config.FIELD", metavar="VALUE", help="changes a field of it")
    command.add_argument(
        "--crop", nargs="+", default=[], metavar="HxW", help="pixels [that of the configuration]"
    )
    command.add_argument(
        "--batch",
        nargs="+",
        type=_positive,
        metavar="N",
        help="images per device [half, once and twice those of the configuration]",
    )
    command.add_argument(
        "--memory", type=float, metavar="GB", help="of the device, 1e9 bytes [asked of the device]"
    )

    command = add("check", check, "read every file of a data set: shares, sizes, mistakes")
    command.add_argument(
        "data", metavar="DATA", help="its folder; or shapes, the data set that is built in"
    )
    command.add_argument(
        "--name", default="", choices=sorted(LAYOUTS), help="of its layout [told by its folders]"
    )
    command.add_argument(
        "--splits", nargs="+", default=["train", "val"], metavar="SPLIT", help="[train val]"
    )
    command.add_argument("--label-map", default="", help='changes ids, "{0:0,255:1}"')
    command.add_argument("--options", default="", help='of the layout, "val_every=5"')

    command = add("report", report, "write report.html of a run anew")
    _run_argument(command)
    command.add_argument(
        "--evaluation", metavar="NAME", help="of a file in RUN/eval, without .json [the newest]"
    )

    command = add("export", export, "write a network as one StableHLO program for any size")
    _run_argument(command, "or of converted weights")
    command.add_argument("file", metavar="FILE", help="of the program: model.stablehlo")
    command.add_argument("--size", metavar="HxW", help="pixels of the images [any]")
    _protocol_argument(command)
    shared.crf(command, "; needs --size")
    command.add_argument("--probs", action="store_true", help="also return the probabilities")
    command.add_argument(
        "--weights",
        default="inside",
        choices=("inside", "beside"),
        help="in the program, or in a .safetensors beside it [inside]",
    )
    command.add_argument(
        "--platforms",
        nargs="+",
        default=("cpu", "cuda", "tpu"),
        metavar="PLATFORM",
        help="to run on [cpu cuda tpu]",
    )

    command = add("tune-crf", tune_crf, "search the best CRF for a network on saved scores")
    _run_argument(command)
    command.add_argument("--images", type=_positive, default=100, metavar="N", help="[100]")
    command.add_argument("--split", default="", help="of the data set [the one to validate on]")
    command.add_argument("--step", default="best", help="best, latest or a number [best]")
    command.add_argument("--data", default="", metavar="DIR", help="folder of the raw data")
    _protocol_argument(command)
    for name, about in (
        ("w1", "weights of the bilateral kernel [3 4 5 6]"),
        ("alpha", "its widths in pixels [30 40 ... 100]"),
        ("beta", "its widths in colour, of 0..255 [3 4 5 6]"),
    ):
        command.add_argument(f"--{name}", nargs="+", type=float, metavar="X", help=about)
    command.add_argument("--w2", type=float, default=3.0, help="of the spatial kernel [3]")
    command.add_argument("--gamma", type=float, default=3.0, help="its width in pixels [3]")
    command.add_argument("--finer", type=int, default=2, help="rounds with half the steps [2]")

    add("convert", convert, "convert a published file of weights").add_argument("arguments")
    return parser, commands


def _run_argument(command: argparse.ArgumentParser, more: str = "") -> None:
    command.add_argument("run_folder", metavar="RUN", help=f"folder of a run of train.py {more}")


def _protocol_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--protocol",
        default="whole",
        metavar="P",
        help="how a paper predicts: whole, deeplab_v2, deeplab_v3, pspnet, pspnet_ms, ... [whole]",
    )


def layout(folder: pathlib.Path) -> str:
    """Returns the name of the data set in a folder, told by its subfolders."""
    if folder.name == "shapes" and not folder.exists():
        return "shapes"
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give that of a data set, or shapes")
    roots = [folder, *(folder / nested for nested in NESTED)]
    for name, parts in LAYOUTS.items():
        if any(all((root / part).is_dir() for part in parts) for root in roots):
            return name
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    known = "; ".join(f"{name}: {', '.join(parts)}" for name, parts in LAYOUTS.items())
    raise ValueError(
        f"{folder} has the layout of no known data set; it holds {there}. Looked for are {known}; "
        "your own data needs images/ and masks/"
    )


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


def _size(option: str, text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"{option} {text} is no size; write height x width in pixels: 360x480")
    return int(parts[0]), int(parts[1])


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no number of images")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
