"""segjax plan: what a training step needs, compiled but not run."""

import argparse
from collections.abc import Sequence

from segjax.cli import arguments as shared

EXAMPLES = """\
  segjax plan --config=configs/pspnet_cityscapes.py --memory 80
  segjax plan --config=segnet_camvid --crop 360x480 --batch 2 4 8 --config.model.dtype=bfloat16
"""


def main(argv: Sequence[str]) -> None:
    """Prints parameters, operations and memory by crop and batch."""
    command = parser()
    arguments, rest = command.parse_known_args(argv)
    if unknown := [word for word in rest if not word.startswith("--config.")]:
        command.error(f"unrecognized arguments: {' '.join(unknown)}")
    import jax
    from rich.console import Console

    from segjax import config as config_lib
    from segjax import log, training
    from segjax import plan as plan_lib
    from segjax.cli import overrides

    config = overrides.read(arguments.config, rest)
    config_lib.check(config)
    crops = [shared.size("--crop", text) for text in arguments.crop]
    known = [size for size in (config.augment.crop, config.data.canvas) if min(size)]
    if not (config.model.num_classes and (crops or known)):
        config, prepared = training.prepare(config)
        known = [config.augment.crop, prepared.canvas(*prepared.summaries)]
    crops = crops or [size for size in known if min(size)][:1]
    own = max(config.train.batch_size // jax.device_count(), 1)
    batches = arguments.batch or sorted({max(own // 2, 1), own, 2 * own})
    memory = None if arguments.memory is None else round(arguments.memory * plan_lib.GB)
    log.console.print(f"compiling {len(crops) * len(batches)} training steps...")
    made = plan_lib.make(config, crops, batches, memory=memory)
    network = type(config.model).__name__
    Console().print(made.table(f"{arguments.config}: {network}"))


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = shared.parser("plan", EXAMPLES)
    shared.config(parser)
    parser.add_argument(
        "--crop", nargs="+", default=[], metavar="HxW", help="pixels [that of the configuration]"
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        type=shared.positive,
        metavar="N",
        help="images per device [half, once and twice those of the configuration]",
    )
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="of the device, 1e9 bytes [asked of the device]"
    )
    return parser
