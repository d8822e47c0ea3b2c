"""SegNet-Basic on CamVid, 367 training images, from nothing: a size for two CPU cores.

    python train.py --config=configs/segnet_basic_camvid_crops.py --config.data.dir=CamVid \
        --workdir=runs/segnet_basic_crops

CamVid is a folder in SegNet's layout. The network, the optimiser and the batch are the released
ones (configs/segnet_basic_camvid.py); scaled and mirrored crops, the poly schedule and the square
roots of the published class weights are made for few steps.

Hardware: two CPU cores.
Published: global accuracy 82.8, class average 62.3, mean IoU 46.3 on the test split, 10,000 steps.
Measured: mean IoU on val 40.1, global accuracy 76.0, class average 57.9 (one run on one core of an
AMD EPYC, JAX 0.10, beside other work: 96 minutes, of which 72 were steps; its first 271 steps had
schedules of 2,000 and 1,800). After 400, 800 and 1,200 steps, with the running statistics of
BatchNorm, 29.0, 22.7 and 33.4. After 1,600 steps more from here with optim.lr=0.055: 50.3,
83.1, 68.4. The network comes with the project: weights/segnet_basic_camvid.
"""

from segjax.config import Augment, Config, Data, Eval, Input, Loss, Optim, Train
from segjax.models import SegNetBasic


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=SegNetBasic(num_classes=11),
        input=Input(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), bgr=True),
        data=Data(name="camvid", canvas=(360, 480)),
        augment=Augment(crop=(176, 240), scale_range=(0.5, 1.0)),
        loss=Loss(class_weights="0.51,0.43,2.14,0.38,0.95,0.62,3.11,1.36,0.83,2.50,2.71"),
        optim=Optim(
            lr=0.1,
            lr_multipliers={r"(conv[^/]*|classifier)/bias$": 2.0},
            no_decay=(r"(conv[^/]*|classifier)/bias$",),
        ),
        train=Train(
            steps=1_600,
            batch_size=4,
            eval_every=400,
            checkpoint_every=100,
            recompute_batch_stats=100,
        ),
        eval=Eval(batch_size=4),
    )
