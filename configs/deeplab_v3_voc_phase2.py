"""DeepLab v3 on PASCAL VOC 2012: the second phase, for the test server (section 4).

    python train.py --config=configs/deeplab_v3_voc_phase2.py --config.data.dir=VOCdevkit/VOC2012 \
        --config.train.init_from=runs/deeplab_v3 --workdir=runs/deeplab_v3_phase2

Starts from the first phase (configs/deeplab_v3_voc.py): BatchNorm frozen, output stride 8, the
official trainval set. The score on val means little then: val is part of it. The paper duplicates
the images of hard classes; that is not done here.
Body and normalisation are as torchvision's ImageNet weights need them, stride_in="3x3" and
first_rate="previous". Without these two fields the network is the paper's, for weights trained with
the stride in the 1x1 convolution.

Hardware: not stated in the paper.
Published: mean IoU on the test set 85.7, after pretraining on COCO.
Measured: not yet run.
"""

from segjax.config import Augment, Config, Data, Eval, Loss, Optim, Train
from segjax.models import DeepLabV3, Norm


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=DeepLabV3(
            num_classes=21,
            output_stride=8,
            stride_in="3x3",
            first_rate="previous",
            norm=Norm(frozen=True),
        ),
        data=Data(name="voc_segmentation", train_split="trainval", canvas=(513, 513)),
        augment=Augment(crop=(513, 513), scale_range=(0.5, 2.0), flip=0.5),
        loss=Loss(resolution="label", align_corners=True),
        optim=Optim(
            lr=0.001,
            schedule="poly",
            power=0.9,
            momentum=0.9,
            weight_decay=1e-4,
            no_decay=(r"(^|/)bn[^/]*/", "/bias$"),
        ),
        train=Train(steps=30_000, batch_size=16, eval_every=5_000),
        eval=Eval(batch_size=8),
    )
