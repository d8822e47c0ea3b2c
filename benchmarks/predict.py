"""Prediction from a picture in memory to its label map, with and without the CRF.

    python benchmarks/predict.py [--only NAMES] [--sizes 360x480 513x513] [--json FILE] [--small]

Each row is `Segmenter.__call__` on uint8 RGB, with a canvas of the picture's own size and random
weights: pre-processing, network, upsampling, CRF and argmax in one compiled program, and both
copies. The first call traces and compiles; "compile" is the part of it that the compiler takes. The
steady time is the median of calls that take turns with the peers.

Peers, where they are installed: torchvision's network from the same picture to labels, eager in
channels_last, after its labels were found to be ours; and pydensecrf on our probabilities, beside
which stands what the CRF adds to our call, the difference of two rows. The CRF is DeepLab v2's, ten
iterations. Its lattice depends on the picture: --image takes a photograph, which is resized.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import flax.linen as nn
import jax
import numpy as np
import rich.console
import rich.table
from models import GPU, Peer

from segjax import models as nets
from segjax import state
from segjax.config import Config, Loss
from segjax.predict.images import read
from segjax.predict.segmenter import Segmenter

CRF = "deeplab_v2_resnet101"
# The network, and whether its paper aligns corners when it upsamples the logits.
NETWORKS = {
    "segnet": (nets.SegNet(11), False),
    "deeplab_v1": (nets.DeepLabV1(21), True),
    "deeplab_v2_resnet101": (nets.DeepLabV2ResNet(21), True),
    "deeplabv3_resnet50": (nets.TorchvisionDeepLabV3(21, depth=50), False),
    "deeplab_v3_resnet50": (nets.DeepLabV3(21, depth=50), True),
    "pspnet_resnet50": (nets.PSPNet(21, depth=50), True),
}
TORCHVISION = "deeplabv3_resnet50"
DEFAULT = ("segnet", TORCHVISION, "pspnet_resnet50")


def main() -> None:
    """Measures, prints the table, writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=DEFAULT, choices=NETWORKS, metavar="NAME")
    parser.add_argument("--sizes", nargs="+", default=["360x480", "513x513"], metavar="HxW")
    parser.add_argument("--image", help="a photograph; by default a generated picture")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each that are timed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--small", action="store_true", help="65x97 pixels, to see that it runs")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the numbers")
    args = parser.parse_args()
    # XLA takes as many threads as it finds cores when it starts.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    sizes = ["65x97"] if args.small else args.sizes
    picture = read(args.image) if args.image else octaves(768, 1024)
    rows = []
    for name in args.only:
        for size in sizes:
            height, width = map(int, size.split("x"))
            image = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            rows += measure(name, image, args.rounds, args.threads)
    report = {
        "device": jax.devices()[0].device_kind if GPU else platform.machine(),
        **{"threads": args.threads, "rounds": args.rounds, "image": args.image or "generated"},
        "rows": rows,
    }
    rich.console.Console(width=120).print(table(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def measure(name: str, image: np.ndarray, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Returns the rows of one network and size, without and with the CRF."""
    model, align_corners = NETWORKS[name]
    variables = random_variables(model, image.shape[:2])
    calls: dict[str, Callable[[], Any]] = {}
    peer = None
    if name == TORCHVISION and importlib.util.find_spec("torchvision"):
        peer = Peer(TORCHVISION, model.num_classes, "float32")
        peer.torch.set_num_threads(threads)
        variables = peer.variables(model, variables)
        calls["torchvision"] = lambda: torchvision_labels(peer, image)
    config = Config(model=model, loss=Loss(align_corners=align_corners))
    blank = [[0, 0, 0]] * model.num_classes
    seg = Segmenter(config, variables, classes=["a"] * model.num_classes, palette=blank)
    canvas = image.shape[:2]
    if importlib.util.find_spec("pydensecrf"):
        probs = seg(image, canvas=canvas, probs=True).probs
        calls["pydensecrf"] = lambda: pydensecrf_labels(probs, image)

    rows = []
    for crf in ("none", CRF):
        refined = crf != "none"
        label = "with CRF" if refined else "network"
        calls[label] = lambda crf=crf: seg(image, canvas=canvas, crf=crf).labels
        with compiling() as seconds:
            start = time.perf_counter()
            found = calls[label]()
            first = time.perf_counter() - start
        if peer and not refined:
            equal = (found == calls["torchvision"]()).mean()
            if equal < 0.999:
                raise SystemExit(f"{name}: {1 - equal:.2%} of torchvision's labels are others")
        about = {"network": name, "height": canvas[0], "width": canvas[1], "crf": refined}
        rows.append({**about, "compile_s": sum(seconds), "first_call_s": first})
    times = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            times[key].append(time.perf_counter() - start)
    found = {key: 1e3 * statistics.median(values) for key, values in times.items()}
    rows[0] |= {"ms": found["network"], "peer": "torchvision", "peer_ms": found.get("torchvision")}
    rows[1] |= {"ms": found["with CRF"], "peer": "pydensecrf", "peer_ms": found.get("pydensecrf")}
    rows[0]["compared_ms"] = found["network"]
    rows[1]["compared_ms"] = found["with CRF"] - found["network"]
    return rows


@contextlib.contextmanager
def compiling() -> Iterator[list[float]]:
    """Yields a list that gets the seconds of each compilation."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seconds
    jax.monitoring.unregister_event_duration_listener(listen)


def random_variables(model: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """Returns weights of He's variance, and statistics that leave them alone."""
    init = lambda key: state.init_variables(model, key, size)
    rng = np.random.default_rng(0)

    def fill(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            deviation = math.sqrt(2 / math.prod(like.shape[:-1]))
            return rng.standard_normal(like.shape, np.float32) * np.float32(deviation)
        return np.full(like.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(init, jax.random.key(0)))


def octaves(height: int, width: int) -> np.ndarray:
    """Returns a picture with structure of every size, uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    total = np.zeros((height, width, 3), np.float32)
    for side in (3, 6, 12, 24, 48, 96, 192):
        noise = rng.uniform(-1, 1, (side, side, 3)).astype(np.float32) * (3 / side) ** 0.8
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(128 + 70 * total, 0, 255).astype(np.uint8)


def torchvision_labels(peer: Peer, image: np.ndarray) -> np.ndarray:
    """Runs torchvision's network on a picture as our predictor does."""
    torch = peer.torch
    with torch.no_grad():
        x = torch.from_numpy(image).to(peer.device).permute(2, 0, 1)[None].float()
        config = Config(model=None).input
        mean, std = (
            torch.tensor(values, device=peer.device)[:, None, None]
            for values in (config.mean, config.std)
        )
        x = ((x - mean) / std).to(memory_format=torch.channels_last)
        return peer.net(x)["out"].argmax(1)[0].to(torch.uint8).cpu().numpy()


def pydensecrf_labels(probs: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Refines probabilities by pydensecrf with the same parameters."""
    from pydensecrf import densecrf

    from segjax import crf

    height, width, count = probs.shape
    field = densecrf.DenseCRF2D(width, height, count)
    unary = -np.log(np.maximum(probs, 1e-20)).transpose(2, 0, 1).reshape(count, -1)
    field.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
    for kernel in crf.PRESETS[CRF]:
        if isinstance(kernel, crf.Bilateral):
            field.addPairwiseBilateral(
                kernel.sigma_xy, kernel.sigma_rgb, np.ascontiguousarray(image), kernel.weight
            )
        else:
            field.addPairwiseGaussian(kernel.sigma, kernel.weight)
    return np.argmax(field.inference(10), axis=0).reshape(height, width)


def table(report: dict[str, Any]) -> rich.table.Table:
    """Returns a row for each network, size and with or without CRF."""
    made = rich.table.Table(
        title=f"one picture to labels on {report['device']}, {report['threads']} threads"
    )
    made.add_column("network")
    for heading in ("size", "CRF", "compile s", "first call s", "ms", "peer", "ours ms", "peer ms"):
        made.add_column(heading, justify="right")
    for row in report["rows"]:
        compared = ["", "", ""]
        if row["peer_ms"] is not None:
            compared = [row["peer"], f"{row['compared_ms']:.0f}", f"{row['peer_ms']:.0f}"]
        made.add_row(
            row["network"],
            f"{row['height']}x{row['width']}",
            "yes" if row["crf"] else "no",
            f"{row['compile_s']:.1f}",
            f"{row['first_call_s']:.1f}",
            f"{row['ms']:.0f}",
            *compared,
        )
    return made


if __name__ == "__main__":
    main()
