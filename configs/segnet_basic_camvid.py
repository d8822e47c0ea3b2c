"""SegNet-Basic on CamVid, 367 training images: the protocol of the authors' released tutorial.

    python train.py --config=configs/segnet_basic_camvid.py --config.data.dir=CamVid \
        --workdir=runs/segnet_basic

CamVid is a folder in SegNet's layout (train/, trainannot/, val/, valannot/, test/, testannot/).

Hardware: one GPU with 8 GB.
Published: global accuracy 82.8, class average 62.3, mean IoU 46.3 on the test split.
Measured: not yet run to the end. Eight crops of 96x128, scored on themselves: mean IoU 92.9 after
230 steps of batch 8, with a poly schedule (160 steps, then lengthened) and neither class weights
nor weight decay.
"""

from segjax.config import Augment, Config, Data, Eval, Input, Loss, Optim, Train
from segjax.models import SegNetBasic


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=SegNetBasic(num_classes=11),
        input=Input(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), bgr=True),
        data=Data(name="camvid", canvas=(360, 480)),
        augment=Augment(flip=0.0),
        loss=Loss(class_weights="published"),
        optim=Optim(
            lr=0.1,
            schedule="fixed",
            momentum=0.9,
            weight_decay=5e-4,
            lr_multipliers={r"(conv[^/]*|classifier)/bias$": 2.0},
            no_decay=(r"(conv[^/]*|classifier)/bias$",),
        ),
        train=Train(
            steps=10_000,
            batch_size=4,
            eval_every=1_000,
            checkpoint_every=1_000,
            recompute_batch_stats=-1,
        ),
        eval=Eval(batch_size=4),
    )
