"""The configuration of a run: plain dataclasses that hold real objects.

A file in `configs/` defines `get_config() -> Config`; every field can be changed on the command
line, `--config.optim.lr=0.02`, and a wrong name or type fails there, before anything is compiled.
"""

import dataclasses
from typing import Any

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)  # RGB, 0..255


@dataclasses.dataclass
class Input:
    """What the network is fed: `(image - mean) / std`, kept in every checkpoint."""

    mean: tuple[float, float, float] = IMAGENET_MEAN  # RGB, 0..255
    std: tuple[float, float, float] = IMAGENET_STD  # RGB, 0..255
    bgr: bool = False  # feed the channels in the order blue, green, red


@dataclasses.dataclass
class Data:
    """Which images, and how they reach the device."""

    name: str = "shapes"  # a key of segjax.data.datasets.DATASETS
    dir: str = ""  # the folder of the raw data set; shapes needs none
    cache: str = "~/.cache/segjax"  # where prepared ArrayRecord files are written
    train_split: str = "train"  # a split of the data set
    val_split: str = "val"  # a split of the data set
    canvas: tuple[int, int] = (0, 0)  # height, width in pixels all images are padded to; 0: largest
    label_map: str = ""  # changes ids while preparing, "{0:0,255:1}"
    options: str = ""  # of the builder, "year=2012,sbd=True"
    num_train: int = 0  # images of the training split to use; 0: all
    num_val: int = 0  # images of the validation split to use; 0: all
    workers: int = 0  # decoding processes; 0: threads of this process
    threads: int = 4  # decoding threads per process
    prefetch: int = 2  # batches kept ready on the device


@dataclasses.dataclass
class Augment:
    """Random changes of a training image, made on the device."""

    crop: tuple[int, int] = (0, 0)  # height, width in pixels; 0: the canvas
    scales: tuple[float, ...] = ()  # a discrete set of scale factors to draw from
    scale_range: tuple[float, float] = (1.0, 1.0)  # or a range of scale factors, uniform
    flip: float = 0.5  # probability of mirroring left and right
    rotate: float = 0.0  # degrees; the angle is uniform in [-rotate, rotate]
    rotate_prob: float = 0.5  # probability of rotating, where rotate > 0
    blur_prob: float = 0.0  # probability of a Gaussian blur
    blur_sigma: tuple[float, float] = (0.1, 1.1)  # pixels, uniform
    brightness: float = 0.0  # factor uniform in [1 - b, 1 + b]
    contrast: float = 0.0  # factor uniform in [1 - c, 1 + c]
    saturation: float = 0.0  # factor uniform in [1 - s, 1 + s]
    hue: float = 0.0  # degrees; uniform in [-hue, hue]


@dataclasses.dataclass
class Loss:
    """Softmax cross entropy, summed over the model's outputs."""

    heads: dict[str, float] = dataclasses.field(  # output of the model: weight of its loss
        default_factory=lambda: {"logits": 1.0}
    )
    resolution: str = "label"  # "label": logits are upsampled; "logits": labels are shrunk
    align_corners: bool = False  # how the two are brought together; True for the Caffe systems
    class_weights: str = ""  # "", "median_frequency", or one number per class, "0.26,0.18,..."


@dataclasses.dataclass
class Optim:
    """Stochastic gradient descent and its schedule."""

    lr: float = 0.01  # learning rate at step 0
    schedule: str = "poly"  # "poly", "fixed" or "step"
    power: float = 0.9  # of the poly schedule
    end_lr: float = 0.0  # floor of the poly schedule
    step_every: int = 2000  # updates between two drops of the step schedule
    step_factor: float = 0.1  # of the step schedule
    warmup: int = 0  # updates of linear warm-up before the schedule
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4  # added to the gradient, before momentum
    no_decay: tuple[str, ...] = ()  # regular expressions of parameter paths without weight decay
    lr_multipliers: dict[str, float] = dataclasses.field(  # regular expression of paths: factor
        default_factory=dict
    )
    freeze: tuple[str, ...] = ()  # regular expressions of parameter paths that never change
    clip_norm: float = 0.0  # largest global gradient norm; 0: no clipping
    accumulate: int = 1  # batches per update
    ema_decay: float = 0.0  # of the averaged parameters used for evaluation; 0: none


@dataclasses.dataclass
class Train:
    """How long, how often, from where."""

    steps: int = 1000  # batches
    batch_size: int = 16  # images, over all devices and processes
    seed: int = 0
    init_from: str = ""  # a run or checkpoint or weights file to start from; loads what fits
    log_every: int = 10  # steps
    eval_every: int = 0  # steps; 0: only at the end
    checkpoint_every: int = 500  # steps
    keep: int = 3  # newest checkpoints kept, beside the best
    images: int = 8  # images on the picture sheet
    recompute_batch_stats: int = 0  # batches for the BatchNorm statistics at the end; -1: one epoch


@dataclasses.dataclass
class Eval:
    """How a split is scored."""

    batch_size: int = 16  # images, over all devices and processes
    boundary_f1: bool = False  # SegNet's boundary measure; runs on the host, seconds per image
    trimap_widths: tuple[int, ...] = ()  # pixels; DeepLab's bands around the void pixels


@dataclasses.dataclass
class Config:
    """One run."""

    model: Any  # a module of segjax.models
    input: Input = dataclasses.field(default_factory=Input)
    data: Data = dataclasses.field(default_factory=Data)
    augment: Augment = dataclasses.field(default_factory=Augment)
    loss: Loss = dataclasses.field(default_factory=Loss)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    eval: Eval = dataclasses.field(default_factory=Eval)
