"""SegNet starts from VGG16; DeepLab v3 and PSPNet without their ImageNet weights.

    python -m experiments.imagenet_start --scale small --data CamVid --weights vgg16.safetensors

SegNet's encoder from VGG16's convolutions and from nothing, DeepLab v3 and PSPNet with ResNet-50
from nothing: all of the published size, for the same number of steps of the same batch. Learning
rate, weight decay and input are each network's own, and the ResNets' crops are a pixel larger. The
file holds VGG16 as trained with Caffe (BGR, 0..255); without it the first network is left out. What
was run here started from 13 convolutions that descend from ImageNet weights but may have been
trained further, rounded to float16.
"""

from experiments import trial
from segjax import models
from segjax.config import Input
from segjax.models.layers import Norm

# The square roots of SegNet's published class weights.
CLASS_WEIGHTS = "0.51,0.43,2.14,0.38,0.95,0.62,3.11,1.36,0.83,2.50,2.71"
CAFFE = Input(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0), bgr=True)


def trials(scale: trial.Scale) -> list[trial.Trial]:
    """Returns a trial for each network."""
    classes, norm = trial.NUM_CLASSES, Norm(decay=0.9)
    segnet, bias = models.SegNet(classes), ("/bias",)
    configs = {
        "SegNet, from VGG16": trial.segnet_config(scale, segnet, lr=0.05, no_decay=bias),
        "DeepLab v3, ResNet-50, from nothing": trial.resnet_config(
            scale, models.DeepLabV3(classes, depth=50, norm=norm)
        ),
        "PSPNet, ResNet-50, from nothing": trial.resnet_config(
            scale, models.PSPNet(classes, depth=50, norm=norm)
        ),
        "SegNet, from nothing": trial.segnet_config(scale, segnet, lr=0.05, no_decay=bias),
    }
    found = []
    for name, config in configs.items():
        config.loss.class_weights = CLASS_WEIGHTS
        if name.startswith("SegNet"):
            config.input = CAFFE
        if name.startswith("PSPNet"):
            config.loss.heads = {"logits": 1.0, "aux": 0.4}
        if scale.name == "small":
            config.train.steps, config.train.batch_size = 800, 4
        config.train.eval_every = config.train.steps // 2
        config.train.checkpoint_every = config.train.steps // 20
        found.append(trial.Trial(name, config, weights=name.endswith("VGG16")))
    return found


CLAIM = trial.Claim(
    "imagenet_start",
    "SegNet's encoder starts from VGG16's ImageNet weights (section 3; the authors' tutorial: mean "
    "IoU 50.2 on CamVid's test split after 40,000 steps). DeepLab v3 and PSPNet start from "
    "ImageNet's ResNets.",
    trials,
    measures=("mean_iou", "class_average", "global_accuracy"),
)

if __name__ == "__main__":
    trial.main(CLAIM)
