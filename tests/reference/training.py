"""One training step of PSPNet in torch: outputs, loss, gradient, statistics.

The network is narrow: of millions of ReLUs a few always have an input that rounding moves across
zero, and each of these changes a gradient by a visible step. Torch computes in float64.
"""

import numpy as np

from segjax import models, pretrained
from segjax.pretrained import sources
from tests.reference import fill

SIZE, BATCH, CLASSES = (65, 49), 4, 5
AUX_WEIGHT = 0.4
MODEL = models.PSPNet(num_classes=CLASSES, depth=14, width=8, norm=models.Norm(decay=0.9))


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Returns an NHWC image and its labels, a sixth of them 255."""
    label = fill.uniform("training/label", (BATCH, *SIZE), 0, CLASSES + 1).astype(np.int32)
    label[label == CLASSES] = 255
    return fill.image((BATCH, *SIZE, 3), "training"), label


def as_variables(
    tensors: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Returns weights, or anything of their names and shapes, by the paths of variables."""
    source = pretrained.SOURCES["semseg_pspnet"]
    return sources.translate(source, tensors, shapes, epsilon=MODEL.norm.epsilon, seed=0)[0]


def step() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the weights, their gradients and new statistics, all by the names of tensors; and
    "loss", "logits" and "aux", NHWC."""
    import torch
    import torch.nn.functional as F

    from tests.reference import pspnet

    module = pspnet.PSPNet(CLASSES, (1, 1, 1, 1), width=8)
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    weights = fill.weights(shapes, "training")
    module.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    module.double().train()
    sizes = {}  # of what a BatchNorm layer takes its mean over
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Dropout2d):
            layer.eval()
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_hook(
                lambda layer, inputs, output, name=name: sizes.update(
                    {name: inputs[0].numel() // inputs[0].shape[1]}
                )
            )
    image, label = batch()
    outputs = module(torch.tensor(image.transpose(0, 3, 1, 2)).double())
    losses = [
        F.cross_entropy(pspnet.upsample(output, SIZE), torch.tensor(label).long(), ignore_index=255)
        for output in outputs
    ]
    loss = losses[0] + AUX_WEIGHT * losses[1]
    loss.backward()
    found = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    for name, value in module.state_dict().items():
        if name.endswith("running_mean"):
            found[name] = value.numpy()
        if name.endswith("running_var"):
            # Torch adds the unbiased variance to the running one, Flax the biased.
            before, size = weights[name].astype(np.float64), sizes[name.rsplit(".", 1)[0]]
            found[name] = before * 0.9 + (value.numpy() - before * 0.9) * (size - 1) / size
    logits, aux = (output.detach().numpy().transpose(0, 2, 3, 1) for output in outputs)
    return weights, found, {"loss": loss.detach().numpy(), "logits": logits, "aux": aux}


def probe(values: dict[str, np.ndarray]) -> np.ndarray:
    """Returns two numbers for each value in the order of their paths, to be stored in its place:
    its product with a random array, and its norm."""
    return np.array(
        [
            (
                np.vdot(fill.uniform(f"probe/{path}", np.shape(value), -1, 1), value),
                np.linalg.norm(value),
            )
            for path, value in sorted(values.items())
        ]
    )
