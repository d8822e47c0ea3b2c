"""A trained network as one file that JAX alone runs, on CPU, CUDA and TPU.

    from segjax.predict import export

    export.export("runs/a", "model.stablehlo")

Pre- and post-processing are inside: the program takes uint8 images [B, H, W, 3] and returns class
ids [B, H, W]. To load it you need jax, numpy and flatbuffers, but not this package:

    import jax
    import numpy as np

    with open("model.stablehlo", "rb") as file:
        program = jax.jit(jax.export.deserialize(file.read()).call)
    image = np.zeros((1, 360, 480, 3), np.uint8)  # any batch, height and width; RGB
    label = np.asarray(program(image)["labels"])  # uint8 [1, 360, 480]

The file holds no options of the compiler. On a CPU the program is faster with those of
`segjax.compiling.options()`, as `jax.jit(..., compiler_options=options)`. They depend on the JAX
that runs it, so print them where it runs.

`model.json` beside it names the classes and their colours.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export

from segjax import paths
from segjax.files import write_bytes
from segjax.predict import crf_choice, program, protocols
from segjax.predict.crf_choice import Choice
from segjax.predict.program import Kernels, Size
from segjax.predict.protocols import Protocol
from segjax.predict.segmenter import Segmenter, load
from segjax.pretrained.files import CONFIG, WEIGHTS, flatten, unflatten

MULTIPLE = 32  # pixels; images of open size are filled up to it, the coarsest grid of a network
PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    source: str | os.PathLike[str] | Segmenter,
    path: str | os.PathLike[str],
    *,
    size: Size | None = None,
    batch: int | None = None,
    protocol: str | Protocol = "whole",
    crf: Choice = None,
    probs: bool = False,
    weights: str = "inside",
    platforms: Sequence[str] = PLATFORMS,
) -> list[pathlib.Path]:
    """Writes a trained network as a program.

    Args:
      source: what `segjax.load` takes, or gives.
      path: of the program, for example model.stablehlo; on a disk of this machine.
      size: height and width of the images; None leaves them open. Images of open size are filled
        up with the mean colour to the next multiple of 32 pixels, one more where corners are
        aligned: `canvas` of it.
      batch: images of a call; None leaves it open. With a size and a batch all shapes are fixed, as
        compilers need them that know StableHLO alone.
      protocol: a key of `protocols.PROTOCOLS`, or your own.
      crf: as in `crf_choice.choose`; needs a size.
      probs: whether the program returns the probabilities, float32 [B, H, W, C], too.
      weights: "inside" the program; or "beside" it, in model.safetensors: the program then takes
        them as its first argument, the dictionary that `safetensors.numpy.load_file` returns.
      platforms: to run on.

    Returns:
      The files written: the program, its .json, and its .safetensors if the weights are beside.

    Raises:
      ValueError: the network or an option is none that works; or a file cannot be written.
    """
    if weights not in ("inside", "beside"):
        raise ValueError(f"weights={weights!r}; accepted are 'inside' and 'beside'")
    unknown = set(platforms) - {*PLATFORMS, "rocm"}
    if unknown or not platforms:
        raise ValueError(f"platforms={tuple(platforms)}; accepted are {', '.join(PLATFORMS)}")
    path = paths.local(path, "path")
    if path.suffix in (".json", ".safetensors"):
        raise ValueError(f"{path}: the program's own ending is wanted, for example .stablehlo")
    stem = path.name.removesuffix(".stablehlo")
    about, beside = (path.with_name(f"{stem}.{kind}") for kind in ("json", "safetensors"))
    if about.name == CONFIG or beside.name == WEIGHTS:
        raise ValueError(
            f"{path}: {about.name} and {beside.name} beside it would be files of a folder of "
            "weights; give another name"
        )
    if batch is not None and batch < 1:
        raise ValueError(f"batch={batch}; at least 1 is needed")
    seg = source if isinstance(source, Segmenter) else load(source)
    if isinstance(protocol, str):
        protocol = protocols.find(protocol)
    kernels = crf_choice.choose(crf, protocol, seg.config.model, seg.crfs)
    if kernels and size is None:
        raise ValueError(
            "the lattice of a CRF is of a fixed size; write size=(height, width), as a command "
            "--size HxW"
        )
    function = _function(seg, size, protocol, kernels, probs)
    arrays = flatten(seg.variables)
    if weights == "inside":
        call, first = functools.partial(function, arrays), ()
    else:
        call = function
        first = ({n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in arrays.items()},)
    height, width = size or ("h", "w")
    shape = jax_export.symbolic_shape(f"{batch or 'b'}, {height}, {width}, 3")
    image = jax.ShapeDtypeStruct(shape, jnp.uint8)
    try:
        exported = jax_export.export(jax.jit(call), platforms=platforms)(*first, image)
    except (jax.errors.InconclusiveDimensionOperation, jax.errors.ConcretizationTypeError) as error:
        raise ValueError(
            f"{type(seg.config.model).__name__} cannot be exported for every size with this "
            "protocol; write size=(height, width), as a command --size HxW. "
            f"({str(error).splitlines()[0]})"
        ) from error

    files = {path: bytes(exported.serialize())}
    files[about] = _description(seg, shape, probs, weights, platforms)
    if weights == "beside":
        host = {name: np.asarray(array) for name, array in arrays.items()}
        files[beside] = safetensors.numpy.save(host)
    for file, content in files.items():
        write_bytes(file, content)
    return list(files)


def canvas(size: Size, *, align_corners: bool) -> Size:
    """Returns what a program for open sizes fills an image up to.

    A prediction with this `canvas` is the program's.
    """
    return tuple(-(-side // MULTIPLE) * MULTIPLE + int(align_corners) for side in size)


def _function(
    seg: Segmenter,
    size: Size | None,
    protocol: Protocol,
    kernels: Kernels,
    probs: bool,
) -> Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]]:
    """Returns the function of variables by name and images that is written."""
    config = seg.config

    def function(arrays: dict[str, jax.Array], image: jax.Array) -> dict[str, jax.Array]:
        batch, height, width, _ = image.shape
        if size is None:
            # Padding puts one number everywhere: the colour is put in by a difference.
            filled = canvas((height, width), align_corners=config.loss.align_corners)
            fill = jnp.asarray(seg.fill)[None, None, None]
            border = [(0, 0), (0, filled[0] - height), (0, filled[1] - width), (0, 0)]
            image = jnp.pad(image - fill, border) + fill
        sizes = jnp.stack([jnp.array(height), jnp.array(width)])[None].astype(jnp.int32)
        labels, soft = program.segment(
            {"batch_stats": {}} | unflatten(arrays),  # which networks without BatchNorm have not
            image,
            jnp.broadcast_to(sizes, (batch, 2)),
            config=config,
            protocol=protocol,
            kernels=kernels,
            probs=probs,
        )
        outputs: dict[str, Any] = {"labels": labels} | ({"probs": soft} if probs else {})
        return {name: output[:, :height, :width] for name, output in outputs.items()}

    return function


def _description(
    seg: Segmenter,
    shape: Sequence[Any],
    probs: bool,
    weights: str,
    platforms: Sequence[str],
) -> bytes:
    names = {"b": "batch", "h": "height", "w": "width"}
    values = {
        "arguments": ["weights", "image"] if weights == "beside" else ["image"],
        "image": ["uint8", [names.get(str(side), side) for side in shape], "RGB"],
        "outputs": ["labels", "probs"] if probs else ["labels"],
        "weights": weights,
        "platforms": list(platforms),
        "jax": jax.__version__,
        "classes": list(seg.classes),
        "palette": [list(colour) for colour in seg.palette],
    }
    return (json.dumps(values, indent=1) + "\n").encode()
