"""segjax train: trains a network, or goes on where a run stopped."""

import argparse
from collections.abc import Sequence

from segjax.cli import arguments as shared

EXAMPLES = """\
  segjax train --config=segnet_camvid --config.data.dir=CamVid --workdir=runs/segnet
  segjax train --config=my.py --workdir=runs/mine --config.optim.lr=0.02 \\
      --config.augment.crop="(360, 480)"

The same command again goes on from the last checkpoint. The folder of the run then holds
config.json, env.json, checkpoints/, metrics.csv, tb/ (TensorBoard events), images/ (pictures),
eval/ (scores) and report.html, which shows them. On several hosts, start the command on each with
--distributed.

Ctrl-C, SIGTERM and SIGHUP finish the step and save; a second one leaves at once. On several hosts
one signal to one of them stops all; a host that is gone, or that fails, ends all.
"""
FAILED = 1  # exit code of a run whose loss is not finite


def main(argv: Sequence[str]) -> int:
    """Trains; returns 0, 1 where training failed, or 128 and the signal that stopped it."""
    command = parser()
    arguments, rest = shared.parsed(command, argv)
    if not arguments.workdir:
        raise ValueError("--workdir is empty; name a folder, --workdir=runs/a")

    from segjax import compiling, log, training
    from segjax.cli import compilation_cache, overrides

    config = overrides.read(arguments.config, rest)
    try:
        with shared.joined(arguments):
            if compilation_cache.is_ours():
                compiling.prefer_onednn()
            stopped = training.train(config, arguments.workdir, profile=arguments.profile)
    except FloatingPointError as error:
        log.warn(f"segjax train: {error}")
        return FAILED
    return 128 + stopped if stopped else 0


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = shared.parser("train", EXAMPLES)
    shared.config(parser)
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="the folder of the run; made when missing"
    )
    parser.add_argument(
        "--profile",
        type=_steps,
        metavar="FIRST:LAST",
        help="trace these steps, 101:105, with JAX's profiler into DIR/profile; xprof DIR/profile "
        "shows the trace",
    )
    shared.hosts(parser)
    return parser


def _steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(
            f"{text} is no range of steps; write the first and the last, --profile=101:105"
        )
    return int(first), int(last)
