"""A training step compiled for a TPU slice that is not there, and its time on paper.

libtpu, the compiler for TPUs, knows the chips of a slice by its name and needs none of them. Both
engines of `train.engine` can be compiled so. Memory, operations, traffic and all-reduces are read
off the compiled program; times follow from what the makers promise, see `ASSUMPTIONS`.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax

from segjax import devices, plan
from segjax.config import Compile, Config

ASSUMPTIONS = """\
On paper, nothing of it measured on a TPU: a step takes the larger of operations / peak in bfloat16
(float32 products take bfloat16 operands on a TPU too) and traffic / bandwidth of the memory, in
which XLA counts every operand of every operation, also one that stays on the chip. Then come the
all-reduces, none of them hidden: 2 (n - 1) / n of their bytes over all links of a chip in one
direction, and for each all-reduce 1 µs for every chip along the sides of the slice. Links that do
not close to a ring, as in small slices, take up to twice as long. Efficiency is the time of a
chip alone over that of one of n, at the same images per chip; input and stragglers cost nothing.
Past the largest slice, slices add up over the network of the data centre, whose latency is not
counted: an upper bound. Maps that model.remat computes twice count twice. With train.rows, a
batch is that of a group of chips, and the rows that they exchange are not counted."""

QUICK = """\
Compiled with the least effort: the step that will run needs less memory, and its traffic is
somewhat different. A step that does not fit here may fit without --quick."""

LEAST = 9  # XLA's EFFORT_O0; JAX 0.10 takes the number alone
HOP = 1e-6  # seconds; about, says jax-ml.github.io/scaling-book/sharding
SCALES = (8, 16, 32, 64, 128, 256, 512, 1024)  # chips

FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")


@dataclasses.dataclass(frozen=True)
class Generation:
    """The slices of one kind of TPU, up to 1,024 chips; sources as in `devices`."""

    kind: str  # jax.Device.device_kind
    shapes: tuple[str, ...]  # by number of chips
    network: float = math.inf  # bytes per second of a chip to other slices
    config: str = "default"  # libtpu's, in which a chip is one device


GENERATIONS = {
    "v4": Generation("TPU v4", CUBIC, config="megacore"),
    "v5e": Generation("TPU v5 lite", FLAT, network=6.4e12 / 8 / 256),
    "v5p": Generation("TPU v5", CUBIC),
    "v6e": Generation("TPU v6 lite", FLAT, network=25.6e12 / 8 / 256),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice by its name, as "v5e:4x4"."""

    name: str
    generation: Generation

    @property
    def chip(self) -> devices.Chip:
        """What is promised of one chip."""
        return devices.PEAKS[self.generation.kind]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(_sides(self.name.split(":")[1]))


@dataclasses.dataclass(frozen=True)
class Program:
    """What one chip of a slice needs for a compiled program."""

    flops: float  # operations, those made again included; a multiply-add counts as two
    traffic: float  # bytes read and written by all operations
    memory: int  # bytes: arguments, temporaries, and results that reuse no argument
    all_reduces: int  # how many stand in the program
    reduced: int  # bytes of their results

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> "Program":
        """Reads a program that was compiled for a slice."""
        cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        new = memory.output_size_in_bytes - memory.alias_size_in_bytes
        number, size = all_reduces(compiled.as_text())
        return cls(cost["flops"], cost["bytes accessed"], held + new, number, size)


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a step on paper."""

    operations: float
    traffic: float
    all_reduce: float

    @property
    def step(self) -> float:
        """Of the whole step."""
        return max(self.operations, self.traffic) + self.all_reduce


class TooLargeError(ValueError):
    """The compiler found no room for a program in the memory of a chip."""


def find(name: str) -> Slice:
    """Returns the slice of a name.

    Raises:
      ValueError: there is none; the message lists those there are.
    """
    generation, _, shape = name.partition(":")
    if generation in GENERATIONS and shape in GENERATIONS[generation].shapes:
        return Slice(name, GENERATIONS[generation])
    flat, cubic = (
        f"{' and '.join(n for n, g in GENERATIONS.items() if g.shapes == shapes)} "
        f"with {', '.join(shapes)}"
        for shapes in (FLAT, CUBIC)
    )
    raise ValueError(f"no TPU slice {name!r}; write one as v5e:4x4, accepted are {flat}; {cubic}")


def compile_only(topology: Slice) -> list[jax.Device]:
    """Returns the devices of a slice, for which programs can be compiled but not run.

    Raises:
      ValueError: libtpu is not installed, or does not take the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"compiling for {topology.name} needs libtpu, the compiler for TPUs (Linux): "
            "pip install '.[tpu]'"
        )
    from jax.experimental import topologies

    if jax.default_backend() != "tpu":  # what libtpu would ask the machine, and then complain
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")  # any known one
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip to be kept from others
    try:
        return topologies.get_topology_desc(
            topology.name, platform="tpu", chip_config_name=topology.generation.config
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"libtpu does not take {topology.name}: {error}") from error


def compiled(lowered: jax.stages.Lowered, *, quick: bool = False) -> Program:
    """Compiles a program for the slice for which it was lowered.

    Args:
      lowered: the program.
      quick: with the compiler's least effort, many times faster; memory and traffic are then those
        of a program that nobody would run, which needs more memory.

    Raises:
      TooLargeError: it does not fit; the message is the compiler's.
    """
    options = {"optimization_level": LEAST} if quick else {}
    try:
        return Program.of(lowered.compile(compiler_options=options))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = str(error).splitlines()[0]
        raise TooLargeError(line[max(line.find("Ran out"), 0) :]) from error


def train_step(
    config: Config, topology: Slice, crop: tuple[int, int], batch: int, *, quick: bool = False
) -> Program:
    """Compiles the training step of a configuration for a slice; nothing is run or allocated.

    Args:
      config: of the run.
      topology: of `find`.
      crop: height and width in pixels.
      batch: images per chip.
      quick: see `compiled`.

    Raises:
      ValueError: see `compile_only`.
      TooLargeError: see `compiled`.
    """
    config = dataclasses.replace(config, compile=Compile(libraries=False))  # they are a CPU's
    return compiled(plan.lower(config, crop, batch, compile_only(topology)), quick=quick)


def all_reduces(hlo: str) -> tuple[int, int]:
    """Returns how many all-reduces stand in the text of a program, and the bytes of their results.

    Those of a loop count once.
    """
    results = re.findall(r"= (.*?) all-reduce(?:-start)?\(", hlo)
    arrays = re.findall(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]", " ".join(results))
    count = lambda sides: math.prod(map(int, filter(None, sides.split(","))))
    bits = sum(int(bits or 8) * count(sides) for _, bits, sides in arrays)
    return len(results), math.ceil(bits / 8)


def times(program: Program, topology: Slice, chips: int | None = None) -> Times:
    """Returns the time of a program on paper, see `ASSUMPTIONS`.

    Args:
      program: of the slice.
      topology: the slice.
      chips: of another slice or of several of the kind, a power of two from 4 on; those of the
        slice by default.
    """
    chip, generation = topology.chip, topology.generation
    chips = chips or topology.chips
    sides = max(
        (sides for sides in map(_sides, generation.shapes) if math.prod(sides) <= chips),
        key=math.prod,
    )
    own = math.prod(sides)
    slices = chips // own
    ring = lambda n: 2 * (n - 1) / n
    all_reduce = (
        ring(own) * program.reduced / chip.links
        + program.all_reduces * sum(sides) * HOP
        + ring(slices) * program.reduced / own / generation.network
    )
    return Times(program.flops / chip.flops, program.traffic / chip.bandwidth, all_reduce)


def efficiency(program: Program, topology: Slice, chips: int) -> float:
    """Returns the time of a chip alone over that of one of many, on paper; 1 is perfect."""
    time = times(program, topology, chips)
    return (time.step - time.all_reduce) / time.step


def smaller(config: Config, batch: int) -> str:
    """Says what to write for a step that does not fit."""
    model = config.model
    changes = ["a smaller --batch"] * (batch > 1)
    changes += ["--config.model.dtype=bfloat16"] * (getattr(model, "dtype", "") == "float32")
    changes += ["--config.model.remat=True"] * (getattr(model, "remat", True) is False)
    return " or ".join([*changes, "a smaller --crop"])


def _sides(shape: str) -> tuple[int, ...]:
    return tuple(map(int, shape.split("x")))
