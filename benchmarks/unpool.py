"""Max pooling with indices and unpooling: the two forms of segjax.ops beside PyTorch's functions.

    python benchmarks/unpool.py [--size B H W C] [--threads N] [--rounds N] [--json FILE]

Window 2x2, stride 2, ceil mode. "dense" is `max_unpool(..., window=2)`, the form SegNet uses,
"scatter" the general one. PyTorch runs `max_pool2d` and `max_unpool2d` in its own layout (NCHW) and
with channels_last, and is left out where it is not installed. All results are compared first; then
the candidates take turns, and the table shows the median of their times in milliseconds.

The last two rows are pooling, unpooling and the gradient: of half the sum of squares, a number in
front and the gradient behind, as in training; and of a gradient handed in from outside, with the
unpooled array returned as well.

On a CPU most of the time goes into fresh memory, page by page. With large pages,
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/unpool.py`, both are several times faster.
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from segjax import ops

ROWS = ("pool", "unpool", "pool, unpool", "gradient of squares", "gradient handed in")
Calls = dict[str, dict[str, Callable[[], object]]]  # by row and column; each returns when done


def main() -> None:
    """Measures, prints the table, writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=4, default=[4, 360, 480, 64], metavar="N")
    parser.add_argument("--threads", type=int, default=2, help="processor cores for both")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each")
    parser.add_argument("--json", "--output", type=pathlib.Path, help="where to write the numbers")
    args = parser.parse_args()
    # XLA takes as many threads as it finds cores when it starts.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])

    rng = np.random.default_rng(0)
    image, gradient = (rng.standard_normal(args.size, np.float32) for _ in range(2))
    calls = jax_calls(image, gradient)
    if importlib.util.find_spec("torch"):
        for row, columns in torch_calls(image, gradient, args.threads).items():
            calls[row] |= columns
    compare(calls)
    report = {
        **{"size": args.size, "threads": args.threads, "rounds": args.rounds},
        **{"device": jax.local_devices()[0].device_kind, "machine": platform.machine()},
        "malloc": os.environ.get("GLIBC_TUNABLES", ""),
        "milliseconds": {row: measure(columns, args.rounds) for row, columns in calls.items()},
    }
    rich.console.Console(width=110).print(table(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


def jax_calls(image: np.ndarray, gradient: np.ndarray) -> Calls:
    """Returns the functions of segjax, compiled."""
    pool = functools.partial(ops.max_pool_with_argmax, window=2, ceil_mode=True)
    x, g = jnp.asarray(image), jnp.asarray(gradient)
    pooled = jax.jit(pool)(x)
    calls = {row: {} for row in ROWS}
    for name, geometry in (("dense", {"window": 2}), ("scatter", {})):
        unpool = functools.partial(ops.max_unpool, output_size=x.shape[1:3], **geometry)

        def both(x: jax.Array, unpool: Callable = unpool) -> jax.Array:
            return unpool(*pool(x))

        def squares(x: jax.Array, both: Callable = both) -> jax.Array:
            return 0.5 * jnp.sum(jnp.square(both(x)))

        def pull(x: jax.Array, g: jax.Array, both: Callable = both) -> tuple[jax.Array, ...]:
            y, vjp = jax.vjp(both, x)
            return y, *vjp(g)

        functions = (pool, unpool, both, jax.grad(squares), pull)
        inputs = ((x,), pooled, (x,), (x,), (x, g))
        for row, function, values in zip(ROWS, functions, inputs):
            calls[row][name] = functools.partial(finished, jax.jit(function), *values)
    return calls


def finished(function: Callable, *values: jax.Array) -> object:
    return jax.block_until_ready(function(*values))


def torch_calls(image: np.ndarray, gradient: np.ndarray, threads: int) -> Calls:
    """Returns PyTorch's functions on the same numbers; on the GPU where JAX is there, too."""
    import torch
    from torch.nn.functional import max_pool2d, max_unpool2d

    torch.set_num_threads(threads)
    cuda = jax.default_backend() == "gpu" and torch.cuda.is_available()
    calls = {row: {} for row in ROWS}
    for name in ("torch", "torch channels_last"):
        x, g = (
            torch.tensor(a, device="cuda" if cuda else "cpu").permute(0, 3, 1, 2)
            for a in (image, gradient)
        )
        if name == "torch":
            x, g = x.contiguous(), g.contiguous()
        size = x.shape[2:]
        pool = functools.partial(max_pool2d, kernel_size=2, ceil_mode=True, return_indices=True)
        values, indices = pool(x)
        variable = x.clone().requires_grad_()

        def both(x: torch.Tensor, size: tuple = size, pool: Callable = pool) -> torch.Tensor:
            return max_unpool2d(*pool(x), 2, output_size=size)

        def squares(x: torch.Tensor = variable, both: Callable = both) -> torch.Tensor:
            return torch.autograd.grad(0.5 * both(x).square().sum(), x)[0]

        def pull(x: torch.Tensor = variable, g: torch.Tensor = g, both: Callable = both) -> tuple:
            y = both(x)
            return y.detach(), torch.autograd.grad(y, x, g)[0]

        functions = (
            functools.partial(pool, x),
            functools.partial(max_unpool2d, values, indices, 2, output_size=size),
            functools.partial(both, x),
            squares,
            pull,
        )
        for row, function in zip(ROWS, functions):

            def synchronised(function: Callable = function) -> object:
                result = function()
                if cuda:
                    torch.cuda.synchronize()
                return result

            calls[row][name] = synchronised
    return calls


def compare(calls: Calls) -> None:
    """Stops unless all candidates give the same numbers."""
    for row, columns in calls.items():
        expected = jax.tree.leaves(columns["dense"]())
        for name, call in columns.items():
            for ours, theirs in zip(expected, jax.tree.leaves(call())):
                if name.startswith("torch"):
                    theirs = theirs.permute(0, 2, 3, 1).cpu().numpy()
                if not np.array_equal(ours, theirs):
                    raise SystemExit(f"{row}: {name} differs from dense")


def measure(columns: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Returns median milliseconds; the candidates take turns."""
    times = {name: [] for name in columns}
    for _ in range(rounds):
        for name, call in columns.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def table(report: dict) -> rich.table.Table:
    """Returns a row for each task, a column for each candidate."""
    size = "x".join(map(str, report["size"]))
    made = rich.table.Table(
        title=f"{size} on {report['device']}, {report['threads']} threads, milliseconds"
    )
    columns = list(report["milliseconds"]["pool"])
    torches = [name for name in columns if name.startswith("torch")]
    made.add_column("task")
    for name in (*columns, *(f"dense / {name}" for name in torches)):
        made.add_column(name, justify="right")
    for row, times in report["milliseconds"].items():
        ratios = [f"{times['dense'] / times[name]:.2f}" for name in torches]
        made.add_row(row, *(f"{times[name]:.1f}" for name in columns), *ratios)
    return made


if __name__ == "__main__":
    main()
