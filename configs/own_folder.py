"""Your own images and masks on one CPU; classes, canvas, class weights and crop come from them.

    segjax train --config=configs/own_folder.py --config.data.dir=FOLDER --workdir=runs/own

`segjax check FOLDER` tells first whether the folder can be used, and how. The crop is the largest
image, or 256 pixels a side. With `--config.train.init_from=` a run or a file of weights of the same
kind of network it fine-tunes; layers that do not fit, a head of other classes for example, are
initialised afresh and listed.

Hardware: one CPU.
Published: none.
Measured: not yet run to the end.
"""

from segjax.config import Augment, Config, Data, Eval, Loss, Optim, Train
from segjax.models import SegNetBasic


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=SegNetBasic(num_classes=0, width=32),  # 0: those of the data
        data=Data(name="folder"),
        augment=Augment(largest_crop=256, flip=0.5, scale_range=(0.75, 1.5)),
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
