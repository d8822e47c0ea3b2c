"""SegNet: the stored positions of the maxima keep boundaries sharp, at little cost.

    python -m experiments.stored_indices --scale small --data CamVid

SegNet-Basic against other decoders on the same encoder (`experiments.decoders`), after Table 1 of
the paper. Counted for the paper's size, 360x480 and 64 channels: parameters; the bytes that the
compiled network needs for the maps of one image; and the bytes per image that must be kept from the
encoder for the decoder, with four bytes a number and two bits a position.

The FCN decoders have no BatchNorm: at the learning rate of the others their loss is not finite from
step 11 on (small scale), so the norm of their gradient is held to 1.
"""

import math
from typing import Any

from experiments import decoders, trial
from segjax.models import SegNetBasic

DECODERS = {
    "SegNet-Basic": SegNetBasic,
    "bilinear": decoders.Bilinear,
    "encoder addition": decoders.EncoderAddition,
    "FCN-Basic": decoders.FCNBasic,
    "FCN-Basic, no addition": decoders.FCNBasicNoAddition,
}


def trials(scale: trial.Scale) -> list[trial.Trial]:
    """Returns a trial for each decoder."""
    found = []
    for name, network in DECODERS.items():
        clip = {"clip_norm": 1.0} if name.startswith("FCN") else {}
        config = trial.segnet_config(scale, network(trial.NUM_CLASSES, width=scale.width), **clip)
        config.eval.boundary_f1 = True
        config.eval.trimap_widths = (1, 2, 4, 8)
        found.append(trial.Trial(name, config))
    return found


def kept(name: str, size: tuple[int, int] = (360, 480), width: int = 64) -> int:
    """Returns the bytes kept from the encoder for the decoder, for one image."""
    sizes = [size]
    for _ in range(4):
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    pixels, cells = (sum(map(math.prod, part)) for part in (sizes[:4], sizes[1:]))
    positions = cells * width // 4
    return {
        "SegNet-Basic": positions,
        "bilinear": 0,
        "encoder addition": positions + 4 * pixels * width,
        "FCN-Basic": 4 * pixels * trial.NUM_CLASSES,
        "FCN-Basic, no addition": 0,
    }[name]


def facts() -> dict[str, Any]:
    """Counts parameters and memory at the paper's size."""
    return {
        name: {
            "parameters": trial.parameters(network(trial.NUM_CLASSES)),
            "inference_bytes": trial.inference_memory(network(trial.NUM_CLASSES), (360, 480)),
            "kept_bytes": kept(name),
        }
        for name, network in DECODERS.items()
    }


CLAIM = trial.Claim(
    "stored_indices",
    "SegNet, Table 1 (360x480, natural frequencies; mean IoU and boundary F1 on test): bilinear "
    "43.8 and 23.1, SegNet-Basic 46.3 and 36.7, encoder addition 47.7 and 36.3, FCN-Basic 45.0 "
    "and 37.3, without addition 44.2 and 29.4. FCN-Basic needs 11 times the memory of positions.",
    trials,
    measures=("mean_iou", "boundary_f1"),
    facts=facts,
)

if __name__ == "__main__":
    trial.main(CLAIM)
