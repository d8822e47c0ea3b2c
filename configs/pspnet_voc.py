"""PSPNet-101 on PASCAL VOC 2012, 10,582 training images (section 5.3).

    python train.py --config=configs/pspnet_voc.py --config.data.dir=VOCdevkit/VOC2012 \
        --config.train.init_from=resnet101_v2.pth --workdir=runs/pspnet_voc

The heads learn ten times as fast, in both of the authors' codes; weight decay is on all parameters.
The ResNet has the three-convolution stem: it starts from the ImageNet weights of hszhao/semseg, or,
with --config.model.stem=plain, from torchvision's.

Hardware: the authors' PyTorch code was run on 8 GPUs of 11 GB.
Published: mean IoU on test 82.6; on val 79.07 by the authors' PyTorch code, with
sliding windows and mirroring.
Measured: not yet run. With depth 50, eight crops of 97x97, scored on themselves: mean IoU 99.5
after 120 steps of batch 8 from random weights, with the statistics of BatchNorm measured at the
end, and neither augmentation nor weight decay.
"""

from segjax.config import Augment, Config, Data, Eval, Loss, Optim, Train
from segjax.models import PSPNet


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=PSPNet(num_classes=21),
        data=Data(name="voc_segmentation", train_split="trainaug", canvas=(513, 513)),
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
        train=Train(steps=30_000, batch_size=16, eval_every=10_000),
        eval=Eval(batch_size=8),
    )
