"""DeepLab v2: the poly schedule reaches more than steps of the learning rate in the same time.

    python -m experiments.poly_schedule --scale small --data CamVid

The step schedule divides the rate by ten after each third of the training, as in the paper (2000 of
6000). The paper trains DeepLab on VGG16 started from ImageNet; here SegNet-Basic starts from
nothing.
"""

from experiments import trial
from segjax.models import SegNetBasic


def trials(scale: trial.Scale) -> list[trial.Trial]:
    """Returns a trial for each schedule."""
    found = []
    for schedule in ("poly", "step", "fixed"):
        config = trial.segnet_config(
            scale,
            SegNetBasic(trial.NUM_CLASSES, width=scale.width),
            schedule=schedule,
            step_every=scale.steps // 3,
        )
        config.train.eval_every = scale.steps // 4
        found.append(trial.Trial(schedule, config))
    return found


CLAIM = trial.Claim(
    "poly_schedule",
    "DeepLab v2, Table 2 (LargeFOV, VOC val, mean IoU before the CRF): step, batch 30, 62.25; poly "
    "with the same batch and steps 63.42.",
    trials,
)

if __name__ == "__main__":
    trial.main(CLAIM)
