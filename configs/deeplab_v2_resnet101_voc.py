"""DeepLab v2 on ResNet-101 with three scales, PASCAL VOC 2012, 10,582 training images.

    python train.py --config=configs/deeplab_v2_resnet101_voc.py \
        --config.data.dir=VOCdevkit/VOC2012 --config.train.init_from=WEIGHTS \
        --workdir=runs/deeplab_v2

The network starts from ResNet-101 weights in Caffe's layout, for the headline trained on COCO:
those of kazuto1011/deeplab-pytorch can be read. BatchNorm stays as it is there, affine included.
One image per batch, ten batches per update, 20,000 updates; on five devices write
--config.train.batch_size=5 --config.optim.accumulate=2 --config.train.steps=40000. The losses of
the fused map and of the three scales are added.

Hardware: the paper used one Titan X (12 GB).
Published: mean IoU on val 76.35, with CRF 77.69; from ImageNet without scale augmentation 71.27.
Measured: not yet run. With depth 50, eight crops of 97x97, scored on themselves: mean IoU 98.9
after 70 steps of batch 8 from random weights with BatchNorm trained, learning rate 0.005, and 50
more with it frozen, 0.002; the gradient clipped to 1, the loss at the labels' resolution, the input
normalised, and neither augmentation nor weight decay.
"""

from segjax.config import CRF, Augment, Config, Data, Eval, Input, Loss, Optim, Train
from segjax.models import DeepLabV2ResNet


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=DeepLabV2ResNet(num_classes=21),
        input=Input(mean=(122.675, 116.669, 104.008), std=(1.0, 1.0, 1.0), bgr=True),
        data=Data(name="voc_segmentation", train_split="trainaug", canvas=(513, 513)),
        augment=Augment(crop=(321, 321), scales=(0.5, 0.75, 1.0, 1.25, 1.5), flip=0.5),
        loss=Loss(
            heads={"logits": 1.0, "scale_100": 1.0, "scale_075": 1.0, "scale_050": 1.0},
            resolution="logits",
            align_corners=True,
        ),
        crf=CRF(normalization="after"),  # as the authors' program has it
        optim=Optim(
            lr=2.5e-4,
            schedule="poly",
            power=0.9,
            momentum=0.9,
            weight_decay=5e-4,
            lr_multipliers={"^aspp/.*/kernel": 10.0, "^aspp/.*/bias": 20.0},
            no_decay=("^aspp/.*/bias",),
            accumulate=10,
        ),
        train=Train(steps=200_000, batch_size=1, eval_every=50_000),
        eval=Eval(batch_size=1, trimap_widths=(2, 5, 10, 20, 40)),
    )
