"""SegNet on CamVid, 367 training images: the protocol of the authors' released tutorial.

    python train.py --config=configs/segnet_camvid.py --config.data.dir=CamVid --workdir=runs/segnet

CamVid is a folder in SegNet's layout (train/, trainannot/, val/, valannot/, test/, testannot/).
The encoder of the tutorial starts from VGG16's ImageNet weights, which are not part of this
project: add --config.train.init_from=FILE, a file of them as published. torchvision's were trained
on RGB over its mean and deviation: with them add --config.input.bgr=False
"--config.input.mean=(123.675, 116.28, 103.53)" "--config.input.std=(58.395, 57.12, 57.375)".

Hardware: one GPU with 8 GB.
Published: global accuracy 88.6, class average 65.9, mean IoU 50.2 on the test split.
Measured: not yet run to the end. Eight crops of 96x128, scored on themselves: mean IoU 95.4 after
160 steps of batch 8 from random weights, with a poly schedule from 0.1, the input normalised, and
neither class weights nor weight decay.
"""

from segjax.config import Augment, Config, Data, Eval, Input, Loss, Optim, Train
from segjax.models import SegNet


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=SegNet(num_classes=11),
        input=Input(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), bgr=True),
        data=Data(name="camvid", canvas=(360, 480)),
        augment=Augment(flip=0.0),
        loss=Loss(class_weights="published"),
        optim=Optim(
            lr=1e-3,
            schedule="fixed",
            momentum=0.9,
            weight_decay=5e-4,
            lr_multipliers={r"(conv[^/]*|classifier)/bias$": 2.0},
            no_decay=("/bias",),
        ),
        train=Train(
            steps=40_000,
            batch_size=4,
            eval_every=2_000,
            checkpoint_every=1_000,
            recompute_batch_stats=-1,
        ),
        eval=Eval(batch_size=4),
    )
