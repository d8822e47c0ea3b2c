"""DeepLab v3: BatchNorm needs large batches; it is then frozen for a second phase at stride 8.

    python -m experiments.batch_norm --scale small --data CamVid

Batches of 4, 8 and 16 for the same number of steps, as in Table 9: a larger batch also sees more
images. The second phase, half as many steps with a tenth of the learning rate, goes on from batch
16 with frozen BatchNorm at output stride 8; as a control, with trained BatchNorm at stride 16.
"""

from experiments import trial
from segjax.models import DeepLabV3
from segjax.models.layers import Norm


def trials(scale: trial.Scale) -> list[trial.Trial]:
    """Returns a trial for each batch size and for each second phase."""
    found = [_trial(scale, f"batch {size}", size) for size in (4, 8, 16)]
    for name, stride, frozen in (
        ("then frozen, stride 8", 8, True),
        ("then trained, stride 16", 16, False),
    ):
        phase = _trial(scale, f"batch 16, {name}", 16, stride, frozen)
        phase.config.train.steps = scale.steps // 2
        phase.config.optim.lr /= 10
        if frozen:
            phase.config.train.recompute_batch_stats = 0
        found.append(trial.Trial(phase.name, phase.config, start="batch 16"))
    return found


def _trial(
    scale: trial.Scale, name: str, batch_size: int, stride: int = 16, frozen: bool = False
) -> trial.Trial:
    model = DeepLabV3(
        trial.NUM_CLASSES,
        depth=scale.depth,
        output_stride=stride,
        features=scale.features,
        width=scale.resnet_width,
        norm=Norm(decay=0.9, frozen=frozen),
    )
    config = trial.resnet_config(scale, model)
    config.train.batch_size = batch_size
    config.train.recompute_batch_stats = 20 * 16 // batch_size  # measured on equally many images
    return trial.Trial(name, config)


CLAIM = trial.Claim(
    "batch_norm",
    "DeepLab v3, Table 9 (ResNet-101, VOC val): mean IoU 64.43, 75.76, 76.49, 77.21 with batches "
    "of 4, 8, 12, 16.",
    trials,
)

if __name__ == "__main__":
    trial.main(CLAIM)
