"""segjax report: report.html of a run, written anew."""

import argparse
from collections.abc import Sequence

from segjax.cli import arguments as shared

EXAMPLES = """\
  segjax report runs/a
  segjax report runs/a --evaluation test_040000
"""


def main(argv: Sequence[str]) -> None:
    """Writes report.html."""
    arguments = parser().parse_args(argv)
    from segjax import paths, report

    print(report.write(paths.of(arguments.run_folder), arguments.evaluation))


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = shared.parser("report", EXAMPLES)
    shared.run(parser)
    parser.add_argument(
        "--evaluation", metavar="NAME", help="of a file in RUN/eval, without .json [the newest]"
    )
    return parser
