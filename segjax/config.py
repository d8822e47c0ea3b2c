"""The configuration of a run: plain dataclasses that hold real objects.

A file in `configs/` defines `get_config() -> Config`; every field can be changed on the command
line, `--config.optim.lr=0.02`, and a wrong name or type fails there, before anything is compiled.
"""

import dataclasses
import fractions
import math
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)  # RGB, 0..255
FLAX = ("parent", "name")  # fields of a module that say where it stands in another


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
    dir: str = ""  # the folder of the raw data set, or gs://...; shapes needs none
    cache: str = "~/.cache/segjax"  # where prepared ArrayRecord files are written, or gs://...
    train_split: str = "train"  # a split of the data set
    val_split: str = "val"  # a split of the data set
    canvas: tuple[int, int] = (0, 0)  # height, width in pixels all images are padded to; 0: largest
    label_map: str = ""  # changes ids while preparing, "{0:0,255:1}"
    options: str = ""  # of the builder, "height=64,seed=1"
    num_train: int = 0  # images of the training split to use; 0: all
    num_val: int = 0  # images of the validation split to use; 0: all
    workers: int = 0  # decoding processes; 0: threads of this process
    threads: int = 4  # decoding threads per process
    prefetch: int = 2  # batches kept ready on the device
    # Damaged pictures of the training split to leave out at the most: while it is prepared, and
    # of the prepared ones in a whole run, counted by each process; of several, from each start.
    max_decode_errors: int = 0


@dataclasses.dataclass
class Augment:
    """Random changes of a training image, made on the device."""

    crop: tuple[int, int] = (0, 0)  # height, width in pixels; 0: the canvas
    largest_crop: int = 0  # pixels; limits both sides of a crop of 0 for the data at hand; 0: not
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
    class_weights: str = ""  # "", "median_frequency", "published", or "0.26,0.18,...", one a class


@dataclasses.dataclass
class CRF:
    """The fully connected CRF after the network, and how it is trained with it (CRF-RNN).

    The letters are those of the papers: `w1 exp(-|p|^2 / 2 alpha^2 - |I|^2 / 2 beta^2)` and
    `w2 exp(-|p|^2 / 2 gamma^2)`. They are the start of training; `segjax eval --crf` and
    `segjax predict --crf` of a run that learnt no CRF choose others.
    """

    learn: bool = False  # train network and CRF end to end; parameters "crf/..."
    w1: float = 5.0  # weight of the bilateral kernel
    alpha: float = 160.0  # pixels, its width in the image
    beta: float = 3.0  # grey levels in 0..255, its width in each colour
    w2: float = 3.0  # weight of the spatial kernel
    gamma: float = 3.0  # pixels, its width
    train_iterations: int = 5  # of mean field in a training step
    test_iterations: int = 10  # of mean field in evaluation and prediction
    normalization: str = "symmetric"  # of the kernels: "symmetric", "after", "before" or "none"


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
    init_from: str = ""  # a run or weights to start from, or gs://...; loads what fits
    log_every: int = 10  # steps
    eval_every: int = 0  # steps; 0: only at the end
    checkpoint_every: int = 500  # steps
    keep: int = 3  # newest checkpoints kept, besides the best
    images: int = 8  # images on the picture sheet
    engine: str = "pmap"  # what maps the step over devices: "pmap", or "shard_map" on global arrays
    rows: int = 1  # devices that share the rows of each image; above 1 with engine "shard_map"
    max_skipped: int = 0  # steps in a row, loss or gradient not finite, left out; 0: the run stops
    recompute_batch_stats: int = 0  # batches for the BatchNorm statistics at the end; -1: one epoch


@dataclasses.dataclass
class Eval:
    """How a split is scored."""

    batch_size: int = 16  # images, over all devices and processes
    boundary_f1: bool = False  # SegNet's boundary measure; runs on the host, seconds per image
    trimap_widths: tuple[int, ...] = ()  # pixels; DeepLab's bands around the void pixels


@dataclasses.dataclass
class Compile:
    """How XLA compiles programs that hold the network."""

    libraries: bool = True  # on a CPU, choose XLA's libraries by segjax.compiling; False: XLA does


@dataclasses.dataclass
class Config:
    """One run."""

    model: Any  # a module of segjax.models; num_classes=0: those of the data
    input: Input = dataclasses.field(default_factory=Input)
    data: Data = dataclasses.field(default_factory=Data)
    augment: Augment = dataclasses.field(default_factory=Augment)
    loss: Loss = dataclasses.field(default_factory=Loss)
    crf: CRF = dataclasses.field(default_factory=CRF)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    eval: Eval = dataclasses.field(default_factory=Eval)
    compile: Compile = dataclasses.field(default_factory=Compile)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a configuration as JSON values; a network carries the name of its class."""
    return _plain(config)


def from_dict(values: Mapping[str, Any], classes: Mapping[str, type]) -> Config:
    """Builds the configuration that `to_dict` was given.

    Args:
      values: as read from JSON.
      classes: the classes a network or one of its fields may have, by name.

    Raises:
      ValueError: a class or a field is unknown, or of another type: the file is damaged, or from
        another version.
    """
    if not isinstance(values, Mapping) or "model" not in values:
        raise ValueError("configuration has no part 'model': it is damaged, or not of segjax")
    model = _object("model", values["model"], classes)
    parts = {f.name: f for f in dataclasses.fields(Config) if f.name != "model"}
    if dataclasses.is_dataclass(model):
        _check_types("model", model)
    config = Config(model=model)
    for name, part in values.items():
        if name == "model":
            continue
        if name not in parts:
            raise ValueError(f"configuration has a part {name!r}; accepted are {sorted(parts)}")
        if not isinstance(part, Mapping):
            raise ValueError(f"configuration has {name}: {part!r}; its fields are needed")
        known = {f.name for f in dataclasses.fields(parts[name].default_factory)}
        if unknown := sorted(map(str, set(part) - known)):
            raise ValueError(f"configuration has {name}.{unknown[0]}, which is unknown")
        for field, value in part.items():
            setattr(getattr(config, name), field, _tuples(value))
        _check_part(name, getattr(config, name), parts[name].default_factory)
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yields a line "optim.lr: 0.1 -> 0.01" for each value in which two dictionaries differ."""
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{path}{name}.")
        elif a != b:
            yield f"{path}{name}: {a} -> {b}"


INF = math.inf
RANGES = {  # smallest and largest value of a number, ends included, or of each number of a tuple
    "train.steps": (1, 2**31 - 1),  # counted in int32
    "train.seed": (0, 2**32 - 1),
    **dict.fromkeys(("train.batch_size", "train.log_every", "train.checkpoint_every"), (1, INF)),
    **dict.fromkeys(("train.keep", "train.rows", "eval.batch_size"), (1, INF)),
    **dict.fromkeys(("train.eval_every", "train.images", "train.max_skipped"), (0, INF)),
    "train.recompute_batch_stats": (-1, INF),
    **dict.fromkeys(("data.num_train", "data.num_val", "data.workers"), (0, INF)),
    **dict.fromkeys(("data.threads", "data.prefetch"), (1, INF)),
    "data.max_decode_errors": (0, INF),
    **dict.fromkeys(("data.canvas", "augment.crop", "augment.largest_crop"), (0, INF)),
    **dict.fromkeys(("augment.flip", "augment.rotate_prob", "augment.blur_prob"), (0, 1)),
    **dict.fromkeys(("augment.brightness", "augment.contrast", "augment.saturation"), (0, 1)),
    **dict.fromkeys(("augment.rotate", "augment.hue"), (0, 180)),
    "loss.heads": (0, INF),
    **dict.fromkeys(("crf.train_iterations", "crf.test_iterations"), (1, INF)),
    **dict.fromkeys(("optim.lr", "optim.weight_decay", "optim.clip_norm"), (0, INF)),
    **dict.fromkeys(("optim.end_lr", "optim.power", "optim.warmup", "optim.step_factor"), (0, INF)),
    **dict.fromkeys(("optim.accumulate", "optim.step_every"), (1, INF)),
    "optim.lr_multipliers": (0, INF),
    "eval.trimap_widths": (1, INF),
}
CHOICES = {
    "train.engine": ("pmap", "shard_map"),
    "loss.resolution": ("label", "logits"),
    "crf.normalization": ("symmetric", "after", "before", "none"),
    "optim.schedule": ("poly", "fixed", "step"),
}
DTYPES = ("float32", "bfloat16", "float16")  # of model.dtype
WEIGHTS_OF_DATA = ("median_frequency", "published")  # of loss.class_weights


def check(config: Config, *, devices: int = 1) -> None:
    """Raises ValueError, naming the field, where a value can be seen to be wrong.

    Args:
      config: of a run.
      devices: that share a batch, or groups of them where `train.rows` share an image.
    """
    for part in dataclasses.fields(Config):
        if part.name != "model":
            _check_part(part.name, getattr(config, part.name), part.default_factory)
    check_augment(config.augment)
    check_optim(config.optim)
    _check_model(config.model)
    train, loss = config.train, config.loss
    if min(config.input.std) <= 0:
        raise ValueError(f"input.std is {config.input.std}; each must be above 0")
    for field in ("alpha", "beta", "gamma"):
        if not getattr(config.crf, field) > 0:
            value = getattr(config.crf, field)
            raise ValueError(f"crf.{field} is {value}; a standard deviation is above 0")
    scales = getattr(config.model, "scales", ())
    if train.recompute_batch_stats and len(scales) > 1:
        raise ValueError(
            f"train.recompute_batch_stats is {train.recompute_batch_stats}, but the network sees "
            f"an image at the scales {scales}, whose statistics differ; write 0"
        )
    frozen = getattr(getattr(config.model, "norm", None), "frozen", False)
    if train.recompute_batch_stats and frozen:
        raise ValueError(
            f"train.recompute_batch_stats is {train.recompute_batch_stats}, but model.norm.frozen "
            "keeps the statistics as they are; write --config.train.recompute_batch_stats=0"
        )
    if not any(loss.heads.values()):
        raise ValueError(f'loss.heads is {loss.heads}; write at least {{"logits": 1.0}}')
    if loss.class_weights not in ("", *WEIGHTS_OF_DATA):
        given_class_weights(config)
    if train.rows > 1 and train.engine != "shard_map":
        raise ValueError(
            f"train.rows is {train.rows}, which train.engine={train.engine} cannot do; write "
            "--config.train.engine=shard_map"
        )
    if config.optim.accumulate > train.steps:
        raise ValueError(
            f"train.steps is {train.steps} and optim.accumulate is {config.optim.accumulate}, the "
            "batches of one update: none would be made; write "
            f"--config.train.steps={config.optim.accumulate} or more, or "
            f"--config.optim.accumulate={train.steps} or less"
        )
    if train.batch_size % devices:
        raise ValueError(
            f"train.batch_size is {train.batch_size}, which {devices} devices cannot share "
            f"equally; write --config.train.batch_size={-(-train.batch_size // devices) * devices}"
        )


def alignment(config: Config) -> int:
    """Returns of which number the sides of images are to be a multiple, and one more.

    With aligned corners the last pixel of an image is taken for the last one of the network's map,
    at each of the scales that the network itself makes of it. That is so with the sides of the
    papers' crops: 321 and 513 pixels for DeepLab v2, whose scales are 1, 0.75 and 0.5, and 321,
    473, 513, 713 or 769 for others. With other sides the upsampled scores are shifted by up to a
    stride less one pixel. 1, any side will do, without aligned corners, and with `train.rows`,
    whose bands are of even heights.
    """
    if not config.loss.align_corners or config.train.rows > 1:
        return 1
    stride = getattr(config.model, "output_stride", 8)
    # A side less one becomes, times a scale p/q, a multiple of the stride.
    scales = [fractions.Fraction(str(scale)) for scale in getattr(config.model, "scales", (1,))]
    return math.lcm(*(stride * s.denominator // math.gcd(s.numerator, stride) for s in scales))


def given_class_weights(config: Config) -> tuple[float, ...]:
    """Returns the numbers that `loss.class_weights` lists, one a class; any where the data tell.

    Raises:
      ValueError: it lists no such numbers.
    """
    text, count = config.loss.class_weights, config.model.num_classes
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    fits = count in (0, len(weights)) and all(0 <= weight < INF for weight in weights)
    if not (fits and any(weights)):
        raise ValueError(
            f"loss.class_weights is {text!r}; accepted are '', 'median_frequency', 'published' for "
            f"a data set whose authors published weights (camvid), and {count or 'C'} numbers of 0 "
            "or more, not all 0, '1.0,0.5,...'"
        )
    return weights


def unbuildable(model: Any, error: Exception) -> ValueError:
    """Returns the error that says with which fields a network cannot be built."""
    fields = to_dict(model).items()
    given = ", ".join(f"{k}={v}" for k, v in fields if not isinstance(v, dict))
    return ValueError(f"this network cannot be built: {error}; model is {given}")


def check_augment(augment: Augment) -> None:
    """Raises ValueError, naming the field, where augmentation makes no sense."""
    _check_part("augment", augment, Augment)

    def need(right: bool, field: str, accepted: str) -> None:
        if not right:
            raise ValueError(f"augment.{field} is {getattr(augment, field)}; {accepted}")

    need(all(s > 0 for s in augment.scales), "scales", "factors are above 0")
    low, high = augment.scale_range
    need(0 < low <= high, "scale_range", "write 0 < lowest <= highest factor")
    need(
        not augment.scales or (low, high) == (1.0, 1.0),
        "scales",
        "either scales or scale_range is used; leave scale_range at (1.0, 1.0)",
    )
    low, high = augment.blur_sigma
    need(0 < low <= high, "blur_sigma", "write 0 < lowest <= highest sigma in pixels")


def check_optim(optim: Optim) -> None:
    """Raises ValueError, naming the field, where the optimiser makes no sense."""
    _check_part("optim", optim, Optim)
    for name in ("momentum", "ema_decay"):
        if not 0 <= getattr(optim, name) < 1:
            raise ValueError(f"optim.{name} is {getattr(optim, name)}; it is from 0 to below 1")
    if optim.schedule == "step" and not optim.step_factor:
        raise ValueError(
            "optim.step_factor is 0; it multiplies the learning rate: write one above 0"
        )
    if optim.end_lr > optim.lr:
        raise ValueError(
            f"optim.end_lr is {optim.end_lr}, above optim.lr, {optim.lr}: it is the floor to which "
            "the poly schedule falls; write one below, or 0"
        )


def _check_model(model: Any) -> None:
    classes = getattr(model, "num_classes", None)
    if not dataclasses.is_dataclass(model) or classes is None:
        raise ValueError(f"model is {model!r}; write a network of segjax.models")
    _check_types("model", model)
    if classes < 0:
        raise ValueError(
            f"model.num_classes is {classes}; it is 1 or more, or 0: those of the data set"
        )
    dtype = getattr(model, "dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype is {dtype!r}; accepted are {', '.join(map(repr, DTYPES))}")


def _check_part(part: str, values: Any, kind: type) -> None:
    """Checks each field of a part by itself: its type, that it is finite, range and choice."""
    if not isinstance(values, kind):
        raise ValueError(f"{part} is {values!r}; write a segjax.config.{kind.__name__}")
    _check_types(part, values)
    for field in dataclasses.fields(values):
        name, value = f"{part}.{field.name}", getattr(values, field.name)
        numbers = value.values() if isinstance(value, Mapping) else value
        numbers = numbers if isinstance(value, tuple | list | Mapping) else (value,)
        low, high = RANGES.get(name, (-INF, INF))
        if name in RANGES and not all(low <= n <= high for n in numbers):
            each = "it is" if numbers == (value,) else "each is"
            limit = f"{low} or more" if high == INF else f"from {low} to {high}"
            raise ValueError(f"{name} is {value}; {each} {limit}")
        if name in CHOICES and value not in CHOICES[name]:
            accepted = ", ".join(map(repr, CHOICES[name]))
            raise ValueError(f"{name} is {value!r}; accepted are {accepted}")


def _check_types(path: str, holder: Any) -> None:
    """Raises ValueError where a field, or one of a dataclass in it, has not its declared type."""
    for field in dataclasses.fields(holder):
        name, value = f"{path}.{field.name}", getattr(holder, field.name)
        if field.name in FLAX:
            continue
        if not _fits(value, field.type):
            raise ValueError(f"{name} is {value!r}; {_wanted(name, field.type)}")
        if dataclasses.is_dataclass(value):
            _check_types(name, value)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value has the type of a field: whole numbers pass for floats, NaN for none."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, k) for k in inner)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is dict:
        return isinstance(value, Mapping) and all(
            _fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items()
        )
    if kind in (int, float):
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return number and -sys.float_info.max <= value <= sys.float_info.max
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _wanted(name: str, kind: Any) -> str:
    """Says what to write for a field."""
    words = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text"}
    if kind in words:
        return f"write {words[kind]}"
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        one = {int: "32", float: "1.0", str: "'...'"}[kinds[0]]
        many = {int: "whole numbers", float: "numbers", str: "texts"}[kinds[0]]
        count = "" if kinds[-1] is ... else f"{len(kinds)} "
        example = ", ".join([one] * (2 if kinds[-1] is ... else len(kinds)))
        return f'write {count}{many}, --config.{name}="({example})"'
    if get_origin(kind) is dict:
        return 'write a dictionary of numbers by name, {"...": 1.0}'
    return f"it is a {getattr(kind, '__name__', kind)}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        configuration = type(value).__module__ == __name__
        hidden = () if configuration else FLAX
        names = [f.name for f in dataclasses.fields(value) if f.name not in hidden]
        plain = {name: _plain(getattr(value, name)) for name in names}
        return plain if configuration else {"class": type(value).__name__, **plain}
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _object(path: str, values: Any, classes: Mapping[str, type]) -> Any:
    if not isinstance(values, Mapping):
        return _tuples(values)
    if "class" not in values:
        return {key: _object(f"{path}.{key}", v, classes) for key, v in values.items()}
    name = values["class"]
    if not isinstance(name, str) or name not in classes:
        raise ValueError(
            f"{path}: no class {name!r} in segjax.models; known are {', '.join(classes)}"
        )
    accepted = [f.name for f in dataclasses.fields(classes[name]) if f.name not in FLAX]
    if unknown := sorted(values.keys() - {"class", *accepted}):
        raise ValueError(
            f"{path}.{unknown[0]} is unknown; fields of {name} are {', '.join(accepted)}"
        )
    fields = {k: _object(f"{path}.{k}", v, classes) for k, v in values.items() if k != "class"}
    try:
        return classes[name](**fields)
    except TypeError as error:
        raise ValueError(f"{path}: {name} cannot be built: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
