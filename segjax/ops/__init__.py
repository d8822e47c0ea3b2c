"""Pure functions of NHWC arrays: pooling, unpooling, resizing, local normalisation."""

from segjax.ops.labels import IGNORE_LABEL, resize_labels
from segjax.ops.normalize import local_response_norm
from segjax.ops.pool import (
    adaptive_avg_pool,
    adaptive_max_pool,
    max_pool,
    max_pool_with_argmax,
    max_unpool,
)
from segjax.ops.resize import bilinear_weights, resample, resize

__all__ = [
    "IGNORE_LABEL",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "bilinear_weights",
    "local_response_norm",
    "max_pool",
    "max_pool_with_argmax",
    "max_unpool",
    "resample",
    "resize",
    "resize_labels",
]
