"""Pure functions of NHWC arrays: pooling with indices, unpooling, resizing, local normalisation."""

from segjax.ops.normalize import local_response_norm
from segjax.ops.pool import (
    adaptive_avg_pool,
    adaptive_max_pool,
    max_pool_with_argmax,
    max_unpool,
)
from segjax.ops.resize import resample, resize, resize_labels

__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "local_response_norm",
    "max_pool_with_argmax",
    "max_unpool",
    "resample",
    "resize",
    "resize_labels",
]
