"""segjax plan: what a training step needs, compiled but not run; on this machine or a TPU slice."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table

    from segjax.config import Config
    from segjax.topologies import Program, Slice

from segjax.cli import arguments as shared

EXAMPLES = """\
  segjax plan --config=configs/pspnet_cityscapes.py --memory 80
  segjax plan --config=segnet_camvid --crop 360x480 --batch 2 4 8 --config.model.dtype=bfloat16
  segjax plan --config=segnet_camvid --topology=v5e:4x4 --batch 4

The last needs no TPU, only libtpu: pip install '.[tpu]' on Linux. It takes minutes; --quick
less, and then more memory is shown than the step needs.
"""


def main(argv: Sequence[str]) -> None:
    """Prints parameters, operations and memory by crop and batch."""
    command = parser()
    arguments, rest = shared.parsed(command, argv)
    if arguments.topology and arguments.memory:
        command.error("--memory is for this machine; that of a --topology is known")
    if arguments.quick and not arguments.topology:
        command.error("--quick is for a --topology")
    import jax
    from rich.console import Console

    from segjax import config as config_lib
    from segjax import log, rows, topologies, training
    from segjax import plan as plan_lib
    from segjax.cli import overrides

    topology = topologies.find(arguments.topology) if arguments.topology else None
    if topology:
        topologies.compile_only(topology)  # fails before anything is read
    config = overrides.read(arguments.config, rest)
    config_lib.check(config)
    crops = [shared.size("--crop", text) for text in arguments.crop]
    known = [size for size in (config.augment.crop, config.data.canvas) if min(size)]
    if not (config.model.num_classes and (crops or known)):
        config, prepared = training.prepare(config)
        known = [config.augment.crop, prepared.canvas(*prepared.summaries)]
    crops = crops or [size for size in known if min(size)][:1]
    for crop in crops:
        rows.check(config.model, crop, config.train.rows)
    devices = topology.chips if topology else jax.device_count()
    own = max(config.train.batch_size * config.train.rows // devices, 1)
    network = f"{arguments.config}: {type(config.model).__name__}"
    if topology:
        cases = [(crop, batch) for crop in crops for batch in arguments.batch or [own]]
        log.console.print(f"compiling the training step for {topology.name}, {len(cases)} times...")
        title = f"{network} on {topology.name}"
        for text in _of_slice(config, topology, cases, title, arguments.quick):
            Console().print(text)
        return
    batches = arguments.batch or sorted({max(own // 2, 1), own, 2 * own})
    memory = None if arguments.memory is None else round(arguments.memory * plan_lib.GB)
    log.console.print(f"compiling {len(crops) * len(batches)} training steps...")
    made = plan_lib.make(config, crops, batches, memory=memory)
    Console().print(made.table(network))


def _of_slice(
    config: "Config",
    topology: "Slice",
    cases: Sequence[tuple[tuple[int, int], int]],
    title: str,
    quick: bool,
) -> list["rich.table.Table | str"]:
    """Compiles the steps of crops and batches for a slice; returns a column for each, and notes."""
    import rich.table
    import rich.text

    from segjax import topologies

    chip = topology.chip
    heading = rich.text.Text(f"{title}: {topology.chips} chips {chip.name}", "italic")
    table = rich.table.Table(title=heading)
    table.add_column("of one chip and step")
    columns, notes = [], []
    for (height, width), batch in cases:
        table.add_column(f"{height}x{width}, batch {batch}", justify="right")
        try:
            program = topologies.train_step(config, topology, (height, width), batch, quick=quick)
            columns.append(_cells(program, topology))
        except topologies.TooLargeError as error:
            change = topologies.smaller(config, batch)
            notes.append(f"batch {batch} does not fit, write {change}. {error}")
            columns.append({"fits": "no"})
    for name in max(columns, key=len):
        table.add_row(name, *(column.get(name, "") for column in columns))
    if quick:
        notes.append(topologies.QUICK.replace("\n", " "))
    return [table, *notes, topologies.ASSUMPTIONS.replace("\n", " ")]


def _cells(program: "Program", topology: "Slice") -> dict[str, str]:
    """Returns the column of a program, by the name of the row."""
    from segjax import topologies
    from segjax.devices import GIB

    chips, chip, times = topology.chips, topology.chip, topologies.times(program, topology)
    return {
        "fits": "yes",
        f"memory, of {chip.memory / GIB:.0f} GiB": f"{program.memory / GIB:.2f} GiB",
        "operations": f"{program.flops / 1e9:,.1f} GFLOP",
        f"operations of all {chips} chips": f"{program.flops * chips / 1e9:,.1f} GFLOP",
        "traffic": f"{program.traffic / 1e9:,.2f} GB",
        "all-reduces": f"{program.all_reduces}",
        "all-reduced": f"{program.reduced / 1e6:,.2f} MB",
        "on paper: operations": f"{1e3 * times.operations:,.2f} ms",
        "on paper: traffic": f"{1e3 * times.traffic:,.2f} ms",
        "on paper: all-reduces": f"{1e3 * times.all_reduce:,.2f} ms",
        "share of the all-reduces": f"{times.all_reduce / times.step:.1%}",
        **{
            f"efficiency on {n:,} chips": f"{topologies.efficiency(program, topology, n):.1%}"
            for n in topologies.SCALES
        },
    }


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
        help="images per device [half, once, twice those of the configuration; once for a slice]",
    )
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="of the device, 1e9 bytes [asked of the device]"
    )
    parser.add_argument(
        "--topology", metavar="NAME", help="a TPU slice that need not be there, as v5e:4x4"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compile for the --topology with the least effort: faster, memory is overestimated",
    )
    return parser
