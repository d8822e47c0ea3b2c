"""segjax export: a network as a program that JAX alone runs."""

import argparse
from collections.abc import Sequence

from segjax.cli import arguments as shared

EXAMPLES = """\
  segjax export runs/a model.stablehlo
  segjax export runs/deeplab model.stablehlo --size 513x513 --weights beside --platforms cuda
"""


def main(argv: Sequence[str]) -> None:
    """Writes the program and prints the files."""
    arguments = parser().parse_args(shared.with_names(argv))
    from segjax import paths
    from segjax.predict import export

    files = export.export(
        arguments.run_folder,
        paths.local(arguments.file, "FILE"),
        size=None if arguments.size is None else shared.size("--size", arguments.size),
        batch=arguments.batch,
        protocol=arguments.protocol,
        crf=arguments.crf,
        probs=arguments.probs,
        weights=arguments.weights,
        platforms=arguments.platforms,
    )
    for file in files:
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = shared.parser("export", EXAMPLES)
    shared.run(parser, " or of converted weights")
    parser.add_argument("file", metavar="FILE", help="of the program: model.stablehlo")
    parser.add_argument("--size", metavar="HxW", help="pixels of the images [any]")
    parser.add_argument("--batch", type=shared.positive, metavar="N", help="images a call [any]")
    shared.protocol(parser)
    shared.crf(parser, "; needs --size")
    parser.add_argument("--probs", action="store_true", help="also return the probabilities")
    parser.add_argument(
        "--weights",
        default="inside",
        choices=("inside", "beside"),
        help="in the program, or in a .safetensors next to it [inside]",
    )
    parser.add_argument(
        "--platforms",
        nargs="+",
        default=("cpu", "cuda", "tpu"),
        metavar="PLATFORM",
        help="to run on [cpu cuda tpu]",
    )
    return parser
