"""Writes the outputs of the torch networks, for checks without torch.

    python -m tests.golden.make [NAME ...]  # all, or some of tests.reference.cases and "training"

An .npz holds no weights: those are `tests.reference.fill` of the stored names and shapes.
"""

import importlib.metadata
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from segjax.pretrained import files
from tests.reference import cases, training

HERE = pathlib.Path(__file__).parent


def main() -> None:
    import torch

    torch.set_num_threads(2)
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision")
    )
    names = sys.argv[1:] or [*cases.CASES, "training"]
    for name in (name for name in names if name != "training"):
        case = cases.CASES[name]
        module, shapes = cases.counterpart(name)
        outputs = {
            f"{height}x{width}/{key}": output
            for height, width in case.sizes
            for key, output in zip(
                case.outputs, cases.run(module, cases.image(name, (height, width))), strict=True
            )
        }
        note = (
            f"{type(module).__module__}.{type(module).__name__} in evaluation mode, {versions}, "
            "CPU, float32; weights and images from tests.reference.fill; made by tests.golden.make"
        )
        np.savez_compressed(HERE / f"{name}.npz", note=note, shapes=json.dumps(shapes), **outputs)
        print(name, (HERE / f"{name}.npz").stat().st_size)
    if "training" not in names:
        return
    weights, found, outputs = training.step()
    image = jax.ShapeDtypeStruct((1, *training.SIZE, 3), jnp.float32)
    variables = jax.eval_shape(training.MODEL.init, jax.random.key(0), image)
    paths = {path: leaf.shape for path, leaf in files.flatten(variables).items()}
    note = (
        f"tests.reference.pspnet.PSPNet in training mode, {versions}, CPU, float64; see "
        "tests.reference.training; made by tests.golden.make"
    )
    np.savez_compressed(
        HERE / "training.npz",
        note=note,
        shapes=json.dumps({name: np.shape(value) for name, value in weights.items()}),
        probe=training.probe(training.as_variables(found, paths)),
        **outputs,
    )


if __name__ == "__main__":
    main()
