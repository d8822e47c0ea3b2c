"""DeepLab and CRF-RNN: the CRF sharpens boundaries; badly set, it can hurt.

    python -m experiments.crf_sharpens --scale small --data CamVid

SegNet-Basic before and after a dense CRF: with the parameters that DeepLab v2 published for VOC,
with parameters searched on 20 training images, and learnt end to end with the network, which trains
a quarter longer for that. The control trains as long without a CRF.
"""

import json
import pathlib

from experiments import trial
from segjax import crf
from segjax.config import CRF
from segjax.evaluate import tune_crf
from segjax.models import SegNetBasic
from segjax.models.layers import Norm
from segjax.workdir import TUNED, open_run

FIRST = "network"
GRID = tune_crf.Grid(
    w1=(1.0, 3.0), alpha=(10.0, 30.0), beta=(5.0, 10.0, 20.0), w2=1.0, gamma=1.0, finer=0
)


def trials(scale: trial.Scale) -> list[trial.Trial]:
    """Returns the network and the two that go on from it."""
    found = []
    for name in (FIRST, "network, longer", "CRF, learnt"):
        norm = Norm(frozen=name != FIRST)
        model = SegNetBasic(trial.NUM_CLASSES, width=scale.width, norm=norm)
        config = trial.segnet_config(scale, model)
        config.eval.boundary_f1 = True
        config.eval.trimap_widths = (1, 2, 4, 8)
        if name != FIRST:
            config.train.steps = scale.steps // 4
            config.train.recompute_batch_stats = 0
            config.optim.lr /= 50  # without BatchNorm to level them, gradients are larger
        if name == "CRF, learnt":
            config.crf = CRF(learn=True, w1=2.0, alpha=20.0, beta=10.0, w2=1.0, gamma=1.0)
            config.optim.lr_multipliers = {"^crf/": 50.0, **config.optim.lr_multipliers}
            config.optim.no_decay = ("^crf/", *config.optim.no_decay)
        found.append(trial.Trial(name, config, start="" if name == FIRST else FIRST))
    return found


def scores(which: trial.Trial, workdir: pathlib.Path) -> dict[str, trial.Scores]:
    """Returns the scores of a run, and after the CRFs that belong to it."""
    found = trial.own_scores(which, workdir)
    if which.config.crf.learn:
        last = workdir / "eval" / f"{which.config.train.steps:06d}.json"
        return {which.name: trial.plain(json.loads(last.read_text())["crf"])}
    if which.name == FIRST:
        if not (workdir / TUNED).exists():
            tune_crf.tune(workdir, grid=GRID, images=20, split="train", step="latest")
        kernels = {
            "CRF, DeepLab v2's": crf.PRESETS["deeplab_v2_resnet101"],
            "CRF, tuned": open_run(workdir).crfs["tuned"],
        }
        for name, own in kernels.items():
            found[name] = trial.scored(which, workdir, name.split()[1], kernels=own)
    return found


CLAIM = trial.Claim(
    "crf_sharpens",
    "DeepLab v1 (LargeFOV, VOC val): mean IoU 62.25 before the CRF, 67.64 after; CRF-RNN (reduced "
    "VOC val): 61.3, with a separate CRF 63.7, trained end to end 69.6.",
    trials,
    measures=("mean_iou", "boundary_f1"),
    scores=scores,
)

if __name__ == "__main__":
    trial.main(CLAIM)
