"""DeepLab v1 LargeFOV on PASCAL VOC 2012, 10,582 training images (DeepLab v1, section 4).

    python train.py --config=configs/deeplab_v1_voc.py --config.data.dir=VOCdevkit/VOC2012 \
        --config.train.init_from=vgg16.pth --workdir=runs/deeplab_v1

The network starts from VGG16's ImageNet weights, fc6 and fc7 decimated. Those of torchvision were
trained on RGB over its mean and deviation: with them add --config.input.bgr=False
--config.input.mean="(123.675, 116.28, 103.53)" --config.input.std="(58.395, 57.12, 57.375)".
The losses are on the 41x41 grid of the logits, labels shrunk to it. The paper's text has batch 20,
a table of DeepLab v2 has 30 for the same schedule.

Hardware: the paper used one Titan (6 GB).
Published: mean IoU on val 62.25, with CRF 67.64.
Measured: not yet run. Eight crops of 97x97, scored on themselves: mean IoU 98.5 after 200 steps of
batch 8 from random weights, with a poly schedule from 0.005, the gradient clipped to 1, the loss at
the labels' resolution, the input normalised as above, and neither augmentation nor weight decay.
"""

from segjax.config import CRF, Augment, Config, Data, Eval, Input, Loss, Optim, Train
from segjax.models import DeepLabV1


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=DeepLabV1(num_classes=21),
        input=Input(mean=(122.675, 116.669, 104.008), std=(1.0, 1.0, 1.0), bgr=True),
        data=Data(name="voc_segmentation", train_split="trainaug", canvas=(513, 513)),
        augment=Augment(crop=(321, 321), flip=0.5),
        loss=Loss(resolution="logits", align_corners=True),
        crf=CRF(normalization="after"),  # as the authors' program has it
        optim=Optim(
            lr=1e-3,
            schedule="step",
            step_every=2_000,
            step_factor=0.1,
            momentum=0.9,
            weight_decay=5e-4,
            lr_multipliers={"^fc8/kernel": 10.0, "^fc8/bias": 20.0, "/bias": 2.0},
            no_decay=("/bias",),
        ),
        train=Train(steps=6_000, batch_size=20, eval_every=2_000),
        eval=Eval(batch_size=10, trimap_widths=(2, 5, 10, 20, 40)),
    )
