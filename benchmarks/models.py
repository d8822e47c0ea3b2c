"""Speed, memory and compile time of every network and its convolutions, next to torch's.

    python benchmarks/models.py [--small] [--only NAMES] [--budget SECONDS] [--json FILE]

Per network, at the image size of its paper: a forward pass in evaluation mode and a training step
(forward, losses of all its heads, gradient, momentum), in float32 and in bfloat16. FLOP count by
XLA before optimisation, two per multiply-add. Memory is the peak of the compiled program:
arguments, results and temporaries. The share of the peak is FLOP per second over that of a large
matrix product on the same device, in the same type on a GPU, of float32 on a CPU.

Programs are compiled with the options of segjax.compiling, and for `--plain` without them too.

torchvision's deeplabv3_resnet50 and 101 and a SegNet-Basic of torch's layers (where torch and
torchvision are installed) run in turns with ours, on the same weights and images, after the outputs
were found equal: eager with channels_last, and compiled; in bfloat16 by autocast. Everything first
runs twice: what that took longer than two later runs is given as torch.compile's time.

"layers" are the convolutions of the networks one by one: as XLA compiles them by itself, in each
of our forms with our options, and torch's. "growth" runs a small network at several numbers of
pixels, images and classes, and fits `seconds = a * number**exponent`.

On a GPU eight programs are compiled at a time, all before the first one runs, so compile times are
not those of one alone. The budget ends the list early, and the table says where. Measurements are
added to those of an earlier run in the file, so that a slow machine can go in pieces, by --only,
--dtypes and --modes, and one file can hold several releases of JAX on one processor.

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

from segjax import compiling, losses, models, pretrained
from segjax.models import atrous

GPU = jax.default_backend() != "cpu"
COLUMNS = ("network", "mode", "by", "dtype", "jax")
CONSOLE = rich.console.Console(width=150)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network at the size of the images it was published with."""

    model: nn.Module
    size: tuple[int, int]  # height, width in pixels
    heads: dict[str, float] = dataclasses.field(default_factory=lambda: {"logits": 1.0})
    resolution: str = "label"  # where the loss is taken, as in config.Loss
    peer: str = ""  # of torchvision.models.segmentation, or "segnet_basic"


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
    "segnet_basic": Case(models.SegNetBasic(11), (360, 480), peer="segnet_basic"),
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
LAYERS = {  # size and rate of the kernel, stride, input and output channels, height, width
    "ResNet 1x1": (1, 1, 1, 1024, 256, 65, 65),
    "ResNet 1x1, widening": (1, 1, 1, 512, 2048, 65, 65),
    "ResNet 3x3, stage 1": (3, 1, 1, 64, 64, 129, 129),
    "ResNet 3x3, stride 2": (3, 1, 2, 128, 128, 129, 129),
    "ResNet 3x3, rate 2": (3, 2, 1, 256, 256, 65, 65),
    "ResNet 3x3, rate 4": (3, 4, 1, 512, 512, 65, 65),
    "ResNet stem 7x7, stride 2": (7, 1, 2, 3, 64, 513, 513),
    "ASPP, rate 6 at stride 16": (3, 6, 1, 2048, 256, 33, 33),
    "ASPP, rate 18 at stride 16": (3, 18, 1, 2048, 256, 33, 33),
    "ASPP, rate 12 at stride 8": (3, 12, 1, 2048, 256, 65, 65),
    "ASPP, rate 24 at stride 8": (3, 24, 1, 2048, 256, 65, 65),
    "ASPP, rate 36 at stride 8": (3, 36, 1, 2048, 256, 65, 65),
    "DeepLab v1 fc6, rate 12": (3, 12, 1, 512, 1024, 41, 41),
    "SegNet-Basic 7x7": (7, 1, 1, 64, 64, 180, 240),
    "SegNet 3x3, 64 channels": (3, 1, 1, 64, 64, 360, 480),
    "SegNet 3x3, 512 channels": (3, 1, 1, 512, 512, 45, 60),
}
FORMS = [form for form in atrous.FORMS if form != "fastest"]  # which is one of the others
TOLERANCE = {"float32": 5e-2 if GPU else 1e-4, "bfloat16": 5e-2}  # of the outputs


OTHERS = ("layers", "growth")


def main() -> None:
    """Measures, prints tables, writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="65x65 images, shallow networks")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds in all, about")
    parser.add_argument(
        "--only", default="", help=f"comma separated: {', '.join(OTHERS)}, {', '.join(CASES)}"
    )
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--modes", default="forward,training")
    batches = "8" if GPU else "1,2"
    parser.add_argument("--batch", default=batches, help="images of a step, comma separated")
    parser.add_argument("--plain", action="store_true", help="also without our compiler options")
    parser.add_argument("--json", "--output", type=pathlib.Path, help="where to add the numbers")
    parser.add_argument("--eager", action="store_true", help="no torch.compile: it takes minutes")
    args = parser.parse_args()
    chosen = args.only.split(",") if args.only else ["layers", *CASES]
    if unknown := set(chosen) - {*OTHERS, *CASES}:
        parser.error(f"--only {','.join(unknown)}: accepted are {', '.join((*OTHERS, *CASES))}")

    start = time.perf_counter()
    left = lambda share=1.0: share * args.budget - (time.perf_counter() - start)
    dtypes = args.dtypes.split(",")
    peaks = {dtype: matmul_flops(dtype) for dtype in dtypes}
    device = jax.devices()[0].device_kind if GPU else processor()
    conditions = [device, *(["small"] if args.small else []), os.environ.get("GLIBC_TUNABLES", "")]
    add = functools.partial(merge, args.json, " ".join(conditions).strip(), peaks)
    rows = []
    report = add(rows)
    others = {"growth": growth, "layers": functools.partial(layers, left=left)}
    for name, dtype in itertools.product(OTHERS, dtypes):
        for row in others[name](dtype) if name in chosen else ():
            rows.append(row)
            report = add(rows)  # now: a later one may be cut short
    cases = {name: small(c) if args.small else c for name, c in CASES.items() if name in chosen}
    runs = [
        Program(name, case, dtype, mode, int(batch), args.plain, args.eager)
        for (name, case), dtype, mode, batch in itertools.product(
            cases.items(), dtypes, args.modes.split(","), args.batch.split(",")
        )
    ]
    with concurrent.futures.ThreadPoolExecutor(8 if GPU else 1) as pool:
        list(pool.map(lambda run: left(0.6) > 0 and run.compile(), runs))
    skipped = []
    for i, run in enumerate(runs):
        # Twice at a third of the peak, which most reach.
        if run.compiled is None or left() < 6 * run.about["flop"] / peaks[run.dtype]:
            skipped.append(f"{run.name} {run.dtype} {run.mode}")
        else:
            rows += run.measure(left() / (len(runs) - i))
            report = add(rows)
    for table in tables(report):
        CONSOLE.print(table)
    if skipped:
        CONSOLE.print(f"left out after {args.budget:.0f} s: {', '.join(skipped)}")


def processor() -> str:
    """Returns the name and the number of cores of the CPU, with its bfloat16 instructions."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    known = set(fields.get("flags", "").split()) & {"amx_bf16", "avx512_bf16", "avx512f"}
    name = fields.get("model name", platform.machine())
    return " ".join(
        [
            name,
            f"family {fields['cpu family']}" if "cpu family" in fields else "",
            f"{os.cpu_count()} cores",
            *sorted(known),
        ]
    )


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
    plain: bool = False  # measure it without our compiler options too
    eager: bool = False  # leave out torch.compile
    compiled: Callable[..., Any] | None = None
    uncompiled: Any = None  # as lowered
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
            jit = compiling.jit
            step, given = functools.partial(predict, self.model), (shapes, image)
        else:
            jit = functools.partial(compiling.jit, training=True, donate_argnums=(0, 1))
            step = functools.partial(train_step, self.model, self.case)
            given = (shapes, shapes["params"], image, label)
        lowered = jit(step).lower(*given)
        flop = lowered.cost_analysis()["flops"]
        begin = time.perf_counter()
        self.compiled = lowered.compile()
        self.uncompiled = jit(step, libraries=False).lower(*given) if self.plain else None
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
        """Yields a row of ours, and those of torch."""
        rng = np.random.default_rng(0)
        size = (self.batch, *self.case.size)
        image = jnp.asarray(rng.standard_normal((*size, 3)), jnp.float32)
        label = jnp.asarray(rng.integers(0, self.model.num_classes, size), jnp.int32)
        variables = random_variables(self.model, image)
        peer = None
        if self.case.peer and importlib.util.find_spec("torchvision"):
            kind = SegNetBasicPeer if self.case.peer == "segnet_basic" else Peer
            peer = kind(self.case.peer, self.model.num_classes, self.dtype)
            variables = peer.variables(self.model, variables)
        programs = {"segjax": self.compiled}
        if self.uncompiled:
            programs["segjax, plain"] = self.uncompiled.compile()
        if self.mode == "forward":
            runs = {name: functools.partial(p, variables, image) for name, p in programs.items()}
            if peer:
                self.about["difference"] = peer.difference(runs["segjax"](), image)
                runs |= peer.forward(image)
        else:
            runs = {name: updates(p, variables, image, label) for name, p in programs.items()}
            if peer:
                runs |= peer.training(image, label, self.case.heads)
        if self.eager:
            runs.pop("torch.compile", None)
        times = seconds(runs, min(budget, (5.0 if GPU else 60.0) * len(runs)))
        about = {"network": self.name, "dtype": self.dtype, "mode": self.mode}
        for row in rows_of(times, self.batch, about):
            yield row | (self.about if row["by"] == "segjax" else {})


def updates(
    program: Callable[..., Any], variables: dict[str, Any], image: jax.Array, label: jax.Array
) -> Callable[[], jax.Array]:
    """Returns a function that makes the next training step and returns the loss."""
    variables = jax.tree.map(jnp.copy, variables)  # the program takes their memory
    state = {"now": (variables, jax.tree.map(jnp.zeros_like, variables["params"]))}

    def update() -> jax.Array:
        *state["now"], loss = program(*state["now"], image, label)
        return loss

    return update


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

    quantile = 1.0  # of the differences between the outputs, which must be small

    def __init__(self, name: str, num_classes: int, dtype: str) -> None:
        import torch

        self.torch = torch
        self.tolerance = TOLERANCE[dtype]
        self.device = "cuda" if GPU and torch.cuda.is_available() else "cpu"
        self.autocast = functools.partial(
            torch.autocast, self.device, torch.bfloat16, enabled=dtype == "bfloat16"
        )
        torch.manual_seed(0)
        net = self.build(name, num_classes)
        self.net = net.eval().to(self.device, memory_format=torch.channels_last)

    def build(self, name: str, num_classes: int) -> Any:
        build = getattr(torchvision().models.segmentation, name)
        return build(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True)

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
        each = np.abs(np.asarray(ours) - theirs)
        difference = float(np.quantile(each, self.quantile) / np.abs(theirs).max())
        if not difference < self.tolerance:
            sys.exit(f"outputs differ from torch's by {difference:.1g} of the largest")
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

    def train(self, batch: int) -> None:
        """Puts the network into training mode."""
        self.net.train()
        if batch == 1:  # torch refuses to train the BatchNorm of the one pooled pixel
            self.net.classifier[0].convs[-1][2].eval()

    def heads(self, net: Any, x: Any) -> dict[str, Any]:
        """Its outputs at the size of the image, under our names."""
        out = net(x)
        return {"logits": out["out"], "aux": out["aux"]}

    def training(
        self, image: jax.Array, label: jax.Array, weights: dict[str, float]
    ) -> dict[str, Callable[[], Any]]:
        x, y = self.input(image), self.torch.tensor(np.asarray(label)).long().to(self.device)
        self.train(len(image))
        sgd = self.torch.optim.SGD(self.net.parameters(), lr=1e-4, momentum=0.9)
        cross_entropy = self.torch.nn.functional.cross_entropy

        def run(net: Any) -> Any:
            sgd.zero_grad(set_to_none=True)
            with self.autocast():
                heads = self.heads(net, x)
            loss = sum(w * cross_entropy(heads[name].float(), y) for name, w in weights.items())
            loss.backward()
            sgd.step()
            return loss.detach()

        compiled = self.torch.compile(self.net)
        return {
            "torch eager": lambda: run(self.net),
            "torch.compile": lambda: run(compiled),
        }


class SegNetBasicPeer(Peer):
    """SegNet-Basic of torch's layers, with our weights.

    Where two values of a window are equal but for rounding, the maximum may be found in another
    place than in ours: the few outputs around such windows are not compared.
    """

    quantile = 0.999

    def build(self, name: str, num_classes: int) -> Any:
        torch, nn = self.torch, self.torch.nn

        class SegNetBasic(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lrn = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
                for i in (1, 2, 3, 4):
                    inputs = 3 if i == 1 else 64
                    setattr(self, f"conv{i}", nn.Conv2d(inputs, 64, 7, padding=3))
                    setattr(self, f"conv_decode{i}", nn.Conv2d(64, 64, 7, padding=3))
                    setattr(self, f"bn{i}", nn.BatchNorm2d(64))
                    setattr(self, f"bn_decode{i}", nn.BatchNorm2d(64))
                self.classifier = nn.Conv2d(64, num_classes, 1)

            def forward(self, x: Any) -> Any:
                x = self.lrn(x)
                pools = []
                for i in (1, 2, 3, 4):
                    x = torch.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
                    size = x.shape[2:]
                    x, indices = nn.functional.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
                    pools.append((indices, size))
                for i in (4, 3, 2, 1):
                    indices, size = pools.pop()
                    x = nn.functional.max_unpool2d(x, indices, 2, output_size=size)
                    x = getattr(self, f"bn_decode{i}")(getattr(self, f"conv_decode{i}")(x))
                return self.classifier(x)

        return SegNetBasic()

    def variables(self, model: nn.Module, variables: dict[str, Any]) -> dict[str, Any]:
        """Gives it our parameters; both start with means of 0 and variances of 1."""
        for layer, params in variables["params"].items():
            ours = {name: np.asarray(value) for name, value in params.items()}
            kernel = ours["kernel"].transpose(3, 2, 0, 1) if "kernel" in ours else ours["scale"]
            theirs = getattr(self.net, layer)
            for parameter, value in ((theirs.weight, kernel), (theirs.bias, ours["bias"])):
                parameter.data.copy_(self.torch.tensor(value))
        return variables

    def logits(self, net: Any, x: Any) -> Any:
        return net(x)

    def train(self, batch: int) -> None:
        self.net.train()

    def heads(self, net: Any, x: Any) -> dict[str, Any]:
        return {"logits": net(x)}


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


def layers(dtype: str, left: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """Yields a row per convolution and way to compute it: the forward pass, and with gradients.

    Takes at most about half of the seconds that are left.
    """
    budget = left() / 2
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    for name, (size, rate, stride, inputs, outputs, height, width) in LAYERS.items():
        x, kernel = draw(1, height, width, inputs), draw(size, size, inputs, outputs)
        kernel *= math.sqrt(2 / math.prod(kernel.shape[:3]))
        grad = draw(1, -(-height // stride), -(-width // stride), outputs)
        args = [jnp.asarray(array, dtype) for array in (x, kernel, grad)]
        native = functools.partial(convolve, rate=rate, stride=stride)
        ways = {"plain": native, "native": native}
        if stride == 1:
            for form in FORMS if GPU else ["native", "taps", *["fourier"] * (size >= 7)]:
                ways[form] = functools.partial(atrous.FORMS[form], rate=rate)
        for mode in ("forward", "with gradients"):
            runs, chosen = {}, compiling.options(training=mode != "forward")
            for way, conv in ways.items():
                options = {} if way == "plain" else chosen
                if mode == "forward":
                    function, given = conv, args[:2]
                else:
                    function, given = functools.partial(value_and_gradients, conv), args
                program = jax.jit(function).lower(*given).compile(compiler_options=options)
                runs[way] = functools.partial(program, *given)
            if importlib.util.find_spec("torch"):
                padding = rate * (size - 1) // 2
                how = {"stride": stride, "padding": padding, "dilation": rate}
                runs["torch"] = torch_convolution(x, kernel, grad, dtype, mode, how)
            about = {"network": name, "dtype": dtype, "mode": f"layer {mode}"}
            share = budget / len(LAYERS) * (0.3 if mode == "forward" else 0.7)
            about["flop"] = 2 * grad.size * kernel[..., 0].size * (1 if mode == "forward" else 3)
            yield from rows_of(seconds(runs, share), 1, about)


def convolve(x: jax.Array, kernel: jax.Array, *, rate: int, stride: int) -> jax.Array:
    pad = rate * (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(rate, rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def value_and_gradients(
    conv: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, Any]:
    y, gradients = jax.vjp(conv, x, kernel)
    return y, gradients(grad)


def torch_convolution(
    x: np.ndarray, kernel: np.ndarray, grad: np.ndarray, dtype: str, mode: str, how: dict[str, int]
) -> Callable[[], Any]:
    """Returns torch's convolution of the same arrays, channels last."""
    import torch

    def tensor(array: np.ndarray, *axes: int) -> Any:
        device = "cuda" if GPU and torch.cuda.is_available() else "cpu"
        value = torch.tensor(array.transpose(axes)).to(device, getattr(torch, dtype))
        return value.contiguous(memory_format=torch.channels_last)

    image, weight = tensor(x, 0, 3, 1, 2), tensor(kernel, 3, 2, 0, 1)
    outer = tensor(grad, 0, 3, 1, 2)
    training = mode != "forward"
    for value in (image, weight):
        value.requires_grad_(training)

    def run() -> Any:
        with torch.set_grad_enabled(training):
            y = torch.nn.functional.conv2d(image, weight, **how)
            if training:
                image.grad = weight.grad = None
                y.backward(outer)
        return y

    return run


def growth(dtype: str) -> Iterator[dict[str, Any]]:
    """Yields a row per quantity: the exponent with which the seconds of a network grow in it."""
    start = {"pixels": 128 * 128, "images": 1, "classes": 16}
    for quantity, mode in itertools.product(start, ("forward", "training")):
        points = []
        for factor in (1, 4, 16):
            now = start | {quantity: start[quantity] * factor}
            side = math.isqrt(now["pixels"])
            case = Case(models.SegNetBasic(now["classes"]), (side, side))
            program = Program("segnet_basic", case, dtype, mode, now["images"])
            program.compile()
            (row,) = program.measure(3.0)
            points.append((math.log(now[quantity]), math.log(row["seconds"])))
        exponent = float(np.polyfit(*zip(*points, strict=True), 1)[0])
        about = {"network": f"seconds of segnet_basic in {quantity}", "dtype": dtype}
        yield about | {"mode": f"growth {mode}", "by": "segjax", "exponent": exponent}


def merge(
    path: pathlib.Path | None, device: str, peaks: dict[str, float], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Adds rows to the file, if any, where an earlier run left others; returns the report."""
    rows = [{**row, "jax": jax.__version__} for row in rows]
    report = {"device": device, "peak_flops": peaks, "rows": rows}
    if path and path.exists() and (old := json.loads(path.read_text()))["device"] == device:
        key = lambda row: tuple(row.get(k) for k in (*COLUMNS, "batch"))
        new = set(map(key, rows))
        report["peak_flops"] = old["peak_flops"] | peaks
        report["rows"] = [row for row in old["rows"] if key(row) not in new] + rows
    if path:
        path.write_text(json.dumps(report, indent=1) + "\n")
    return report


def tables(report: dict[str, Any]) -> Iterator[rich.table.Table]:
    """Yields a table of networks, one of convolutions and one of exponents, where measured."""
    peaks = report["peak_flops"]
    shown = ", ".join(f"{k} {v / 1e12:.3g} TFLOP/s" for k, v in peaks.items())
    networks = rich.table.Table(title=f"{report['device']}; matrix product: {shown}")
    for column in COLUMNS:
        networks.add_column(column, no_wrap=True)
    numbers = ("batch", "ms", "images/s", "compile s", "GFLOP", "of peak", "memory GB", "differs")
    for column in numbers:
        networks.add_column(column, justify="right")
    ways = ("plain", *FORMS, "torch")
    convolutions = rich.table.Table(title="convolutions, one image, milliseconds")
    for column in ("convolution", "mode", "dtype", "jax", *ways):
        convolutions.add_column(column)
    exponents = rich.table.Table("growth", "mode", "dtype", "jax", "exponent")
    times = {}
    for row in report["rows"]:
        where = (row["network"], row["mode"].partition(" ")[2], row["dtype"], row["jax"])
        if row["mode"].startswith("layer"):
            times.setdefault(where, {})[row["by"]] = f"{1e3 * row['seconds']:.1f}"
            continue
        if row["mode"].startswith("growth"):
            exponents.add_row(*where, f"{row['exponent']:.2f}")
            continue
        share = row.get("flop", 0) / row["seconds"] / peaks[row["dtype"]]
        networks.add_row(
            *(row[k] for k in COLUMNS),
            str(row["batch"]),
            f"{1e3 * row['seconds']:.0f}",
            f"{row['batch'] / row['seconds']:.3g}",
            f"{row['compile_s']:.1f}" if "compile_s" in row else "",
            f"{row['flop'] / 1e9:.0f}" if "flop" in row else "",
            f"{share:.0%}" if share else "",
            f"{row['memory_bytes'] / 1e9:.2f}" if "memory_bytes" in row else "",
            f"{row['difference']:.0e}" if "difference" in row else "",
        )
    for where, by in times.items():
        convolutions.add_row(*where, *(by.get(way, "") for way in ways))
    yield from (t for t in (networks, convolutions, exponents) if t.row_count)


if __name__ == "__main__":
    main()
