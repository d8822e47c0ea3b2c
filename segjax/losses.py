"""Softmax cross entropy for label maps with an ignored label."""

import chex
import jax
import jax.numpy as jnp

from segjax import ops


def cross_entropy(
    logits: jax.Array, label: jax.Array, *, class_weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of the per-pixel cross entropies and the number of pixels in it.

    The loss is `sum / count`: the weighted sum is divided by the number of valid pixels, as in
    SegNet's Caffe layer, not by the sum of their weights, as in torch.

    Args:
      logits: float [B, H, W, C].
      label: int [B, H, W]. Any id outside 0..C-1, so 255 and -1 too, is ignored: it is replaced
        before the class is looked up, and its gradient is zero even where a logit is not finite.
      class_weights: float [C], factors of the pixels of each class.

    Returns:
      A pair of float32 scalars.
    """
    chex.assert_rank(logits, 4)
    chex.assert_equal_shape_prefix((logits, label), 3)
    valid = (label >= 0) & (label < logits.shape[-1]) & (label != ops.IGNORE_LABEL)
    index = jnp.where(valid, label, 0)[..., None]
    logits = jnp.where(valid[..., None], logits.astype(jnp.float32), 0.0)
    picked = jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - picked  # [B, H, W]
    if class_weights is not None:
        loss *= jnp.asarray(class_weights)[index[..., 0]]
    return jnp.sum(jnp.where(valid, loss, 0.0)), jnp.sum(valid, dtype=jnp.int32).astype(jnp.float32)


def match_resolution(
    logits: jax.Array, label: jax.Array, *, resolution: str, align_corners: bool
) -> tuple[jax.Array, jax.Array]:
    """Brings logits to the labels' size ("label") or labels to the logits' ("logits").

    Logits are resized bilinearly, labels by the nearest pixel; with aligned corners and a size of
    8k + 1, shrinking a label by 8 is `label[:, ::8, ::8]` (DeepLab v1 and v2 train like that,
    DeepLab v3 section 4.1 found the full resolution better).

    Args:
      logits: float [B, h, w, C].
      label: int [B, H, W].
      resolution: "label" or "logits", the size of the result.
      align_corners: how both are resized; see `ops.resize` and `ops.resize_labels`.

    Returns:
      Logits and label of one size, [B, H, W, C] and [B, H, W] or [B, h, w, C] and [B, h, w]. Logits
      that were resized are float32; all else keeps its dtype.
    """
    if logits.shape[1:3] == label.shape[1:3]:
        return logits, label
    if resolution == "label":
        size = label.shape[1:3]
        logits = logits.astype(jnp.float32)
        return ops.resize(logits, size, align_corners=align_corners, antialias=False), label
    return logits, ops.resize_labels(label, logits.shape[1:3], align_corners=align_corners)
