"""PSPNet-101 on Cityscapes, 2,975 finely annotated training images (section 5.4).

    python train.py --config=configs/pspnet_cityscapes.py --config.data.dir=cityscapes \
        --config.train.init_from=resnet101_v2.pth --workdir=runs/pspnet_cityscapes

The heads learn ten times as fast, in both of the authors' codes; weight decay is on all parameters.
The ResNet has the three-convolution stem: it starts from the ImageNet weights of hszhao/semseg, or,
with --config.model.stem=plain, from torchvision's.

Hardware: the authors' PyTorch code was run on 8 GPUs of 11 GB.
Published: mean IoU on test 78.4; on val 78.63 by the authors' PyTorch code, with
sliding windows and mirroring.
Measured: not yet run.
"""

from segjax.config import Augment, Config, Data, Eval, Loss, Optim, Train
from segjax.models import PSPNet


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=PSPNet(num_classes=19),
        data=Data(name="cityscapes", canvas=(1025, 2049)),
        augment=Augment(crop=(713, 713), scale_range=(0.5, 2.0), flip=0.5),
        loss=Loss(heads={"logits": 1.0, "aux": 0.4}, resolution="label", align_corners=True),
        optim=Optim(
            lr=0.01,
            schedule="poly",
            power=0.9,
            momentum=0.9,
            weight_decay=1e-4,
            lr_multipliers={"^(ppm|head|aux)/": 10.0},
        ),
        train=Train(steps=90_000, batch_size=16, eval_every=10_000),
        eval=Eval(batch_size=1),
    )
