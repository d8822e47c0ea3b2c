"""The published weights that can be read: one table of name pairs for each.

A pair is the path of a layer of segjax.models, a regular expression, and the name of that layer in
the file, where `<1>` is the first group of the expression and `<1-1>` its number less one. The
kinds of values in a layer are the same for all (`KINDS`), and so are the few rules of layout.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping

import flax.linen as nn
import numpy as np

from segjax import models
from segjax.config import Input
from segjax.models import resnet, vgg

Tensors = Mapping[str, np.ndarray]

# Last part of a variable's path: last part of the tensor's name.
KINDS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
CAFFE_MEAN = (122.675, 116.669, 104.008)  # RGB, 0..255
BGR_MINUS_MEAN = Input(mean=CAFFE_MEAN, std=(1.0, 1.0, 1.0), bgr=True)
BGR = Input(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), bgr=True)


@dataclasses.dataclass(frozen=True)
class Source:
    """How the tensors of one publisher become variables.

    `scope` and `optional` are regular expressions of layer paths, `dropped` and `mark` of tensor
    names after `renames`.
    """

    about: str  # one line
    mark: str  # a tensor that only these files have
    table: tuple[tuple[str, str], ...]  # (layer path, name in the file)
    build: Callable[[Tensors], nn.Module]  # the network that the tensors are of
    input: Input  # the normalisation that the weights expect
    align_corners: bool = False  # how the publisher brings logits to the size of the image
    marked: Callable[[Tensors], bool] = lambda tensors: True  # what names do not tell
    scope: str = ".*"  # layers that the file has to fill; the rest stays new
    optional: str = "(?!)"  # layers of the scope that some of the files lack as a whole
    renames: tuple[tuple[str, str], ...] = ()  # (regular expression, replacement) of names
    dropped: str = "(?!)"  # tensors that are left out on purpose
    statistics: str = "stored"  # of BatchNorm; "folded" into scale and shift, or "missing"
    note: str = ""  # to be told to the reader of every report
    caution: Callable[[nn.Module], str] = lambda model: ""  # to be told where the network differs

    def canonical(self, name: str) -> str:
        """Returns a tensor's name without what wrappers and versions of the file put there."""
        for pattern, replacement in ((r"^(?:module\.)+", ""), *self.renames):
            name = re.sub(pattern, replacement, name)
        return name

    def name(self, layer: str) -> str | None:
        """Returns the name in the file of a layer, None where the file has none."""
        for pattern, template in self.table:
            match = re.fullmatch(pattern, layer)
            if match:
                return re.sub(r"<(\d)([+-]1)?>", functools.partial(_fill, match), template)
        return None

    def needs(self, path: str, loaded: Collection[str]) -> bool:
        """Returns whether a variable that got no value should have got one."""
        layer = _layer(path)
        if not re.fullmatch(self.scope, layer):
            return False
        if self.statistics == "missing" and path.startswith("batch_stats/"):
            return False
        # A part that the file may lack is missing as a whole, or not at all.
        parts = [re.fullmatch(self.optional, _layer(other)) for other in loaded]
        return any(parts) or not re.fullmatch(self.optional, layer)


def detect(tensors: Tensors) -> str | None:
    """Returns the key of the source that has such tensors, None when there is none."""
    for key, source in SOURCES.items():
        named = {source.canonical(name): array for name, array in tensors.items()}
        if any(re.fullmatch(source.mark, name) for name in named) and source.marked(named):
            return key
    return None


def translate(
    source: Source,
    tensors: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    epsilon: float,
    seed: int,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the values of variables by path, and the names of the tensors that were not used.

    Args:
      source: of the tensors.
      tensors: as in the file.
      shapes: of the network's variables by path.
      epsilon: of the network's BatchNorm layers.
      seed: of the draw of filters where fully connected layers are decimated.
    """
    named = {source.canonical(name): array for name, array in tensors.items()}
    values, used = {}, set()
    for path, shape in shapes.items():
        layer, kind = _layer(path), path.rsplit("/", 1)[1]
        name = source.name(layer) if re.fullmatch(source.scope, layer) else None
        if name is None:
            continue
        if source.statistics == "folded" and kind in ("mean", "var") and f"{name}.weight" in named:
            if not named[f"{name}.weight"].any():
                raise ValueError(
                    f"{name} scales by zero: BatchNorm was absorbed into the convolutions "
                    "(BN-absorber.py); give the file from before"
                )
            # Statistics with which the layer is its scale and shift alone.
            values[path] = np.full(shape, 0.0 if kind == "mean" else 1 - epsilon, np.float32)
            continue
        name = f"{name}.{KINDS[kind]}"
        if name in named:
            values[path] = _layout(named[name], layer, kind, shape, seed)
            used.add(name)
    ignored = rf"{source.dropped}|.*\.num_batches_tracked"
    return values, [n for n in named if n not in used and not re.fullmatch(ignored, n)]


def _layer(path: str) -> str:
    """Returns the layer of a variable: "aspp/conv1" of "params/aspp/conv1/kernel"."""
    return path.split("/", 1)[1].rsplit("/", 1)[0]


def _layout(
    array: np.ndarray, layer: str, kind: str, shape: tuple[int, ...], seed: int
) -> np.ndarray:
    """Returns a tensor in Flax's layout: OIHW to HWIO; vectors that Caffe keeps as 1x1x1xC."""
    if layer.startswith(("fc6", "fc7")):
        array = _fully_connected(array, layer, kind, shape, seed)
    if kind == "kernel":
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return array.ravel() if array.size == max(array.shape, default=0) else array


def _fully_connected(
    array: np.ndarray, layer: str, kind: str, shape: tuple[int, ...], seed: int
) -> np.ndarray:
    """Makes a fully connected layer of VGG16 the convolution of a shape (DeepLab v1, section 3.1).

    The 7x7 window is sampled at 0, 3, 6 for 3x3 and 0, 2, 4, 6 for 4x4; of the filters as many as
    the network has are drawn at random, fc7 after those of fc6; with as many they are all kept.
    """
    if array.shape[:2] == (1, 1):  # Caffe's form of 2014 has four axes always
        array = array.reshape(array.shape[2:]) if kind == "kernel" else array.ravel()
    if array.ndim == 4:
        return array  # a convolution already

    def drawn(layer: str, of: int, count: int) -> np.ndarray:
        if count > of:
            raise ValueError(f"{layer} needs {count} filters; the file has {of}")
        return np.sort(np.random.default_rng([seed, *layer.encode()]).permutation(of)[:count])

    filters = drawn(layer, len(array), shape[-1])
    if kind == "bias":
        return array[filters]
    size, _, inputs, _ = shape
    if layer.startswith("fc7"):
        earlier = drawn(layer.replace("fc7", "fc6"), array.shape[1], inputs)
        return array[np.ix_(filters, earlier)][:, :, None, None]
    window = round((array.shape[1] / inputs) ** 0.5)
    if inputs * window**2 != array.shape[1] or size < 2 or (window - 1) % (size - 1):
        raise ValueError(
            f"{layer}: a window of {array.shape[1]} values cannot become {size}x{size} of "
            f"{inputs} channels; sizes that divide evenly are 3, 4 and 7"
        )
    step = (window - 1) // (size - 1)
    kernel = array[filters].reshape(-1, inputs, window, window)
    return kernel[:, :, ::step, ::step]


def _window(kernel: np.ndarray) -> int:
    """Returns the rows of the window of a kernel in Caffe's layout; 1 if it is fully connected."""
    return kernel.shape[2] if kernel.ndim == 4 and kernel.shape[:2] != (1, 1) else 1


def _fill(match: re.Match[str], slot: re.Match[str]) -> str:
    text = match[int(slot[1])] or ""
    return str(int(text) + int(slot[2])) if slot[2] else text


def _torch_resnet(prefix: str = "") -> tuple[tuple[str, str], ...]:
    """The names that torchvision gave ResNet, and everyone after it."""
    pairs = (
        (r"backbone/stem/(conv|bn)(\d)", "<1><2>"),
        (r"backbone/stage(\d)/block(\d+)/(conv|bn)(\d)", "layer<1>.<2-1>.<3><4>"),
        (r"backbone/stage(\d)/block1/proj", "layer<1>.0.downsample.0"),
        (r"backbone/stage(\d)/block1/bn_proj", "layer<1>.0.downsample.1"),
    )
    return tuple((path, prefix + name) for path, name in pairs)


def _torch_vgg16(bn: bool) -> tuple[tuple[str, str], ...]:
    """torchvision numbers a VGG's layers through: convolution, (BatchNorm,) ReLU, ..., pool."""
    pairs = []
    index = 0
    for stage, features in enumerate(vgg.STAGES, start=1):
        for i in range(1, len(features) + 1):
            pairs.append((f"(?:backbone|encoder)/stage{stage}/conv{i}", f"features.{index}"))
            pairs.append((f"(?:backbone|encoder)/stage{stage}/bn{i}", f"features.{index + 1}"))
            index += 3 if bn else 2
        index += 1
    return tuple(pair for pair in pairs if bn or "/conv" in pair[0])


def _depth(tensors: Tensors, block: str) -> dict[str, int]:
    """Returns the fields of a ResNet; `block` matches a block of stage 3 by its number."""
    found = {int(m[1]) for name in tensors if (m := re.match(block, name))}
    depths = {sizes[2]: depth for depth, sizes in resnet.STAGE_SIZES.items()}
    if len(found) not in depths:
        raise ValueError(f"stage 3 has {len(found)} blocks; known are {sorted(depths)}")
    return {"depth": depths[len(found)]}


def _classes(tensors: Tensors, bias: str) -> dict[str, int]:
    return {"num_classes": len(tensors[bias])}


def _width(tensors: Tensors, kernel: str) -> int:
    return tensors[kernel].shape[0]


SEGNET = Source(
    about="the authors' .caffemodel of SegNet and SegNet-Basic, for inference",
    mark=r"conv(5_3_D|_decode4)_bn\.weight",
    table=(
        (r"encoder/stage(\d)/conv(\d)", "conv<1>_<2>"),
        (r"encoder/stage(\d)/bn(\d)", "conv<1>_<2>_bn"),
        (r"decoder/stage(\d)/conv(\d)", "conv<1>_<2>_D"),
        (r"decoder/stage(\d)/bn(\d)", "conv<1>_<2>_D_bn"),
        (r"conv(_decode)?(\d)", "conv<1><2>"),  # SegNet-Basic
        (r"bn(_decode)?(\d)", "conv<1><2>_bn"),
        ("classifier", "classifier"),
    ),
    renames=((r"^(?:conv1_1_D|conv_classifier|dense_softmax_inner_prod)(?=\.)", "classifier"),),
    build=lambda t: _segnet(t),
    input=BGR,
    statistics="folded",
    note="scale and shift of BatchNorm are read with the statistics folded in, as "
    "compute_bn_statistics.py leaves them; a snapshot of training is the source "
    "segnet_caffe_snapshot. Training on needs the snapshot",
)
SOURCES = {
    "torchvision_deeplabv3": Source(
        about="torchvision's deeplabv3_resnet50 and deeplabv3_resnet101",
        mark=r"classifier\.0\.convs\.0\.0\.weight",
        table=(
            *_torch_resnet("backbone."),
            (r"aspp/conv(\d)", "classifier.0.convs.<1-1>.0"),
            (r"aspp/bn(\d)", "classifier.0.convs.<1-1>.1"),
            ("aspp/conv_pool", "classifier.0.convs.4.1"),
            ("aspp/bn_pool", "classifier.0.convs.4.2"),
            ("aspp/conv_project", "classifier.0.project.0"),
            ("aspp/bn_project", "classifier.0.project.1"),
            ("head/conv", "classifier.1"),
            ("head/bn", "classifier.2"),
            ("head/logits", "classifier.4"),
            ("aux/conv", "aux_classifier.0"),
            ("aux/bn", "aux_classifier.1"),
            ("aux/logits", "aux_classifier.4"),
        ),
        optional="aux/.*",
        build=lambda t: models.TorchvisionDeepLabV3(
            **_classes(t, "classifier.4.bias"),
            **_depth(t, r"backbone\.layer3\.(\d+)\."),
            width=_width(t, "backbone.conv1.weight"),
            features=_width(t, "classifier.1.weight"),
        ),
        input=Input(),
    ),
    "semseg_pspnet": Source(
        about="PSPNet of hszhao/semseg, ResNet-50 and 101, ADE20K, VOC and Cityscapes",
        mark=r"ppm\.features\.0\.1\.weight",
        table=(
            ("backbone/stem/conv1", "layer0.0"),
            ("backbone/stem/bn1", "layer0.1"),
            ("backbone/stem/conv2", "layer0.3"),
            ("backbone/stem/bn2", "layer0.4"),
            ("backbone/stem/conv3", "layer0.6"),
            ("backbone/stem/bn3", "layer0.7"),
            *_torch_resnet()[1:],
            (r"ppm/conv(\d)", "ppm.features.<1-1>.1"),
            (r"ppm/bn(\d)", "ppm.features.<1-1>.2"),
            ("head/conv", "cls.0"),
            ("head/bn", "cls.1"),
            ("head/logits", "cls.4"),
            ("aux/conv", "aux.0"),
            ("aux/bn", "aux.1"),
            ("aux/logits", "aux.4"),
        ),
        optional="aux/.*",
        build=lambda t: models.PSPNet(
            **_classes(t, "cls.4.bias"),
            **_depth(t, r"layer3\.(\d+)\."),
            width=_width(t, "layer0.0.weight"),
        ),
        input=Input(),
        align_corners=True,
    ),
    "kazuto1011_deeplabv2": Source(
        about="DeepLab v2 ResNet-101 of kazuto1011/deeplab-pytorch, and its COCO start weights",
        mark=r"layer5\.block1\.conv3x3\.conv\.weight",
        table=(
            ("backbone/stem/(conv|bn)1", "layer1.conv1.<1>"),
            (r"backbone/stage(\d)/block(\d+)/(conv|bn)1", "layer<1+1>.block<2>.reduce.<3>"),
            (r"backbone/stage(\d)/block(\d+)/(conv|bn)2", "layer<1+1>.block<2>.conv3x3.<3>"),
            (r"backbone/stage(\d)/block(\d+)/(conv|bn)3", "layer<1+1>.block<2>.increase.<3>"),
            (r"backbone/stage(\d)/block1/proj", "layer<1+1>.block1.shortcut.conv"),
            (r"backbone/stage(\d)/block1/bn_proj", "layer<1+1>.block1.shortcut.bn"),
            (r"aspp/branch(\d)", "aspp.c<1-1>"),
        ),
        renames=((r"^(?:(?:scale|base)\.)+", ""),),  # of the multi-scale wrapper
        optional="aspp/.*",  # the COCO weights end in a classifier of 91 classes
        dropped=r"fc\..*",
        build=lambda t: models.DeepLabV2ResNet(
            num_classes=len(t.get("aspp.c0.bias", ())) or 21,
            **_depth(t, r"layer4\.block(\d+)\."),
            width=_width(t, "layer1.conv1.conv.weight"),
        ),
        input=BGR_MINUS_MEAN,
        note="the publisher's code resizes between scales without aligned corners and rounds sizes "
        "down, int(side * scale); DeepLabV2ResNet and the protocol deeplab_v2 align corners, as "
        "the paper's code does, so scores may differ a little from the publisher's",
    ),
    "torchvision_resnet": Source(
        about="ResNet-50, 101, 152 trained on ImageNet, by torchvision or (deep stem) semseg",
        mark=r"layer1\.0\.conv3\.weight",
        table=_torch_resnet(),
        scope="backbone/.*",
        dropped=r"fc\..*",
        build=lambda t: models.PSPNet(
            num_classes=1,
            **_depth(t, r"layer3\.(\d+)\."),
            stem="deep" if "conv3.weight" in t else "plain",
            width=_width(t, "conv1.weight"),
        ),
        input=Input(),
        caution=lambda model: _stride_caution(model),
    ),
    "torchvision_vgg16_bn": Source(
        about="torchvision's VGG16 with BatchNorm, ImageNet: the encoder of SegNet",
        mark=r"features\.1\.running_mean",
        table=_torch_vgg16(bn=True),
        scope="encoder/.*",
        dropped=r"classifier\..*",
        build=lambda t: models.SegNet(
            num_classes=1,
            widths=tuple(_width(t, f"features.{i}.weight") for i in (0, 7, 14, 24, 34)),
        ),
        input=Input(),
    ),
    "torchvision_vgg16": Source(
        about="torchvision's VGG16, ImageNet: body, fc6 and fc7 of DeepLab; encoder of SegNet",
        mark=r"features\.28\.weight",
        table=(
            *_torch_vgg16(bn=False),
            (r"fc6(_\d)?", "classifier.0"),
            (r"fc7(_\d)?", "classifier.3"),
        ),
        scope=r"(?:backbone|encoder)/stage\d/conv\d|fc[67](_\d)?",
        dropped=r"classifier\..*",
        build=lambda t: models.DeepLabV1(num_classes=1, body_width=_width(t, "features.0.weight")),
        input=Input(),
    ),
    "vgg16_caffe": Source(
        about="VGG16 of its authors, ImageNet, .caffemodel: as torchvision_vgg16, for BGR",
        mark=r"fc6\.weight",
        marked=lambda t: _window(t["fc6.weight"]) == 1,
        table=(
            (r"(?:backbone|encoder)/stage(\d)/conv(\d)", "conv<1>_<2>"),
            (r"(fc[67])(?:_\d)?", "<1>"),
        ),
        scope=r"(?:backbone|encoder)/stage\d/conv\d|fc[67](_\d)?",
        dropped=r"fc[678]\..*",
        build=lambda t: models.DeepLabV1(num_classes=1, body_width=_width(t, "conv1_1.weight")),
        input=Input(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0), bgr=True),
    ),
    "deeplab_vgg_caffe": Source(
        about="the authors' .caffemodel of DeepLab v1 LargeFOV and of v2 on VGG16",
        mark=r"fc6(_1)?\.weight",
        table=(
            (r"backbone/stage(\d)/conv(\d)", "conv<1>_<2>"),
            (r"(fc[678](?:_\d)?)", "<1>"),
        ),
        renames=((r"^fc8_[a-z][a-z0-9]*", "fc8"),),  # fc8_voc12, fc8_voc12_1
        build=lambda t: _deeplab_vgg(t),
        input=BGR_MINUS_MEAN,
        align_corners=True,
        note="the file does not tell the rates: those of LargeFOV, of 4x4 windows at rate 4 and of "
        "ASPP-L are taken; DeepLab-CRF-4x4 needs model.rate 8, ASPP-S model.rates (2, 4, 8, 12)",
    ),
    "segnet_caffe": SEGNET,
    "segnet_caffe_snapshot": dataclasses.replace(
        SEGNET,
        about="a snapshot of training them, without statistics of BatchNorm",
        statistics="missing",
        note="the statistics of BatchNorm are not in the file: set train.recompute_batch_stats, or "
        "train on",
    ),
}


def _stride_caution(model: nn.Module) -> str:
    """Shapes do not tell which convolution of a ResNet has the stride."""
    caution = (
        f"these weights have the stride of a stage in a 3x3 convolution, {type(model).__name__} in "
        "a 1x1 (Caffe): they are a start for training, not the same network"
    )
    if isinstance(model, models.DeepLabV2ResNet):
        return caution
    if getattr(model, "stride_in", "") == "1x1":
        return caution + '. It takes stride_in="3x3", first_rate="previous"'
    return ""


def _segnet(t: Tensors) -> nn.Module:
    classes = _classes(t, "classifier.bias")
    if "conv_decode4.weight" in t:
        return models.SegNetBasic(**classes, width=_width(t, "conv1.weight"))
    widths = tuple(_width(t, f"conv{stage}_1.weight") for stage in (1, 2, 3, 4, 5))
    return models.SegNet(**classes, widths=widths)


def _deeplab_vgg(t: Tensors) -> nn.Module:
    body = _width(t, "conv1_1.weight")
    if "fc6.weight" in t:
        width, _, size, _ = t["fc6.weight"].shape
        return models.DeepLabV1(
            **_classes(t, "fc8.bias"),
            kernel_size=size,
            rate=12 if size == 3 else 4,
            width=width,
            body_width=body,
        )
    width = _width(t, "fc6_1.weight")
    return models.DeepLabV2VGG(**_classes(t, "fc8_1.bias"), width=width, body_width=body)
