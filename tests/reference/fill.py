"""Weights and images that everyone can make again: a counter-based generator, filled by name.

Only the bits of numpy's Philox are used, which numpy promises never to change, so a stored output
needs neither its weights nor torch to be checked.
"""

import hashlib

import numpy as np


def uniform(name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """Returns float32 values in [low, high) that depend on the name alone."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw((int(np.prod(shape)) + 1) // 2)
    bits = raw.view(np.uint32)[: int(np.prod(shape))]
    unit = (bits >> 8).astype(np.float32) * np.float32(2**-24)
    return (np.float32(low) + np.float32(high - low) * unit).reshape(shape)


def weights(shapes: dict[str, tuple[int, ...]], seed: str) -> dict[str, np.ndarray]:
    """Returns one array per name: kernels of gain one, and every kind of BatchNorm value random."""
    filled = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            filled[name] = np.zeros((), np.int64)
            continue
        if len(shape) > 1 and max(shape) < int(np.prod(shape)):
            bound = (3 / np.prod(shape[1:])) ** 0.5
            low, high = -bound, bound
        elif name.endswith(("running_var", "weight", "scale")):
            low, high = 0.5, 1.5
        else:
            low, high = -0.2, 0.2
        filled[name] = uniform(f"{seed}/{name}", shape, low, high)
    return filled


def image(shape: tuple[int, ...], seed: str) -> np.ndarray:
    """Returns an NHWC image with values in [-1, 1)."""
    return uniform(f"{seed}/image", shape, -1.0, 1.0)
