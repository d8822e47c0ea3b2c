"""SegNet: median-frequency balancing raises the class average and costs global accuracy.

    python -m experiments.class_balance --scale small --data CamVid

SegNet-Basic with and without the weights `median(frequency) / frequency` in the loss.
"""

from experiments import trial
from segjax.models import SegNetBasic

WEIGHTS = {"natural": "", "median frequency": "median_frequency"}


def trials(scale: trial.Scale) -> list[trial.Trial]:
    """Returns a trial for each set of class weights."""
    found = []
    for name, weights in WEIGHTS.items():
        model = SegNetBasic(trial.NUM_CLASSES, width=scale.width)
        config = trial.segnet_config(scale, model)
        config.loss.class_weights = weights
        found.append(trial.Trial(name, config))
    return found


CLAIM = trial.Claim(
    "class_balance",
    "SegNet, Table 1 (SegNet-Basic on CamVid's test split): balanced, global accuracy 82.7, class "
    "average 62.0, mean IoU 47.7; natural frequencies 84.0, 54.6, 46.3.",
    trials,
    measures=("class_average", "global_accuracy", "mean_iou"),
)

if __name__ == "__main__":
    trial.main(CLAIM)
