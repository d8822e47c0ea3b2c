"""The demonstration: SegNet-Basic on generated shapes, no download, minutes on two CPU cores.

    python train.py --config=configs/demo.py --workdir=runs/demo

Hardware: two CPU cores.
Measured: see README.md.
"""

from segjax.config import Augment, Config, Data, Eval, Loss, Optim, Train
from segjax.models import SegNetBasic


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=SegNetBasic(num_classes=7),
        data=Data(name="shapes"),
        augment=Augment(flip=0.5),
        loss=Loss(class_weights="median_frequency"),
        optim=Optim(lr=0.1, schedule="poly", weight_decay=5e-4),
        train=Train(
            steps=400,
            batch_size=8,
            eval_every=100,
            checkpoint_every=100,
            recompute_batch_stats=-1,
        ),
        eval=Eval(batch_size=8),
    )
