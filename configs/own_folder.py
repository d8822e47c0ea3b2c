"""Your own images and masks on one CPU; `segjax check FOLDER` prints the whole command.

    segjax train --config=configs/own_folder.py --workdir=runs/own --config.data.dir=FOLDER \\
        --config.model.num_classes=2

Number of classes, canvas and crop come from the data, by `segjax check`. With
`--config.train.init_from=` a run or a file of weights it fine-tunes; what does not fit, a head of
other classes for example, is initialised afresh and listed.

Hardware: one CPU.
Published: none.
Measured: not yet run to the end.
"""

from segjax.config import Augment, Config, Data, Eval, Loss, Optim, Train
from segjax.models import SegNetBasic


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=SegNetBasic(num_classes=2, width=32),
        data=Data(name="folder"),
        augment=Augment(flip=0.5, scale_range=(0.75, 1.5)),
        loss=Loss(class_weights="median_frequency"),
        optim=Optim(lr=0.05, weight_decay=5e-4, clip_norm=5.0),
        train=Train(
            steps=2000,
            batch_size=8,
            eval_every=250,
            checkpoint_every=100,
            recompute_batch_stats=-1,
        ),
        eval=Eval(batch_size=4),
    )
