"""Speed, memory and compile time of every network, beside torchvision's with the same weights.

    python benchmarks/models.py [--small] [--only NAMES] [--budget SECONDS] [--json FILE]

Per network, at the image size of its paper: a forward pass in evaluation mode and a training step
(forward, losses of all its heads, gradient, momentum), in float32 and in bfloat16. FLOP count by
XLA before optimisation, two per multiply-add. Memory is the peak of the compiled program:
arguments, results and temporaries. The share of the peak is FLOP per second over that of a large
matrix product on the same device, in the same type on a GPU, of float32 on a CPU.

torchvision's deeplabv3_resnet50 and 101 (where torch and torchvision are installed) run in turns
with ours, on the same weights and images, after the outputs were found equal: eager with
channels_last, and compiled; in bfloat16 by autocast, on a GPU. Everything first runs twice: what
that took longer than two later runs is given as torch.compile's time.

On a GPU eight programs are compiled at a time, all before the first one runs, so compile times are
not those of one alone. What the budget does not allow is left out and said. Measurements are added
to those of the same device in the file of an earlier run, so that a slow machine can go in pieces,
by --only, --dtypes and --modes.

On a CPU much of the time goes into fresh memory, page by page; large pages are measured apart:
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/models.py`.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory as well

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from segjax import losses, models, pretrained
from segjax.models import atrous

GPU = jax.default_backend() != "cpu"
CONSOLE = rich.console.Console(width=150)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network at the size of the images it was published with."""

    model: nn.Module
    size: tuple[int, int]  # height, width in pixels
    heads: dict[str, float] = dataclasses.field(default_factory=lambda: {"logits": 1.0})
    resolution: str = "label"  # where the loss is taken, as in config.Loss
    peer: str = ""  # of torchvision.models.segmentation


AUX = {"logits": 1.0, "aux": 0.4}
SCALES = dict.fromkeys(("logits", "scale_100", "scale_075", "scale_050"), 1.0)
TORCHVISION = {"size": (513, 513), "heads": {"logits": 1.0, "aux": 0.5}}
CASES = {
    "deeplabv3_resnet50": Case(
        models.TorchvisionDeepLabV3(21, depth=50), **TORCHVISION, peer="deeplabv3_resnet50"
    ),
    "deeplabv3_resnet101": Case(
        models.TorchvisionDeepLabV3(21), **TORCHVISION, peer="deeplabv3_resnet101"
    ),
    "segnet": Case(models.SegNet(11), (360, 480)),
    "segnet_basic": Case(models.SegNetBasic(11), (360, 480)),
    "deeplab_v1": Case(models.DeepLabV1(21), (321, 321), resolution="logits"),
    "deeplab_v2_vgg": Case(models.DeepLabV2VGG(21), (321, 321), resolution="logits"),
    "deeplab_v2_resnet101": Case(
        models.DeepLabV2ResNet(21), (321, 321), SCALES, resolution="logits"
    ),
    "deeplab_v3_resnet50": Case(models.DeepLabV3(21, depth=50), (513, 513)),
    "deeplab_v3_resnet101": Case(models.DeepLabV3(21), (513, 513)),
    "deeplab_v3_resnet101_os8": Case(models.DeepLabV3(21, output_stride=8), (513, 513)),
    "deeplab_v3_cascade_resnet101": Case(models.DeepLabV3Cascade(21), (513, 513)),
    "pspnet_resnet50": Case(models.PSPNet(150, depth=50), (473, 473), AUX),
    "pspnet_resnet101": Case(models.PSPNet(19), (713, 713), AUX),
}
ATROUS = [  # height and width, input and output channels, rate of a 3x3 convolution
    (41, 512, 512, 2),  # DeepLab v1, conv5
    (41, 512, 1024, 12),  # DeepLab v1, fc6
    (60, 512, 512, 4),  # PSPNet, stage 4
    (33, 2048, 256, 6),  # DeepLab v3, ASPP at output stride 16
    (33, 2048, 256, 12),
    (33, 2048, 256, 18),
    (65, 2048, 256, 12),  # and at 8
    (65, 2048, 256, 36),
]
FORMS = [form for form in atrous.FORMS if form != "fastest"]  # which is one of the others
TOLERANCE = 5e-2 if GPU else 1e-4  # of the outputs: bfloat16, and TensorFloat-32 for float32


def main() -> None:
    """Measures, prints tables, writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="65x65 images, shallow networks")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds in all, about")
    parser.add_argument("--only", default="", help=f"comma separated: atrous,{','.join(CASES)}")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--modes", default="forward,training")
    parser.add_argument("--batch", type=int, default=8 if GPU else 2, help="images of a step")
    parser.add_argument("--json", "--output", type=pathlib.Path, help="where to add the numbers")
    args = parser.parse_args()
    chosen = args.only.split(",") if args.only else ["atrous", *CASES]
    if unknown := set(chosen) - {"atrous", *CASES}:
        parser.error(f"--only {','.join(unknown)}: accepted are atrous, {', '.join(CASES)}")

    start = time.perf_counter()
    left = lambda share=1.0: share * args.budget - (time.perf_counter() - start)
    dtypes = args.dtypes.split(",")
    peaks = {dtype: matmul_flops(dtype) for dtype in dtypes}
    rows = [r for d in dtypes if "atrous" in chosen for r in atrous_forms(d)]
    cases = {name: small(c) if args.small else c for name, c in CASES.items() if name in chosen}
    runs = [
        Program(name, case, dtype, mode, args.batch)
        for (name, case), dtype, mode in itertools.product(
            cases.items(), dtypes, args.modes.split(",")
        )
    ]
    with concurrent.futures.ThreadPoolExecutor(8 if GPU else 1) as pool:
        list(pool.map(lambda run: left(0.6) > 0 and run.compile(), runs))
    device = jax.devices()[0].device_kind if GPU else platform.machine()
    conditions = [device, *(["small"] if args.small else []), os.environ.get("GLIBC_TUNABLES", "")]
    add = functools.partial(merge, args.json, " ".join(conditions).strip(), peaks)
    report = add(rows)
    skipped = []
    for i, run in enumerate(runs):
        # Twice at a third of the peak, which most reach.
        if run.compiled is None or left() < 6 * run.about["flop"] / peaks[run.dtype]:
            skipped.append(f"{run.name} {run.dtype} {run.mode}")
        else:
            rows += run.measure(left() / (len(runs) - i))
            report = add(rows)  # now: a later one may be cut short
    for table in tables(report):
        CONSOLE.print(table)
    if skipped:
        CONSOLE.print(f"left out after {args.budget:.0f} s: {', '.join(skipped)}")


def small(case: Case) -> Case:
    """The case at 65x65 pixels and, where torchvision has none, with the shallowest body."""
    shallow = hasattr(case.model, "depth") and not case.peer
    model = case.model.clone(depth=14) if shallow else case.model
    return dataclasses.replace(case, model=model, size=(65, 65))


def matmul_flops(dtype: str) -> float:
    """FLOP per second of a large matrix product; on CPU of float32, in which XLA convolves."""
    n, dtype = (8192, dtype) if GPU else (2048, "float32")
    a = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    return 2 * n**3 / min(seconds({"": lambda: product(a, a)}, 2.0)[""][1:])


def seconds(runs: dict[str, Callable[[], Any]], budget: float) -> dict[str, list[float]]:
    """Runs functions in turns and returns the seconds of every run, `warmups` first."""
    end = time.perf_counter() + budget
    times = {name: [] for name in runs}
    for count in itertools.count():
        start = time.perf_counter()
        for name, run in runs.items():
            begin = time.perf_counter()
            wait(run())
            times[name].append(time.perf_counter() - begin)
        now = time.perf_counter()
        if count == 20 or (count >= warmups(runs) and now + (now - start) > end):
            return times


def warmups(names: Collection[str]) -> int:
    """How many runs do not count: torch may still compile in the second one."""
    return 2 if "torch.compile" in names else 1


def wait(result: Any) -> None:
    """Waits for a result of JAX; one of torch only where it is still on its way."""
    if is_torch(result):
        if result.is_cuda:
            importlib.import_module("torch").cuda.synchronize()
    else:
        jax.block_until_ready(result)


def is_torch(value: Any) -> bool:
    return type(value).__module__.startswith("torch")


def rows_of(
    times: dict[str, list[float]], batch: int, about: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yields a row per implementation: the median and the fastest run."""
    for name, every in times.items():
        first, each = every[: warmups(times)], every[warmups(times) :]
        median = statistics.median(each)
        yield {
            **about,
            **{"by": name, "batch": batch, "runs": len(each)},
            **{"seconds": median, "fastest_s": min(each)},
            **({"compile_s": sum(first) - len(first) * median} if name == "torch.compile" else {}),
        }


@dataclasses.dataclass
class Program:
    """A forward pass or a training step of a network in one type."""

    name: str  # of the case
    case: Case
    dtype: str
    mode: str  # "forward" or "training"
    batch: int
    compiled: Callable[..., Any] | None = None
    about: dict[str, float] = dataclasses.field(default_factory=dict)  # from the compiler

    @property
    def model(self) -> nn.Module:
        return self.case.model.clone(dtype=self.dtype)

    def compile(self) -> None:
        """Compiles from shapes alone."""
        size = (self.batch, *self.case.size)
        image = jax.ShapeDtypeStruct((*size, 3), jnp.float32)
        label = jax.ShapeDtypeStruct(size, jnp.int32)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), image)
        if self.mode == "forward":
            lowered = jax.jit(functools.partial(predict, self.model)).lower(shapes, image)
        else:
            step = functools.partial(train_step, self.model, self.case)
            step = jax.jit(step, donate_argnums=(0, 1))
            lowered = step.lower(shapes, shapes["params"], image, label)
        flop = lowered.cost_analysis()["flops"]
        begin = time.perf_counter()
        self.compiled = lowered.compile()
        memory = self.compiled.memory_analysis()
        self.about = {
            "compile_s": time.perf_counter() - begin,
            "flop": flop,
            "memory_bytes": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes,
        }

    def measure(self, budget: float) -> Iterator[dict[str, Any]]:
        """Yields a row of ours, and those of torchvision."""
        rng = np.random.default_rng(0)
        size = (self.batch, *self.case.size)
        image = jnp.asarray(rng.standard_normal((*size, 3)), jnp.float32)
        label = jnp.asarray(rng.integers(0, self.model.num_classes, size), jnp.int32)
        variables = random_variables(self.model, image)
        peer = None
        on = self.dtype == "float32" or GPU
        if self.case.peer and on and importlib.util.find_spec("torchvision"):
            peer = Peer(self.case.peer, self.model.num_classes, self.dtype)
            variables = peer.variables(self.model, variables)
        if self.mode == "forward":
            runs = {"segjax": lambda: self.compiled(variables, image)}
            if peer:
                self.about["difference"] = peer.difference(runs["segjax"](), image)
                runs |= peer.forward(image)
        else:
            state = {"now": (variables, jax.tree.map(jnp.zeros_like, variables["params"]))}

            def update() -> jax.Array:
                *state["now"], loss = self.compiled(*state["now"], image, label)
                return loss

            runs = {"segjax": update}
            if peer:
                runs |= peer.training(image, label, self.case.heads["aux"])
        times = seconds(runs, min(budget, (5.0 if GPU else 20.0) * len(runs)))
        about = {"network": self.name, "dtype": self.dtype, "mode": self.mode}
        for row in rows_of(times, self.batch, about):
            yield row | (self.about if row["by"] == "segjax" else {})


def random_variables(model: nn.Module, image: jax.Array) -> dict[str, Any]:
    """Returns He-normal kernels and the rest as at the start, without compiling `init`."""
    rng = np.random.default_rng(0)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "kernel":
            scale = math.sqrt(2 / math.prod(leaf.shape[:-1]))
            return jnp.asarray(scale * rng.standard_normal(leaf.shape, np.float32))
        return jnp.full(leaf.shape, float(path[-1].key in ("scale", "var")))

    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def predict(model: nn.Module, variables: dict[str, Any], image: jax.Array) -> jax.Array:
    return model.apply(variables, image)["logits"]


def train_step(
    model: nn.Module,
    case: Case,
    variables: dict[str, Any],
    momentum: Any,
    image: jax.Array,
    label: jax.Array,
) -> tuple[dict[str, Any], Any, jax.Array]:
    """One update by stochastic gradient descent with momentum."""

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        outputs, changed = model.apply(
            variables | {"params": params},
            image,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        total = jnp.zeros(())
        for head, weight in case.heads.items():
            pair = losses.match_resolution(
                outputs[head], label, resolution=case.resolution, align_corners=False
            )
            loss, count = losses.cross_entropy(*pair)
            total += weight * loss / count
        return total, changed

    (loss, changed), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
    params = jax.tree.map(lambda p, m: p - 1e-4 * m, variables["params"], momentum)
    return {**variables, **changed, "params": params}, momentum, loss


class Peer:
    """torchvision's network with random weights, and the same in ours."""

    def __init__(self, name: str, num_classes: int, dtype: str) -> None:
        import torch

        self.torch = torch
        self.device = "cuda" if GPU and torch.cuda.is_available() else "cpu"
        self.autocast = functools.partial(
            torch.autocast, self.device, torch.bfloat16, enabled=dtype == "bfloat16"
        )
        torch.manual_seed(0)
        build = getattr(torchvision().models.segmentation, name)
        net = build(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True)
        self.net = net.eval().to(self.device, memory_format=torch.channels_last)

    def variables(self, model: nn.Module, variables: dict[str, Any]) -> dict[str, Any]:
        """Returns its weights as variables of ours."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "weights.pth"
            self.torch.save(self.net.state_dict(), path)
            return pretrained.load(path, model, variables, "torchvision_deeplabv3")[0]

    def input(self, image: jax.Array) -> Any:
        tensor = self.torch.tensor(np.asarray(image).transpose(0, 3, 1, 2))
        return tensor.to(self.device, memory_format=self.torch.channels_last)

    def logits(self, net: Any, x: Any) -> Any:
        """The network up to its last resizing, as ours."""
        return net.classifier(net.backbone(x)["out"])

    def difference(self, ours: jax.Array, image: jax.Array) -> float:
        """The largest difference of the logits over the largest logit; ends the program at more."""
        with self.torch.no_grad(), self.autocast():
            theirs = self.logits(self.net, self.input(image)).float().cpu().numpy()
        theirs = theirs.transpose(0, 2, 3, 1)
        difference = float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())
        if not difference < TOLERANCE:
            sys.exit(f"outputs differ from torchvision's by {difference:.1g} of the largest")
        return difference

    def forward(self, image: jax.Array) -> dict[str, Callable[[], Any]]:
        x = self.input(image)

        def run(logits: Callable[..., Any]) -> Any:
            with self.torch.no_grad(), self.autocast():
                return logits(self.net, x)

        compiled = self.torch.compile(self.logits)
        return {
            "torch eager": lambda: run(self.logits),
            "torch.compile": lambda: run(compiled),
        }

    def training(
        self, image: jax.Array, label: jax.Array, aux: float
    ) -> dict[str, Callable[[], Any]]:
        x, y = self.input(image), self.torch.tensor(np.asarray(label)).long().to(self.device)
        self.net.train()
        sgd = self.torch.optim.SGD(self.net.parameters(), lr=1e-4, momentum=0.9)
        cross_entropy = self.torch.nn.functional.cross_entropy

        def run(net: Any) -> Any:
            sgd.zero_grad(set_to_none=True)
            with self.autocast():
                out = net(x)  # upsampled to the image
            loss = cross_entropy(out["out"].float(), y)
            loss = loss + aux * cross_entropy(out["aux"].float(), y)
            loss.backward()
            sgd.step()
            return loss.detach()

        compiled = self.torch.compile(self.net)
        return {
            "torch eager": lambda: run(self.net),
            "torch.compile": lambda: run(compiled),
        }


def torchvision() -> Any:
    """Imports torchvision, also where its compiled operators are missing."""
    import torch

    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
            )
        return importlib.import_module("torchvision")


def atrous_forms(dtype: str) -> Iterator[dict[str, Any]]:
    """Yields a row per convolution and form: the forward pass, and the gradient."""
    for size, inputs, outputs, rate in ATROUS:
        x = jnp.ones((1, size, size, inputs), dtype)
        kernel = jnp.full((3, 3, inputs, outputs), 0.01, dtype)
        y = jnp.ones((1, size, size, outputs), dtype)
        for mode in ("forward", "gradient"):
            runs = {}
            for form in FORMS:
                conv = functools.partial(atrous.FORMS[form], rate=rate)
                if mode == "forward":
                    function, args = conv, (x, kernel)
                else:
                    function = lambda x, kernel, y, conv=conv: jax.vjp(conv, x, kernel)[1](y)
                    args = (x, kernel, y)
                runs[form] = functools.partial(jax.jit(function).lower(*args).compile(), *args)
            about = {"network": f"3x3 {inputs}-{outputs} at {size}x{size}, rate {rate}"}
            about |= {"dtype": dtype, "mode": f"atrous {mode}"}
            yield from rows_of(seconds(runs, 1.0), 1, about)


def merge(
    path: pathlib.Path | None, device: str, peaks: dict[str, float], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Adds rows to the file, if any, where an earlier run left others; returns the report."""
    report = {"device": device, "jax": jax.__version__, "peak_flops": peaks, "rows": rows}
    if path and path.exists() and (old := json.loads(path.read_text()))["device"] == device:
        key = lambda row: tuple(row[k] for k in ("network", "dtype", "mode", "by"))
        new = set(map(key, rows))
        report["peak_flops"] = old["peak_flops"] | peaks
        report["rows"] = [row for row in old["rows"] if key(row) not in new] + rows
    if path:
        path.write_text(json.dumps(report, indent=1) + "\n")
    return report


def tables(report: dict[str, Any]) -> Iterator[rich.table.Table]:
    """Yields a table of networks and one of atrous convolutions."""
    peaks = report["peak_flops"]
    shown = ", ".join(f"{k} {v / 1e12:.3g} TFLOP/s" for k, v in peaks.items())
    title = f"{report['device']}, jax {report['jax']}; matrix product: {shown}"
    networks = rich.table.Table(title=title)
    for column in ("network", "mode", "by", "dtype"):
        networks.add_column(column, no_wrap=True)
    for column in ("batch", "images/s", "compile s", "GFLOP", "of peak", "memory GB", "differs"):
        networks.add_column(column, justify="right")
    convolutions = rich.table.Table(title="atrous convolution, milliseconds")
    for column in ("convolution", "mode", "dtype", *FORMS):
        convolutions.add_column(column)
    forms = {}
    for row in report["rows"]:
        if row["mode"].startswith("atrous"):
            key = (row["network"], row["mode"].removeprefix("atrous "), row["dtype"])
            forms.setdefault(key, {})[row["by"]] = f"{1e3 * row['seconds']:.2f}"
            continue
        share = row.get("flop", 0) / row["seconds"] / peaks[row["dtype"]]
        networks.add_row(
            *(row[k] for k in ("network", "mode", "by", "dtype")),
            str(row["batch"]),
            f"{row['batch'] / row['seconds']:.3g}",
            f"{row['compile_s']:.1f}" if "compile_s" in row else "",
            f"{row['flop'] / 1e9:.0f}" if "flop" in row else "",
            f"{share:.0%}" if share else "",
            f"{row['memory_bytes'] / 1e9:.2f}" if "memory_bytes" in row else "",
            f"{row['difference']:.0e}" if "difference" in row else "",
        )
    if networks.row_count:
        yield networks
    for key, times in forms.items():
        convolutions.add_row(*key, *(times[form] for form in FORMS))
    if forms:
        yield convolutions


if __name__ == "__main__":
    main()
