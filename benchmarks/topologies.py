"""What every network and every filter of the CRF needs on a TPU, compiled without one.

    python benchmarks/topologies.py [--topologies v5e:4x4 ...] [--rows NAMES] [--quick] [--json F]

Every row is saved when it is done; the same command goes on where it was stopped. A row that is
there is not compiled again: remove it, or the file, for today's numbers. With --quick the compiler
makes the least effort, and a row takes minutes instead of up to an hour; without, such rows are
compiled anew. Networks have the paper's configuration and crop, 4 images per chip, and mean a
training step; filters are 10 iterations of mean field on one image of 321x321 and 21 classes with
DeepLab v2's kernels, the lattice provided for a photograph. docs/tasks/pods.md shows the file as a
table.

XLA counts a loop once. So for filters the operations of all matrix products, and the numbers
gathered, scattered and sorted, are counted here, with the repetitions of loops.
"""

import argparse
import collections
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import subprocess
import time
from importlib import metadata
from typing import Any

import crf as crf_benchmark
import jax
import jax.numpy as jnp

from segjax import crf, files, topologies
from segjax.cli import overrides

ROOT = pathlib.Path(__file__).parents[1]
TOPOLOGIES = ("v5e:4x4", "v6e:4x4", "v5p:2x2x4")
BATCH = 4  # images per chip
NETWORKS = {
    "SegNet-Basic": ("segnet_basic_camvid",),
    "SegNet": ("segnet_camvid",),
    "DeepLab v1": ("deeplab_v1_voc",),
    "DeepLab v2 VGG16": ("deeplab_v2_vgg_voc",),
    "DeepLab v3-50": ("deeplab_v3_voc", "--config.model.depth=50"),
    "PSPNet-50": ("pspnet_ade20k",),
    "DeepLab v2 ResNet-101": ("deeplab_v2_resnet101_voc",),
    "DeepLab v3 cascade": ("deeplab_v3_cascade_voc",),
}
FILTERS: dict[str, dict[str, Any]] = {
    "lattice": {},
    "lattice-separable": {"spatial_filter": "separable"},
    "exact": {"filter": "exact"},
    "nystrom": {"filter": "nystrom"},
}
IMAGE, CLASSES = (321, 321), 21
Row = dict[str, Any]


def main() -> None:
    """Compiles what the file does not have yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*NETWORKS, *FILTERS]
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES, metavar="NAME")
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--json", type=pathlib.Path, default=ROOT / "benchmarks/results/topologies.json"
    )
    parser.add_argument("--quick", action="store_true", help="with the compiler's least effort")
    args = parser.parse_args()
    for topology in map(topologies.find, args.topologies):
        topologies.compile_only(topology)  # before JAX compiles anything: it quietens libtpu
        for name in args.rows:
            same = lambda row: (row["topology"], row["name"]) == (topology.name, name)  # noqa: B023
            if any(same(row) and (args.quick or not row["quick"]) for row in read(args.json)):
                continue
            start = time.perf_counter()
            make = network if name in NETWORKS else filtered
            row = make(name, topology, args.quick)
            row |= {"seconds": round(time.perf_counter() - start), **origin()}
            others = [row for row in read(args.json) if not same(row)]
            files.write_json(args.json, {"rows": [*others, row]})
            print(json.dumps(row), flush=True)
            jax.clear_caches()


def read(file: pathlib.Path) -> list[Row]:
    return json.loads(file.read_text())["rows"] if file.exists() else []


def origin() -> Row:
    """Returns where a row comes from."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    versions = {name: metadata.version(name) for name in ("jax", "libtpu")}
    return {"commit": commit.stdout.strip(), **versions}


def network(name: str, topology: topologies.Slice, quick: bool) -> Row:
    """Returns the row of a training step."""
    config = overrides.read(NETWORKS[name][0], list(NETWORKS[name][1:]))
    crop = config.augment.crop if min(config.augment.crop) else config.data.canvas
    row = {
        "topology": topology.name,
        "kind": "network",
        "name": name,
        "config": " ".join(NETWORKS[name]),
        "crop": crop,
        "batch": BATCH,
        "dtype": config.model.dtype,
        "quick": quick,
    }
    try:
        program = topologies.train_step(config, topology, crop, BATCH, quick=quick)
        return row | dataclasses.asdict(program)
    except topologies.TooLargeError as error:
        return row | {"too_large": str(error)}


def filtered(name: str, topology: topologies.Slice, quick: bool) -> Row:
    """Returns the row of a filter of the CRF, on one chip."""
    kernels, options = crf.PRESETS["deeplab_v2_resnet101"], dict(FILTERS[name])
    row = {"topology": topology.name, "kind": "filter", "name": name, "crop": IMAGE, "batch": 1}
    row["quick"] = quick
    if options.get("filter", "lattice") == "lattice":
        photograph = crf_benchmark.fit(crf_benchmark.photographs([])[0], IMAGE)
        options["capacity"] = row["capacity"] = crf.plan(photograph, kernels)
    chip = jax.sharding.SingleDeviceSharding(topologies.compile_only(topology)[0])
    run = functools.partial(crf.mean_field, kernels=kernels, num_iterations=10, **options)
    arrays = (
        jax.ShapeDtypeStruct((*IMAGE, CLASSES), jnp.float32),
        jax.ShapeDtypeStruct((*IMAGE, 3), jnp.uint8),
    )
    traced = jax.jit(run, in_shardings=chip).trace(*arrays)
    counts = count(traced.jaxpr.jaxpr)
    row |= {what: counts[what] for what in ("products", "gathered", "scattered", "sorted")}
    try:
        return row | dataclasses.asdict(topologies.compiled(traced.lower(), quick=quick))
    except topologies.TooLargeError as error:
        return row | {"too_large": str(error)}
    except jax.errors.JaxRuntimeError as error:
        return row | {"fails": str(error).splitlines()[0]}


def count(jaxpr: Any) -> collections.Counter:
    """Counts operations of matrix products, and numbers that are gathered, scattered and sorted.

    Of the branches of a condition, here the same function for several platforms, the largest.
    """
    total: collections.Counter = collections.Counter()
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        size = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total["products"] += 2 * size * math.prod(shape[i] for i in contracted)
        elif name == "gather":
            total["gathered"] += size
        elif name.startswith("scatter"):
            total["scattered"] += math.prod(equation.invars[2].aval.shape)
        elif name == "sort":
            total["sorted"] += size
        elif name == "cond":
            for key, value in _largest(parameters["branches"]).items():
                total[key] += value
        else:
            values = [v if isinstance(v, tuple) else (v,) for v in parameters.values()]
            for inner in (getattr(v, "jaxpr", v) for v in itertools.chain(*values)):
                if hasattr(inner, "eqns"):
                    for key, value in count(inner).items():
                        total[key] += value * parameters.get("length", 1)
    return total


def _largest(branches: Any) -> collections.Counter:
    largest: collections.Counter = collections.Counter()
    for branch in branches:
        largest |= count(branch.jaxpr)
    return largest


if __name__ == "__main__":
    main()
