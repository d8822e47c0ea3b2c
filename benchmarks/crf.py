"""Time, memory and agreement of every filter of the fully connected CRF, beside pydensecrf.

    python benchmarks/crf.py [--sizes HxW ...] [--sets A B C] [--filters NAMES] [--json FILE]
    python benchmarks/crf.py --memory [...]
    python benchmarks/crf.py --sheet FILE [--images PHOTOGRAPH ...]

What is timed, lattice construction and 10 iterations, gives marginals from logits and an image;
compilation does not count. pydensecrf (one thread) does the same where it is installed, in turns.
Labels and marginals are compared first: the lattice must give pydensecrf's labels. Filters:

- lattice: compiled for the number of vertices that `segjax.crf.plan` tells, which does not count.
- lattice-unplanned: `mean_field` as one calls it first, outside a compiled program and without a
  capacity, which plans each time and checks what it is given.
- lattice-separable: the spatial kernel by exact convolution instead of a lattice.
- exact: all pairs of pixels, where they are at most {pairs:g} on this kind of device, counted once
  for each iteration; the others would take minutes.
- nystrom, nystrom-planar: matrix products; the spatial kernel by convolution, or on a lattice.

Columns: milliseconds per image, median; ratio to pydensecrf; share of its labels that are the same,
and the largest difference of a marginal; share of the labels of `exact`; vertices per pixel that
the lattice provides for; memory; seconds of compilation (of the first call, where unplanned).

Memory is what XLA plans for the program: arguments, results and temporaries. `--memory` measures
another thing, instead of times: the largest resident memory of a process that runs one case alone,
Python, JAX and compilation included (Linux). Numbers of earlier runs stay in the JSON file and in
the table, so that a slow machine can go case by case.

Photographs are those of scikit-learn and scikit-image where these are installed, or the reduced
ones of the tests. They are reduced to the size, never enlarged: smooth pictures need few vertices.
Where one is too small it goes on mirrored. Logits are such as a network of stride 8 gives: two
random numbers for each cell of 8x8 pixels and class, more for a class chosen by its brightness.
"""

import argparse
import functools
import itertools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from segjax import crf
from segjax.report import pictures

GPU = jax.default_backend() != "cpu"
GOLDEN = pathlib.Path(__file__).parents[1] / "tests/crf/golden"
ITERATIONS = 10
MOST_PAIRS = 1e12 if GPU else 7e10  # 513x513 on a GPU, 240x320 on a CPU
SLOW = 10.0  # seconds of a run after which it is not repeated
FILTERS: dict[str, dict[str, Any]] = {
    "lattice": {},
    "lattice-unplanned": {},
    "lattice-separable": {"spatial_filter": "separable"},
    "exact": {"filter": "exact"},
    "nystrom": {"filter": "nystrom"},
    "nystrom-planar": {"filter": "nystrom", "spatial_filter": "lattice"},
}
PEER = "pydensecrf"
# sigma_xy, sigma_rgb, weight of the bilateral kernel, sigma and weight of the spatial one
SETS = {"A": (80, 13, 10, 3, 3), "B": (49, 5, 4, 3, 3), "C": (67, 3, 4, 3, 3)}
Case = tuple[int, int, int, str]  # height, width, batch, set
Row = dict[str, Any]


def main() -> None:
    """Measures, prints the table, writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__.format(pairs=MOST_PAIRS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = ["240x320", "375x500", "513x513", "1024x2048"]
    parser.add_argument("--sizes", type=size, nargs="+", default=[*map(size, sizes)], metavar="HxW")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--filters", nargs="+", choices=[*FILTERS, PEER], default=[*FILTERS, PEER])
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 8] if GPU else [1], help="images; 8 at 513x513"
    )
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each")
    parser.add_argument("--small", action="store_true", help="32x48 pixels, set A, on any machine")
    parser.add_argument("--memory", action="store_true", help="memory of processes, not times")
    parser.add_argument("--images", type=pathlib.Path, nargs="+", default=[], help="photographs")
    parser.add_argument("--json", type=pathlib.Path, help="where numbers are kept")
    parser.add_argument("--sheet", type=pathlib.Path, help="draw pictures instead: a PNG file")
    args = parser.parse_args()
    if args.small:
        args.sizes, args.sets, args.rounds = [(32, 48)], ["A"], 2
    images = photographs(args.images)
    if args.sheet:
        small = (48, 64) if args.small else (120, 160)
        pictures.write(args.sheet, sheet([fit(image, small) for image in images[:3]]))
        return

    console = rich.console.Console(width=130)
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores of {platform.machine()}"
    rows = merge(args.json, [])
    for height, width in args.sizes:
        for batch, name in itertools.product(args.batch, args.sets):
            if batch > 1 and (height, width) not in ((513, 513), (32, 48)):
                continue
            case = (height, width, batch, name)
            filters = [f for f in args.filters if f != "exact" or pairs(case) <= MOST_PAIRS]
            with console.status(f"{height}x{width}, batch {batch}, set {name}"):
                measured = measure(case, filters, images, args)
            rows = merge(args.json, [*rows, *({"device": device, **row} for row in measured)])
    console.print(table([row for row in rows if row["device"] == device], device))


def size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


def pairs(case: Case) -> float:
    height, width, batch, _ = case
    return batch * (height * width) ** 2 * (ITERATIONS + 1)  # the sums of the kernel are one more


def photographs(files: list[pathlib.Path]) -> list[np.ndarray]:
    """Returns RGB uint8 [H, W, 3] of several sizes."""
    if files:
        found = [cv2.imread(str(file), cv2.IMREAD_COLOR) for file in files]
        if any(image is None for image in found):
            raise SystemExit(f"{files[[i is None for i in found].index(True)]} is not an image")
        return [np.ascontiguousarray(image[..., ::-1]) for image in found]
    try:
        import skimage.data
        from sklearn.datasets import load_sample_image
    except ImportError:
        stored = [np.load(GOLDEN / f"{n}.npz")["image_png"] for n in ("china", "astronaut")]
        stored.append(np.load(GOLDEN / "chelsea.npz")["image_png"])
        found = [cv2.imdecode(image, cv2.IMREAD_COLOR) for image in stored]
        return [np.ascontiguousarray(image[..., ::-1]) for image in found]
    return [load_sample_image("china.jpg"), skimage.data.astronaut(), skimage.data.chelsea()]


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduces an image, and crops it or goes on mirrored, to height and width."""
    scale = min(1.0, max(size[0] / image.shape[0], size[1] / image.shape[1]))
    reduced = [round(n * scale) for n in image.shape[1::-1]]
    image = cv2.resize(image, reduced, interpolation=cv2.INTER_AREA)
    missing = [(0, max(s - n, 0)) for s, n in zip(size, image.shape)]
    image = np.pad(image, (*missing, (0, 0)), mode="symmetric")
    top, left = ((n - s) // 2 for s, n in zip(size, image.shape))
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])


def upsample(cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bilinear, half-pixel centres: cells [h, w, C] to float32 [H, W, C]."""
    size = shape[1::-1]
    planes = [cv2.resize(c, size, interpolation=cv2.INTER_LINEAR) for c in np.moveaxis(cells, 2, 0)]
    return np.stack(planes, -1).astype(np.float32)


def problem(case: Case, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits float32 [B, H, W, C] and images uint8 [B, H, W, 3]."""
    height, width, batch, _ = case
    classes = 19 if (height, width) == (1024, 2048) else 21
    fitted = [fit(images[i % len(images)], (height, width)) for i in range(batch)]
    rng, logits = np.random.default_rng(0), []
    for image in fitted:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        cells = cv2.resize(grey, (-(-width // 8), -(-height // 8)), interpolation=cv2.INTER_AREA)
        noise = rng.standard_normal((*cells.shape, classes), np.float32)
        logits.append(upsample(3 * np.eye(classes)[cells // 43] + 1.3 * noise, image.shape))
    return np.stack(logits), np.stack(fitted)


def kernels(name: str) -> tuple[crf.Kernel, ...]:
    sigma_xy, sigma_rgb, weight, sigma, spatial_weight = SETS[name]
    return (crf.Bilateral(sigma_xy, sigma_rgb, weight), crf.Spatial(sigma, spatial_weight))


def pydensecrf(logits: np.ndarray, image: np.ndarray, name: str) -> np.ndarray:
    """Marginals of the reference, float32 [B, H, W, C]."""
    from pydensecrf.densecrf import DenseCRF2D

    sigma_xy, sigma_rgb, weight, sigma, spatial_weight = SETS[name]
    results = []
    for one, photograph in zip(logits, image):
        height, width, classes = one.shape
        model = DenseCRF2D(width, height, classes)
        model.setUnaryEnergy(np.ascontiguousarray(-one.reshape(-1, classes).T))
        model.addPairwiseGaussian(sxy=sigma, compat=spatial_weight)
        model.addPairwiseBilateral(sxy=sigma_xy, srgb=sigma_rgb, rgbim=photograph, compat=weight)
        results.append(np.asarray(model.inference(ITERATIONS)).T.reshape(one.shape))
    return np.stack(results)


def has_peer() -> bool:
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        return False
    return True


def prepare(
    name: str, case: Case, logits: np.ndarray, image: np.ndarray
) -> tuple[Callable[[], Any], Row]:
    """Returns what runs a filter, or the reference, and what is known of it."""
    if name == PEER:
        return functools.partial(pydensecrf, logits, image, case[-1]), {}
    ours, options = kernels(case[-1]), {"num_iterations": ITERATIONS, **FILTERS[name]}
    arguments = (jnp.asarray(logits), jnp.asarray(image), ours)
    row: Row = {}
    if name == "lattice-unplanned":
        run = functools.partial(crf.mean_field, *arguments, **options)
        start = time.perf_counter()
        jax.block_until_ready(run())
        return lambda: jax.block_until_ready(run()), {"compile_s": time.perf_counter() - start}
    if name.startswith("lattice"):
        options["capacity"] = max(crf.plan(one, ours) for one in image)
        row["vertices_per_pixel"] = options["capacity"] / (case[0] * case[1])
    start = time.perf_counter()
    program = jax.jit(functools.partial(crf.mean_field, **options)).lower(*arguments).compile()
    row["compile_s"] = time.perf_counter() - start
    memory = program.memory_analysis()
    row["program_bytes"] = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    )
    return lambda: jax.block_until_ready(program(*arguments)), row


def measure(
    case: Case, filters: list[str], images: list[np.ndarray], args: argparse.Namespace
) -> list[Row]:
    """Returns a row for each filter."""
    height, width, batch, parameters = case
    identity = {"size": f"{height}x{width}", "batch": batch, "set": parameters}
    filters = [f for f in filters if f != PEER or has_peer()]
    if args.memory:
        peaks = {name: process_bytes(case, name, args.images) for name in filters}
        return [{**identity, "filter": n, "process_bytes": peak} for n, peak in peaks.items()]
    logits, image = problem(case, images)
    prepared = {name: prepare(name, case, logits, image) for name in filters}
    times: dict[str, list[float]] = {name: [] for name in prepared}
    q = {}
    for name, (run, _) in prepared.items():
        start = time.perf_counter()
        q[name] = np.asarray(run())
        if time.perf_counter() - start > SLOW:
            times[name].append(time.perf_counter() - start)
    agreement = compare(q)
    for _, (name, (run, _)) in itertools.product(range(args.rounds), prepared.items()):
        if not times[name] or times[name][0] < SLOW:
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(t) for name, t in times.items()}
    return [
        {
            **identity,
            "filter": name,
            "runs": len(times[name]),
            "ms_per_image": 1e3 * median[name] / batch,
            "fastest_ms_per_image": 1e3 * min(times[name]) / batch,
            "ratio": median[name] / median[PEER] if PEER in median else None,
            **row,
            **agreement[name],
        }
        for name, (_, row) in prepared.items()
    ]


def compare(q: dict[str, np.ndarray]) -> dict[str, Row]:
    """Compares marginals with pydensecrf's, and labels with those of the exact filter."""
    labels, rows = {name: array.argmax(-1) for name, array in q.items()}, {}
    for name in q:
        row = rows[name] = {}
        if "exact" in q:
            row["labels_of_exact"] = float((labels[name] == labels["exact"]).mean())
        if PEER not in q:
            continue
        row["labels_of_peer"] = float((labels[name] == labels[PEER]).mean())
        row["largest_difference"] = float(np.abs(q[name] - q[PEER]).max())
        if name in ("lattice", "lattice-unplanned") and row["labels_of_peer"] < 0.9999:
            raise SystemExit(f"{name} gives other labels than pydensecrf: {row}")
    return rows


def process_bytes(case: Case, name: str, images: list[pathlib.Path]) -> int:
    """Peak resident memory of a new process that runs one filter once."""
    code = (
        f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r}); import crf\n"
        f"images = crf.photographs({[*map(str, images)]!r})\n"
        f"crf.prepare({name!r}, {case!r}, *crf.problem({case!r}, images))[0]()\n"
        "print(crf.peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    return int(done.stdout)


def peak() -> int:
    """Peak resident memory of this process in bytes; getrusage would tell the parent's as well."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def merge(file: pathlib.Path | None, rows: list[Row]) -> list[Row]:
    """Adds rows to those in the file of earlier runs, and returns all."""

    def key(row: Row) -> tuple:
        height, width = size(row["size"])
        return (row["device"], height * width, row["size"], row["batch"], row["set"])

    order = [*FILTERS, PEER]
    known = json.loads(file.read_text())["rows"] if file and file.exists() else []
    merged: dict[tuple, Row] = {}
    for row in (*known, *rows):
        identity = (*key(row), order.index(row["filter"]))
        merged[identity] = merged.get(identity, {}) | row
    result = [merged[identity] for identity in sorted(merged)]
    if file:
        file.write_text(json.dumps({"rows": result}, indent=1) + "\n")
    return result


def table(rows: list[Row], device: str) -> rich.table.Table:
    """Returns a line for each row."""
    made = rich.table.Table(title=f"{ITERATIONS} iterations on {device}", padding=(0, 0, 0, 1))
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "size": ("size", str),
        "batch": ("batch", str),
        "set": ("set", str),
        "filter": ("filter", str),
        "ms": ("ms_per_image", "{:,.0f}".format if not GPU else "{:,.1f}".format),
        "ratio": ("ratio", "{:.2f}".format),
        "labels": ("labels_of_peer", "{:.4%}".format),
        "max dQ": ("largest_difference", "{:.1e}".format),
        "as exact": ("labels_of_exact", "{:.2%}".format),
        "vertices": ("vertices_per_pixel", "{:.3g}".format),
        "XLA MB": ("program_bytes", lambda b: f"{b / 1e6:,.0f}"),
        "process MB": ("process_bytes", lambda b: f"{b / 1e6:,.0f}"),
        "compile s": ("compile_s", "{:.1f}".format),
    }
    for name in columns:
        side = "left" if name in ("set", "filter") else "right"
        made.add_column(name, justify=side, no_wrap=True)
    for row in rows:
        found = [(row.get(key), show) for key, show in columns.values()]
        made.add_row(*("-" if value is None else show(value) for value, show in found))
    return made


def sheet(images: list[np.ndarray]) -> np.ndarray:
    """Draws each image, the best class of its logits, lattice, exact, and where they differ.

    Classes are six colours of the image; the logits, nearness to them in cells of 8x8 pixels, plus
    noise. Parameter set B; pixels are drawn twice as large.
    """
    import colorsys

    palette = [
        tuple(round(255 * c) for c in colorsys.hsv_to_rgb(i / 6, 0.45 + 0.1 * (i % 2), 0.9))
        for i in range(6)
    ]
    titles = ("image", "best class of the logits", "lattice", "exact", "lattice against exact")
    width = 2 * images[0].shape[1]
    lines = [np.concatenate([caption(title, width) for title in titles], 1)]
    for image in images:
        logits = color_logits(image, len(palette))
        infer = functools.partial(crf.mean_field, logits, image, kernels("B"))
        lattice, exact = (np.asarray(infer(filter=f).argmax(-1)) for f in ("lattice", "exact"))
        shown = [
            image,
            *(pictures.colourize(label, palette) for label in (logits.argmax(-1), lattice, exact)),
            pictures.over(pictures.faded(image), pictures.errors(exact, lattice)),
        ]
        shown = [cv2.resize(p, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST) for p in shown]
        margin = ((4, 4), (4, 4), (0, 0))
        lines.append(np.concatenate([np.pad(p, margin, constant_values=255) for p in shown], 1))
        share = f"{(lattice == exact).mean():.2%} of pixels have the same label (striped: another)"
        lines.append(np.concatenate([*[caption("", width)] * 4, caption(share, width)], 1))
    return np.concatenate(lines)


def color_logits(image: np.ndarray, classes: int) -> np.ndarray:
    """Logits float32 [H, W, C] of the colours that k-means finds."""
    height, width, _ = image.shape
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    cells = cv2.resize(lab, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
    points = cells.reshape(-1, 3).astype(np.float32)
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, _, centres = cv2.kmeans(points, classes, None, stop, 3, cv2.KMEANS_PP_CENTERS)
    distance = np.linalg.norm(points[:, None] - centres[None], axis=-1)
    noise = np.random.default_rng(0).standard_normal(distance.shape, np.float32)
    return upsample((noise - distance / 12).reshape(*cells.shape[:2], classes), image.shape)


def caption(text: str, width: int) -> np.ndarray:
    strip = np.full((22, width + 8, 3), 255, np.uint8)
    return cv2.putText(
        strip, text, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (30,) * 3, 1, cv2.LINE_AA
    )


if __name__ == "__main__":
    main()
