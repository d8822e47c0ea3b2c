"""What a training run will need, read off the compiled step before any of it is spent."""

import dataclasses
import functools
import math
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
import rich.table
import rich.text

from segjax import state, steps
from segjax.config import Config

GB = 1e9  # bytes, as vendors of accelerators count


@dataclasses.dataclass(frozen=True)
class Point:
    """The training step of one device, compiled for a crop and a batch; sizes in bytes."""

    crop: tuple[int, int]  # height, width in pixels
    batch: int  # images on this device
    flops: float | None  # operations of one step, those made again by model.remat included; a
    # multiply-add counts as two; None: not known
    traffic: float  # read and written by the step's operations
    resident: int  # parameters, BatchNorm statistics, optimiser state and the batch itself
    temporary: int  # activations, gradients and work space

    @property
    def memory(self) -> int:
        """What the step holds at the most."""
        return self.resident + self.temporary


@dataclasses.dataclass(frozen=True)
class Plan:
    """The points measured, and the memory they are compared with."""

    points: tuple[Point, ...]
    parameters: int
    memory: int | None  # bytes of the device, None when unknown
    backend: str  # that compiled: another one needs another amount
    remat: bool = False  # whether the step computes maps a second time

    def largest(self, crop: tuple[int, int]) -> int | None:
        """Returns the batch that just fits at a crop, None when it cannot be told.

        Memory grows linearly with the batch: the line through the smallest and the largest batch
        measured is followed to the memory of the device.
        """
        points = sorted((p for p in self.points if p.crop == crop), key=lambda p: p.batch)
        if self.memory is None or points[0].batch == points[-1].batch:
            return None
        first, last = points[0], points[-1]
        each = (last.memory - first.memory) / (last.batch - first.batch)
        if each <= 0:
            return None
        return max(math.floor(first.batch + (self.memory - first.memory) / each), 0)

    def table(self, title: str) -> rich.table.Table:
        """A table with a row per point."""
        table = rich.table.Table(title=rich.text.Text(title, "italic"))
        for column in ("crop", "batch", "GFLOP", "traffic GB", "state GB", "work GB", "memory GB"):
            table.add_column(column, justify="right")
        table.add_column("fits")
        for p in self.points:
            sizes = (p.traffic, p.resident, p.temporary, p.memory)
            fits = "?" if self.memory is None else "yes" if p.memory <= self.memory else "no"
            table.add_row(
                f"{p.crop[0]}x{p.crop[1]}",
                str(p.batch),
                "?" if p.flops is None else f"{p.flops / 1e9:,.1f}",
                *(f"{size / GB:.2f}" for size in sizes),
                fits,
            )
        table.caption = "\n".join(self._notes())
        return table

    def _notes(self) -> list[str]:
        notes = [f"{self.parameters:,} parameters; all numbers are those of one device and step"]
        if self.remat:
            notes.append("GFLOP include what model.remat computes twice")
        if self.memory is None:
            notes.append(f"the memory of this {self.backend} is not known: give it, --memory=GB")
        for crop in dict.fromkeys(p.crop for p in self.points):
            if (batch := self.largest(crop)) is not None:
                notes.append(
                    f"{crop[0]}x{crop[1]}: about {batch} images fit into {self.memory / GB:.1f} GB"
                )
        notes.append(f"compiled for {self.backend}; another backend needs another amount")
        return notes


def make(
    config: Config,
    crops: Sequence[tuple[int, int]],
    batches: Sequence[int],
    *,
    memory: int | None = None,
) -> Plan:
    """Compiles the training step for every crop and batch; nothing is run or allocated.

    Args:
      config: of the run.
      crops: heights and widths in pixels.
      batches: images per device, or group of `train.rows` devices.
      memory: bytes of the device; asked of the device when not given.
    """
    params = _state(config, crops[0])[0].params
    return Plan(
        points=tuple(measure(config, crop, batch) for crop in crops for batch in batches),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        memory=device_memory() if memory is None else memory,
        backend=jax.default_backend(),
        remat=steps.without_remat(config) is not None,
    )


def measure(config: Config, crop: tuple[int, int], batch: int) -> Point:
    """Compiles the training step of one device for a crop and a batch."""
    lowered = lower(config, crop, batch, jax.local_devices()[: config.train.rows])
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Point(
        crop=crop,
        batch=batch,
        flops=steps.operations(lowered),
        traffic=compiled.cost_analysis()["bytes accessed"],
        resident=memory.argument_size_in_bytes + new,
        temporary=memory.temp_size_in_bytes,
    )


def lower(
    config: Config, crop: tuple[int, int], batch: int, devices: Sequence[jax.Device]
) -> jax.stages.Lowered:
    """Returns the training step for a crop and a batch, not yet compiled.

    The batch is that of each device, or of each group of `train.rows` devices.
    """
    groups = len(devices) // config.train.rows
    config = dataclasses.replace(config, augment=dataclasses.replace(config.augment, crop=crop))
    shapes, tx = _state(config, crop)
    step = steps.parallel(steps.train_step, config=config, tx=tx, donate=True, devices=devices)
    canvas = [max(sides) for sides in zip(config.data.canvas, crop, strict=True)]
    images = {
        "image": jax.ShapeDtypeStruct((groups, batch, *canvas, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((groups, batch, *canvas), jnp.uint8),
    }
    return step.lower(shapes, images, jax.eval_shape(jax.random.key, 0))


def device_memory() -> int | None:
    """Returns the bytes a program may use on the first device, None when it does not tell."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (device.memory_stats() or {}).get("bytes_limit")


def _state(
    config: Config, size: tuple[int, int]
) -> tuple[state.TrainState, optax.GradientTransformation]:
    """Returns the shapes of a run's state, and its optimiser."""
    init = functools.partial(state.init_variables, config.model, size=size, crf=config.crf)
    variables = jax.eval_shape(init, jax.random.key(0))
    tx = state.transformation(config, variables["params"])
    return jax.eval_shape(functools.partial(state.create, tx=tx), variables), tx
