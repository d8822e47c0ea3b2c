"""Rows of large images over several devices, the second axis of the mesh.

With `train.rows=R` each image lies on R devices, a band of its rows on each. The compiler exchanges
the rows that a convolution needs of the next band; results are those of one device to rounding.
On several devices of a CPU, convolutions by taps or Fourier transforms gather whole maps.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from segjax.models.atrous import AtrousConv

BATCH, ROWS = "batch", "rows"  # axes of the mesh


def mesh(devices: Sequence[jax.Device], rows: int = 1) -> jax.sharding.Mesh:
    """Lays devices out for batches, [D], or for batches and rows, [D / rows, rows].

    Raises:
      ValueError: the devices of each process cannot be divided into groups of `rows`.
    """
    of_hosts = collections.Counter(device.process_index for device in devices)
    if any(own % rows for own in of_hosts.values()):
        where = " of each host" if len(of_hosts) > 1 else ""
        raise ValueError(
            f"train.rows is {rows}, which does not divide the number of devices{where}, "
            f"{min(of_hosts.values())}; write --config.train.rows=1, or a number that does"
        )
    devices = sorted(devices, key=lambda device: device.process_index)
    if rows == 1:
        return jax.sharding.Mesh(np.array(devices), (BATCH,))
    return jax.sharding.Mesh(np.array(devices).reshape(-1, rows), (BATCH, ROWS))


def possible(rows: int) -> int:
    """Returns how many bands a run that was trained with `rows` is scored with on this machine."""
    return math.gcd(rows, jax.local_device_count())


def split(x: jax.Array, rows: int) -> jax.Array:
    """Places an array [B, H, ...] inside a mapped step with its rows over the axis "rows"."""
    if rows == 1:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(None, ROWS))


def check(model: nn.Module, size: tuple[int, int], rows: int) -> None:
    """Refuses images whose rows cannot be divided, or whose bands are lower than a kernel reaches.

    A kernel that reaches beyond the next band makes the compiler gather the whole map on
    each device. The result would be right, but each device would need the memory that several were
    taken to save.

    Args:
      model: the network.
      size: height and width in pixels of what it is fed.
      rows: bands of an image.

    Raises:
      ValueError: with what to write instead.
    """
    if rows == 1:
        return
    layers: list[tuple[int, int, str]] = []  # rows reached, height, name

    def note(
        call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        layer = context.module
        if isinstance(layer, AtrousConv) and context.method_name == "__call__":
            reached = layer.rate * (layer.kernel_size[0] - 1) // 2
            layers.append((reached, arguments[0].shape[1], "/".join(layer.path)))
        return call(*arguments, **keywords)

    image = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    low = lambda n: next((layer for layer in layers if layer[1] < layer[0] * n), None)
    # A divisor of `rows` divides the number of devices too.
    most = max(n for n in range(1, rows) if n == 1 or not (rows % n or size[0] % n or low(n)))
    advice = f"write --config.train.rows={most}, its largest divisor that will do"
    if size[0] % rows:
        raise ValueError(
            f"train.rows is {rows}, which does not divide the {size[0]} rows of an image; {advice}"
            ", or another height by augment.crop and data.canvas"
        )
    if layer := low(rows):
        reached, height, name = layer
        raise ValueError(
            f"train.rows is {rows}: of the {height} rows of {name}'s map each device would have "
            f"{height // rows}, but at its rate the layer reaches {reached}, beyond the next "
            f"device; {advice}"
        )
