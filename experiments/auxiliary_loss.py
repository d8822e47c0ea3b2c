"""PSPNet: a second loss in the middle of the network helps training.

    python -m experiments.auxiliary_loss --scale small --data CamVid

PSPNet with the loss of the head on stage 3 weighted 0 or 0.4, scored along the way. Between two
scores the statistics of BatchNorm are running averages; the last score is with measured ones.
"""

from experiments import trial
from segjax.models import PSPNet
from segjax.models.layers import Norm


def trials(scale: trial.Scale) -> list[trial.Trial]:
    """Returns a trial for each weight."""
    found = []
    for weight in (0.0, 0.4):
        norm = Norm(decay=0.9)
        model = PSPNet(trial.NUM_CLASSES, depth=scale.depth, width=scale.resnet_width, norm=norm)
        config = trial.resnet_config(scale, model)
        config.loss.heads = {"logits": 1.0, "aux": weight}
        config.train.eval_every = scale.steps // 8
        found.append(trial.Trial(f"weight {weight:g}", config))
    return found


CLAIM = trial.Claim(
    "auxiliary_loss",
    "PSPNet, Table 2 (dilated FCN on ResNet-50, ADE20K val): mean IoU 35.82 without the auxiliary "
    "loss, 37.23 with weight 0.4.",
    trials,
)

if __name__ == "__main__":
    trial.main(CLAIM)
