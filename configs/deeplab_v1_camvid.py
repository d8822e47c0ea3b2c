"""DeepLab v1 LargeFOV on CamVid, 367 training images, started from VGG16: a size for two CPU cores.

    python train.py --config=configs/deeplab_v1_camvid.py --config.data.dir=CamVid \
        --config.train.init_from=vgg16.safetensors --workdir=runs/deeplab_v1_camvid

CamVid is a folder in SegNet's layout. The input is normalised for weights of Caffe (BGR, 0..255);
with torchvision's add what configs/deeplab_v1_voc.py says. The paper's network and its loss on the
grid of the logits; crops, schedule and class weights (square roots of SegNet's published ones) are
made for few steps.

Hardware: two CPU cores.
Published: none; on CamVid's test split SegNet reached 50.2 with 40,000 steps.
Measured: mean IoU on val 39.9, global accuracy 81.2, class average 52.6 (one run, JAX 0.10, one
core of an AMD EPYC), from 13 convolutions that descend from ImageNet weights but may have been
trained further, rounded to float16. 36.0 after 160 steps. Earlier runs, in which gradients of
biases were summed in bfloat16: 40.2 and 81.4 from the same weights (JAX 0.12, two cores; its first
121 steps had a schedule of 400), and from random weights, without init_from, 20.7 and 57.4 after as
many steps. A CRF tuned on 25 images of one half of val takes the other half of the 40.2 from 40.0
to 40.6, its global accuracy from 81.1 to 83.6 (w1 4, alpha 40, beta 5, at the end of the range that
was searched). Poles, signs, fences and bicyclists are hardly found.
"""

from segjax.config import Augment, Config, Data, Eval, Input, Loss, Optim, Train
from segjax.models import DeepLabV1


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=DeepLabV1(num_classes=11, dtype="bfloat16"),
        input=Input(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0), bgr=True),
        data=Data(name="camvid", canvas=(361, 481)),
        augment=Augment(crop=(161, 161), scale_range=(0.5, 1.0), flip=0.5),
        loss=Loss(
            resolution="logits",
            align_corners=True,
            class_weights="0.51,0.43,2.14,0.38,0.95,0.62,3.11,1.36,0.83,2.50,2.71",
        ),
        optim=Optim(
            lr=2e-3,
            lr_multipliers={
                "^fc[678]/kernel": 5.0,
                "^fc[678]/bias": 10.0,
                "^backbone/.*/bias": 2.0,
            },
            no_decay=("/bias",),
            clip_norm=5.0,
        ),
        train=Train(steps=320, batch_size=8, eval_every=160, checkpoint_every=50),
        eval=Eval(batch_size=4),
    )
