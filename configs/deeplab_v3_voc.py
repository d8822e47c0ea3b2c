"""DeepLab v3 on PASCAL VOC 2012, 10,582 training images: the first of two phases (section 4).

    python train.py --config=configs/deeplab_v3_voc.py --config.data.dir=VOCdevkit/VOC2012 \
        --config.train.init_from=resnet101.pth --workdir=runs/deeplab_v3

Output stride 16, BatchNorm trained on global batches of 16 with decay 0.9997, loss on upsampled
logits. Evaluate at stride 8 with --protocol=deeplab_v3_single; the second phase is
configs/deeplab_v3_voc_phase2.py. The paper names no weight decay: it is the TensorFlow release's,
which is on the kernels alone.
Body and normalisation are as torchvision's ImageNet weights need them, stride_in="3x3" and
first_rate="previous". Without these two fields the network is the paper's, for weights trained with
the stride in the 1x1 convolution.

Hardware: the paper took 3.65 days on one K80, or 2.74 hours on 32 replicas.
Published: mean IoU on val 77.21; at output stride 8 78.51, with scales and mirroring 79.77.
Measured: not yet run. With depth 50, eight crops of 97x97, scored on themselves: mean IoU 99.1
after 120 steps of batch 8 from random weights, with a learning rate of 0.05, the statistics of
BatchNorm measured at the end, and neither augmentation nor weight decay.
"""

from segjax.config import Augment, Config, Data, Eval, Loss, Optim, Train
from segjax.models import DeepLabV3


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=DeepLabV3(num_classes=21, stride_in="3x3", first_rate="previous"),
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
