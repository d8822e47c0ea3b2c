"""The commands, and arguments that several of them share. Nothing slow is imported here."""

import argparse
import contextlib
from collections.abc import Sequence

COMMANDS = {  # in the order of use
    "check": "read every file of a data set: shares, sizes, mistakes",
    "configs": "list the shipped configurations, or copy one for editing",
    "plan": "what training needs: parameters, operations, memory by crop and batch",
    "train": "train a network, or go on where a run stopped",
    "eval": "score a trained network on a split of its data set",
    "tune-crf": "search the best CRF for a network on saved scores",
    "report": "write report.html of a run anew",
    "predict": "write the label maps of pictures",
    "export": "write a network as one StableHLO program for any size",
    "convert": "convert a published file of weights, or a run, into weights alone",
}

CRF_HELP = (
    "refine by a fully connected CRF%s: auto (also --crf alone), none, learnt, tuned, or a preset "
    "such as deeplab_v2_resnet101. auto takes the first that exists: learnt with the network, "
    "tuned by segjax tune-crf, the protocol's, the network's paper's, DeepLab v2's [learnt, if "
    "there is one]"
)


def parser(name: str, examples: str) -> argparse.ArgumentParser:
    """Returns the parser of a command.

    Args:
      name: of the command, one of `COMMANDS`.
      examples: lines to be copied, each beginning with two blanks.
    """
    about = COMMANDS[name]
    return argparse.ArgumentParser(
        prog=f"segjax {name}",
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def config(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` and its fields."""
    parser.add_argument("--config", required=True, help="a file, or a name of segjax configs")
    parser.add_argument("--config.FIELD", metavar="VALUE", help="changes a field of it")


def hosts(parser: argparse.ArgumentParser) -> None:
    """Adds what a process of several has to know."""
    parser.add_argument(
        "--distributed", action="store_true", help="join the processes of the other hosts"
    )
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of the first process, where no cluster tells it"
    )
    parser.add_argument(
        "--processes", type=positive, metavar="N", help="how many, where no cluster tells it"
    )
    parser.add_argument(
        "--process", type=int, metavar="I", help="this one's number, from 0 on, likewise"
    )
    parser.add_argument(
        "--join",
        type=positive,
        default=300,
        metavar="S",
        help="seconds within which all processes must come, with --distributed [300]",
    )
    parser.add_argument(
        "--heartbeat",
        type=positive,
        default=60,
        metavar="S",
        help="seconds after which a process that says nothing counts as gone, and all end [60]",
    )


def joined(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Returns the context in which a command runs, together with other hosts or alone."""
    if not arguments.distributed:
        for name in ("coordinator", "processes", "process"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} is for several hosts; write --distributed too")
        return contextlib.nullcontext()
    from segjax import hosts

    return hosts.joined(
        arguments.coordinator,
        arguments.processes,
        arguments.process,
        join=arguments.join,
        heartbeat=arguments.heartbeat,
    )


def crf(parser: argparse.ArgumentParser, needs: str = "") -> None:
    """Adds `--crf[=NAME]`; `needs` says what else must be given."""
    parser.add_argument("--crf", metavar="NAME", help=CRF_HELP % needs)


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Returns the arguments of a command, and its words "--config.field=value"."""
    arguments, changes = parser.parse_known_args(argv)
    for before, word in zip(["", *changes], changes):
        if not word.startswith("--config."):
            hint = f"; write {before}={word}" if before and "=" not in before else ""
            parser.error(f"unrecognized arguments: {word}{hint}")
    return arguments, changes


def with_names(words: Sequence[str]) -> list[str]:
    """Returns the words of a command line with --crf alone as --crf=auto.

    Parsers would take the word after it, a picture, for its value.
    """
    return ["--crf=auto" if word in ("--crf", "-crf") else word for word in words]


def run(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Adds the folder of a run, RUN."""
    parser.add_argument("run_folder", metavar="RUN", help=f"folder of a training run{more}")


def step(parser: argparse.ArgumentParser) -> None:
    """Adds `--step`."""
    parser.add_argument("--step", default="best", help="best, latest or a number [best]")


def protocol(parser: argparse.ArgumentParser) -> None:
    """Adds `--protocol`."""
    parser.add_argument(
        "--protocol",
        default="whole",
        metavar="P",
        help="how a paper predicts: whole, deeplab_v2, deeplab_v3, pspnet, pspnet_ms, ... [whole]",
    )


def size(option: str, text: str) -> tuple[int, int]:
    """Returns height and width of "360x480".

    Raises:
      ValueError: the text is none; the message names the option.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"{option} {text} is no size; write height x width in pixels: 360x480")
    return int(parts[0]), int(parts[1])


def positive(text: str) -> int:
    """Returns a number of 1 or more; for `type=` of an argument."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no number of 1 or more")
    return int(text)
