"""PSPNet-50 on ADE20K, 150 classes, 20,210 training images (section 5.2).

    python train.py --config=configs/pspnet_ade20k.py --config.data.dir=ADEChallengeData2016 \
        --config.train.init_from=resnet50_v2.pth --workdir=runs/pspnet_ade20k

The heads learn ten times as fast, in both of the authors' codes; weight decay is on all parameters.
The ResNet has the three-convolution stem: it starts from the ImageNet weights of hszhao/semseg, or,
with --config.model.stem=plain, from torchvision's.

Hardware: the authors' PyTorch code was run on 8 GPUs of 11 GB.
Published: mean IoU on val 41.68, pixel accuracy 80.04, with sliding windows and mirroring.
Measured: not yet run.
"""

from segjax.config import Augment, Config, Data, Eval, Loss, Optim, Train
from segjax.models import PSPNet


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=PSPNet(num_classes=150, depth=50),
        data=Data(name="ade20k"),
        augment=Augment(
            crop=(473, 473),
            scale_range=(0.5, 2.0),
            flip=0.5,
            rotate=10.0,
            rotate_prob=0.5,
            blur_prob=0.5,
            blur_sigma=(1.1, 1.1),  # OpenCV's for the authors' 5x5 kernel
        ),
        loss=Loss(heads={"logits": 1.0, "aux": 0.4}, resolution="label", align_corners=True),
        optim=Optim(
            lr=0.01,
            schedule="poly",
            power=0.9,
            momentum=0.9,
            weight_decay=1e-4,
            lr_multipliers={"^(ppm|head|aux)/": 10.0},
        ),
        train=Train(steps=150_000, batch_size=16, eval_every=10_000),
        eval=Eval(batch_size=1),
    )
