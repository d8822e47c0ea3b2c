"""DeepLab v3 on Cityscapes, 2,975 finely annotated training images (section 4.3).

    python train.py --config=configs/deeplab_v3_cityscapes.py --config.data.dir=cityscapes \
        --config.train.init_from=resnet101.pth --workdir=runs/deeplab_v3_cityscapes

Output stride 16, crops of 769, whole images in evaluation, filled up to 1025x2049, where corners
stay aligned; at stride 8 with --protocol=deeplab_v3_single.
Body and normalisation are as torchvision's ImageNet weights need them, stride_in="3x3" and
first_rate="previous". Without these two fields the network is the paper's, for weights trained with
the stride in the 1x1 convolution.

Hardware: not stated in the paper.
Published: mean IoU on val 77.23; at output stride 8 77.82, with scales and mirroring 79.30.
Measured: not yet run.
"""

from segjax.config import Augment, Config, Data, Eval, Loss, Optim, Train
from segjax.models import DeepLabV3


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=DeepLabV3(num_classes=19, stride_in="3x3", first_rate="previous"),
        data=Data(name="cityscapes", canvas=(1025, 2049)),
        augment=Augment(crop=(769, 769), scale_range=(0.5, 2.0), flip=0.5),
        loss=Loss(resolution="label", align_corners=True),
        optim=Optim(
            lr=0.007,
            schedule="poly",
            power=0.9,
            momentum=0.9,
            weight_decay=1e-4,
            no_decay=(r"(^|/)bn[^/]*/", "/bias$"),
        ),
        train=Train(steps=90_000, batch_size=16, eval_every=10_000),
        eval=Eval(batch_size=1),
    )
