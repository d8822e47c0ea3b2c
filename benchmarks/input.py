"""How fast batches come, and how long a training step waits for them.

    python benchmarks/input.py [--name=camvid --dir=FOLDER] [--batch 8] [--json FILE]

From records in the page cache to batches on the first device: read, decode, pad to the canvas,
copy. First as fast as they are taken: images per second, and per core, which is images per second
of processor time (unknown where worker processes spend it). Then a training step that keeps the
device, not the host, busy for a given time, simulated by sleeping: the share of the time that goes
into waiting for the batch, after the first ones, which fill the queue.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import platform
import time

import jax
import rich.console
import rich.table

from segjax import config, rows
from segjax.data import datasets, pipeline

SKIPPED = 4  # batches at the start that fill queues and start threads


def main() -> None:
    """Measures, prints the table, writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = config.Data()
    for field in ("name", "dir", "cache", "options"):
        parser.add_argument(f"--{field}", default=getattr(data, field))
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="decoding processes")
    parser.add_argument(
        "--step", type=float, nargs="+", default=[10, 30, 100, 300], help="milliseconds of a step"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, about")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("input.json"))
    args = parser.parse_args()
    data = config.Data(name=args.name, dir=args.dir, cache=args.cache, options=args.options)
    prepared = datasets.prepare(data, [data.train_split], show=False)
    rows = []
    for workers, threads in itertools.product(args.workers, args.threads):
        changed = dataclasses.replace(data, workers=workers, threads=threads)
        row = throughput(prepared, changed, args.batch, args.seconds)
        waits = {
            f"{step:g}": wait_share(prepared, changed, args.batch, step / 1e3, args.seconds)
            for step in args.step
        }
        rows.append({"workers": workers, "threads": threads, **row, "wait_share_by_step_ms": waits})
    height, width = prepared.canvas(data.train_split)
    report = {
        **{"data": args.name, "height": height, "width": width, "batch": args.batch},
        **{"device": jax.local_devices()[0].device_kind, "machine": platform.machine()},
        "rows": rows,
    }
    args.json.write_text(json.dumps(report, indent=1))
    rich.console.Console(width=120).print(table(report))


def throughput(
    prepared: datasets.Prepared, data: config.Data, batch_size: int, seconds: float
) -> dict[str, float | None]:
    """Takes batches as fast as they come, for about some seconds."""
    with batches_of(prepared, data, batch_size) as batches:
        for _ in range(SKIPPED):
            next(batches)
        used, start, count = time.process_time(), time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            jax.block_until_ready(next(batches).image)
            count += batch_size
        used, wall = time.process_time() - used, time.perf_counter() - start
    return {"images_per_s": count / wall, "per_core": None if data.workers else count / used}


def wait_share(
    prepared: datasets.Prepared, data: config.Data, batch_size: int, step: float, seconds: float
) -> float:
    """Returns which part of the time a loop waits whose steps take `step` seconds themselves."""
    with batches_of(prepared, data, batch_size) as batches:
        for _ in range(SKIPPED):
            next(batches)
            time.sleep(step)
        waited, start = batches.wait, time.perf_counter()
        for _ in range(max(round(seconds / step), 8)):
            next(batches)
            time.sleep(step)
        return (batches.wait - waited) / (time.perf_counter() - start)


def batches_of(prepared: datasets.Prepared, data: config.Data, batch_size: int) -> pipeline.Batches:
    """Returns training batches on the first device."""
    return pipeline.train_batches(
        prepared,
        data,
        batch_size=batch_size,
        mesh=rows.mesh(jax.local_devices()[:1]),
        seed=0,
        fill=prepared.dataset.mean,
    )


def table(report: dict) -> rich.table.Table:
    """Returns a row for each number of workers and threads."""
    size = f"{report['height']}x{report['width']}"
    made = rich.table.Table(
        title=f"{report['data']}, {size}, batches of {report['batch']}, onto {report['device']}"
    )
    steps = list(report["rows"][0]["wait_share_by_step_ms"])
    columns = ["workers", "threads", "images/s", "per core", *(f"wait, {s} ms" for s in steps)]
    for name in columns:
        made.add_column(name, justify="right")
    for row in report["rows"]:
        shares = [f"{share:.1%}" for share in row["wait_share_by_step_ms"].values()]
        rates = ["-" if row[k] is None else f"{row[k]:,.0f}" for k in ("images_per_s", "per_core")]
        made.add_row(str(row["workers"]), str(row["threads"]), *rates, *shares)
    return made


if __name__ == "__main__":
    main()
