"""DeepLab v3 with cascaded modules up to block7 on PASCAL VOC 2012 (section 4.1).

    python train.py --config=configs/deeplab_v3_cascade_voc.py \
        --config.data.dir=VOCdevkit/VOC2012 --config.train.init_from=resnet101.pth \
        --workdir=runs/deeplab_v3_cascade

The rows of Table 2 by --config.model.cascade=0 (block4) to 3 (block7), those of Table 3 by
--config.model.multi_grid, those of Table 1 by --config.model.output_stride. Stages 5 to 7 are
initialised afresh.
Body and normalisation are as torchvision's ImageNet weights need them, stride_in="3x3" and
first_rate="previous". Without these two fields the network is the paper's, for weights trained with
the stride in the 1x1 convolution.

Hardware: not stated in the paper.
Published: mean IoU on val 76.66; at output stride 8 78.05, with scales and mirroring 79.35.
Measured: not yet run. With depth 50, eight crops of 97x97, scored on themselves: mean IoU 98.9
after 240 steps of batch 8 from random weights, with a rate of 0.02 after 20 steps of warm-up, the
gradient clipped to 1, the statistics of BatchNorm measured at the end, and neither augmentation nor
weight decay.
"""

from segjax.config import Augment, Config, Data, Eval, Loss, Optim, Train
from segjax.models import DeepLabV3Cascade


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=DeepLabV3Cascade(num_classes=21, stride_in="3x3", first_rate="previous"),
        data=Data(name="voc_segmentation", train_split="trainaug", canvas=(513, 513)),
        augment=Augment(crop=(513, 513), scale_range=(0.5, 2.0), flip=0.5),
        loss=Loss(resolution="label", align_corners=True),
        optim=Optim(
            lr=0.007,
            schedule="poly",
            power=0.9,
            momentum=0.9,
            weight_decay=1e-4,
            no_decay=(r"(^|/)bn[^/]*/", "/bias$"),
        ),
        train=Train(steps=30_000, batch_size=16, eval_every=5_000),
        eval=Eval(batch_size=8),
    )
