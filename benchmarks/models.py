"""Speed, memory and compile time of every network, beside torchvision's with the same weights.

    python benchmarks/models.py [--small] [--budget SECONDS] [--only NAMES] [--output FILE]

Per network, at the image size of its paper: a forward pass in evaluation mode and a training step
(forward, loss at the labels' size, gradient, momentum), in float32 and in bfloat16. FLOP count by
XLA before optimisation, two per multiply-add, padding not counted. Memory is what the compiled
program holds: arguments, results and temporaries. The share of the peak is FLOP per second over
that of a large matrix product on the same device in the same type.

torchvision's deeplabv3_resnet50 and 101 (where torch and torchvision are installed) run in turns
with ours, on the same weights and images, after the outputs were found equal: eager with
channels_last, and compiled; in bfloat16 by autocast, on a GPU.

Measurements of the same device are added to those in the file of an earlier run, so a slow machine
can go network by network. What the budget does not allow is left out and said.
"""

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import json
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

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
    peer: str = ""  # of torchvision.models.segmentation


AUX = {"logits": 1.0, "aux": 0.4}
SCALES = dict.fromkeys(("logits", "scale_100", "scale_075", "scale_050"), 1.0)
CASES = {
    "deeplabv3_resnet50": Case(
        models.TorchvisionDeepLabV3(21, depth=50),
        (513, 513),
        AUX | {"aux": 0.5},
        "deeplabv3_resnet50",
    ),
    "deeplabv3_resnet101": Case(
        models.TorchvisionDeepLabV3(21), (513, 513), AUX | {"aux": 0.5}, "deeplabv3_resnet101"
    ),
    "segnet": Case(models.SegNet(11), (360, 480)),
    "segnet_basic": Case(models.SegNetBasic(11), (360, 480)),
    "deeplab_v1": Case(models.DeepLabV1(21), (321, 321)),
    "deeplab_v2_vgg": Case(models.DeepLabV2VGG(21), (321, 321)),
    "deeplab_v2_resnet101": Case(models.DeepLabV2ResNet(21), (321, 321), SCALES),
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
    (33, 2048, 256, 6),  # DeepLab v3, ASPP
    (33, 2048, 256, 18),
]


def main() -> None:
    """Measures, prints tables, writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="65x65 images and depth 14")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds in all")
    parser.add_argument("--only", default="", help=f"comma separated: atrous,{','.join(CASES)}")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--modes", default="forward,training")
    parser.add_argument("--batch", type=int, default=8 if GPU else 2, help="images of a step")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("models.json"))
    args = parser.parse_args()
    chosen = args.only.split(",") if args.only else ["atrous", *CASES]
    if unknown := set(chosen) - {"atrous", *CASES}:
        parser.error(f"--only {','.join(unknown)}: accepted are atrous, {', '.join(CASES)}")

    budget = Budget(args.budget)
    rows, skipped = [], []
    peaks = {dtype: matmul_flops(dtype) for dtype in args.dtypes.split(",")}
    for name, dtype in itertools.product(chosen, peaks):
        if budget.spent():
            skipped.append(f"{name} {dtype}")
        elif name == "atrous":
            rows += atrous_forms(dtype)
        else:
            case = small(CASES[name]) if args.small else CASES[name]
            measured = measure(case, dtype, args.batch, args.modes.split(","), budget)
            rows += [{"network": name, "dtype": dtype, **row} for row in measured]
    device = jax.devices()[0].device_kind if GPU else platform.machine()
    report = merge(args.output, f"{device}{' small' if args.small else ''}", peaks, rows)
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    for table in tables(report):
        CONSOLE.print(table)
    if skipped:
        CONSOLE.print(f"left out after {args.budget:.0f} s: {', '.join(skipped)}")


class Budget:
    """Seconds to spend from now on."""

    def __init__(self, seconds: float) -> None:
        self.end = time.perf_counter() + seconds

    def spent(self) -> bool:
        return time.perf_counter() > self.end

    def left(self) -> float:
        return self.end - time.perf_counter()


def small(case: Case) -> Case:
    """The case at 65x65 pixels and, where there is one, with the shallowest body."""
    model = case.model.clone(depth=14) if hasattr(case.model, "depth") else case.model
    return dataclasses.replace(case, model=model, size=(65, 65), peer="")


def matmul_flops(dtype: str) -> float:
    """FLOP per second of a large matrix product; on CPU of float32, in which XLA convolves."""
    n, dtype = (8192, dtype) if GPU else (2048, "float32")
    a = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    return 2 * n**3 / min(seconds({"": lambda: product(a, a)}, 2.0)[""])


def seconds(runs: dict[str, Callable[[], Any]], budget: float) -> dict[str, list[float]]:
    """Runs functions in turns and returns the seconds of every run, the first one left out."""
    times = {name: [] for name in runs}
    for run in runs.values():
        wait(run())
    start = time.perf_counter()
    while not all(times.values()) or time.perf_counter() - start < budget:
        for name, run in runs.items():
            begin = time.perf_counter()
            wait(run())
            times[name].append(time.perf_counter() - begin)
        if all(len(t) >= 20 for t in times.values()):
            break
    return times


def wait(result: Any) -> None:
    """Waits for a result of JAX; one of torch only where it is still on its way."""
    if is_torch(result):
        if result.is_cuda:
            importlib.import_module("torch").cuda.synchronize()
    else:
        jax.block_until_ready(result)


def is_torch(value: Any) -> bool:
    return type(value).__module__.startswith("torch")


def measure(
    case: Case, dtype: str, batch: int, modes: list[str], budget: Budget
) -> Iterator[dict[str, Any]]:
    """Yields a row for the forward pass and one for the training step, and those of the peer."""
    model = case.model.clone(dtype=dtype)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.standard_normal((batch, *case.size, 3)), jnp.float32)
    label = jnp.asarray(rng.integers(0, model.num_classes, (batch, *case.size)), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0, impl="unsafe_rbg"), image[:1])
    peer = None
    if case.peer and (dtype == "float32" or GPU) and importlib.util.find_spec("torchvision"):
        peer = Peer(case.peer, model.num_classes, dtype)
        variables = peer.variables(model, variables)

    forward = jax.jit(functools.partial(predict, model))
    if "forward" in modes:
        compiled, row = build(forward, variables, image)
        runs = {"segjax": lambda: compiled(variables, image)}
        if peer:
            row["difference"] = peer.difference(runs["segjax"](), image)
            runs |= peer.forward(image)
        yield from timed("forward", runs, batch, row, budget)

    if "training" in modes:
        step = jax.jit(functools.partial(train_step, model, case.heads), donate_argnums=(0, 1))
        momentum = jax.tree.map(jnp.zeros_like, variables["params"])
        compiled_step, row = build(step, variables, momentum, image, label)
        state = {"now": (variables, momentum)}

        def update() -> jax.Array:
            *state["now"], loss = compiled_step(*state["now"], image, label)
            return loss

        runs = {"segjax": update}
        if peer:
            runs |= peer.training(image, label, case.heads["aux"])
        yield from timed("training", runs, batch, row, budget)


def predict(model: nn.Module, variables: dict[str, Any], image: jax.Array) -> jax.Array:
    return model.apply(variables, image)["logits"]


def train_step(
    model: nn.Module,
    heads: dict[str, float],
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
        for head, weight in heads.items():
            pair = losses.match_resolution(
                outputs[head], label, resolution="label", align_corners=False
            )
            loss, count = losses.cross_entropy(*pair)
            total += weight * loss / count
        return total, changed

    (loss, changed), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
    params = jax.tree.map(lambda p, m: p - 1e-4 * m, variables["params"], momentum)
    return {**variables, **changed, "params": params}, momentum, loss


def build(function: Any, *args: Any) -> tuple[Callable[..., Any], dict[str, float]]:
    """Compiles a jitted function and tells what that took and what it will take."""
    lowered = function.lower(*args)
    begin = time.perf_counter()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return compiled, {
        "compile_s": time.perf_counter() - begin,
        "flop": lowered.cost_analysis()["flops"],
        "memory_bytes": held - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
    }


def timed(
    mode: str,
    runs: dict[str, Callable[[], Any]],
    batch: int,
    of_ours: dict[str, float],
    budget: Budget,
) -> Iterator[dict[str, Any]]:
    """Yields a row per implementation: median and fastest run, in turns."""
    times = seconds(runs, min(budget.left() / 4, 5.0 if GPU else 10.0 * len(runs)))
    for name, each in times.items():
        yield {
            "mode": mode,
            "by": name,
            "batch": batch,
            "runs": len(each),
            "seconds": statistics.median(each),
            "fastest_s": min(each),
            **(of_ours if name == "segjax" else {}),
        }


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
        """The largest difference of the logits over the largest logit."""
        with self.torch.no_grad(), self.autocast():
            theirs = self.logits(self.net, self.input(image)).float().cpu().numpy()
        theirs = theirs.transpose(0, 2, 3, 1)
        return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())

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
    """Yields a row per convolution and form: forward, and forward with the gradient."""
    for size, inputs, outputs, rate in ATROUS:
        x = jnp.ones((1, size, size, inputs), dtype)
        kernel = jnp.full((3, 3, inputs, outputs), 0.01, dtype)
        for mode in ("forward", "gradient"):
            runs = {}
            for form, conv in atrous.FORMS.items():
                f = functools.partial(conv, rate=rate)
                if mode == "gradient":
                    total = lambda x, kernel, f=f: jnp.sum(f(x, kernel).astype(jnp.float32) ** 2)
                    f = jax.grad(total, argnums=(0, 1))
                compiled = jax.jit(f).lower(x, kernel).compile()
                runs[form] = functools.partial(compiled, x, kernel)
            for form, each in seconds(runs, 1.0).items():
                yield {
                    "network": f"3x3 {inputs}-{outputs} at {size}x{size}, rate {rate}",
                    "dtype": dtype,
                    "mode": f"atrous {mode}",
                    "by": form,
                    "batch": 1,
                    "runs": len(each),
                    "seconds": statistics.median(each),
                    "fastest_s": min(each),
                }


def merge(
    path: pathlib.Path, device: str, peaks: dict[str, float], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the report with the rows of an earlier one of this device, unless measured again."""
    report = {"device": device, "jax": jax.__version__, "peak_flops": peaks, "rows": rows}
    if path.exists() and (old := json.loads(path.read_text()))["device"] == device:
        key = lambda row: tuple(row[k] for k in ("network", "dtype", "mode", "by"))
        new = set(map(key, rows))
        report["peak_flops"] = old["peak_flops"] | peaks
        report["rows"] = [row for row in old["rows"] if key(row) not in new] + rows
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
    for column in ("convolution", "mode", "dtype", *atrous.FORMS):
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
        convolutions.add_row(*key, *(times[form] for form in atrous.FORMS))
    if forms:
        yield convolutions


if __name__ == "__main__":
    main()
