"""segjax tune-crf: searches the parameters of a CRF for a network."""

import argparse
from collections.abc import Sequence

from segjax.cli import arguments as shared

EXAMPLES = """\
  segjax tune-crf runs/deeplab
  segjax tune-crf runs/deeplab --images 20 --alpha 40 60 80 --finer 1
  segjax predict runs/deeplab street.jpg --crf=tuned
"""


def main(argv: Sequence[str]) -> None:
    """Searches, and prints the best points."""
    arguments = parser().parse_args(argv)
    from rich.console import Console

    from segjax import paths
    from segjax.evaluate import tune_crf

    given = {name: getattr(arguments, name) for name in ("w1", "alpha", "beta")}
    tuned = tune_crf.tune(
        paths.of(arguments.run_folder),
        grid=tune_crf.Grid(
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


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = shared.parser("tune-crf", EXAMPLES)
    shared.run(parser)
    parser.add_argument(
        "--images", type=shared.positive, default=100, metavar="N", help="how many [100]"
    )
    parser.add_argument("--split", default="", help="of the data set [the one to validate on]")
    shared.step(parser)
    parser.add_argument("--data", default="", metavar="DIR", help="folder of the raw data")
    shared.protocol(parser)
    for name, about in (
        ("w1", "weights of the bilateral kernel [3 4 5 6]"),
        ("alpha", "its widths in pixels [30 40 ... 100]"),
        ("beta", "its widths in colour, of 0..255 [3 4 5 6]"),
    ):
        parser.add_argument(f"--{name}", nargs="+", type=float, metavar="X", help=about)
    parser.add_argument("--w2", type=float, default=3.0, help="weight of the spatial kernel [3]")
    parser.add_argument("--gamma", type=float, default=3.0, help="its width in pixels [3]")
    parser.add_argument("--finer", type=int, default=2, help="rounds with half the steps [2]")
    return parser
