"""Fully connected conditional random fields: pure functions of arrays.

    kernels = segjax.crf.PRESETS["deeplab_v2_resnet101"]
    probs = segjax.crf.mean_field(logits, image, kernels)

`mean_field` runs inside and outside a compiled program, on batches, and has gradients for logits
and weights; `refine_logits` is the same with logits as result, for a loss.
"""

from segjax.crf.capacity import plan
from segjax.crf.kernels import PRESETS, Bilateral, Features, Kernel, Spatial, deeplab_kernels, potts
from segjax.crf.mean_field import mean_field, refine_logits
from segjax.crf.operators import FILTERS

__all__ = [
    "FILTERS",
    "PRESETS",
    "Bilateral",
    "Features",
    "Kernel",
    "Spatial",
    "deeplab_kernels",
    "mean_field",
    "plan",
    "potts",
    "refine_logits",
]
