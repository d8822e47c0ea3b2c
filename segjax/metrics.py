"""Scores of label maps: from a confusion matrix, along boundaries, and in trimaps."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse, spatial

from segjax.ops import IGNORE_LABEL


def confusion_matrix(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """Counts pixels by class: int32 [C, C], a row per true and a column per predicted class.

    A pixel whose label is 255 or outside 0..C-1 is counted nowhere. Counts are exact up to 2^31
    pixels; sums over a data set are kept in int64 on the host.

    Args:
      label: int [...] of any width, of JAX, NumPy or what NumPy can read; 255 is ignored.
      prediction: int [...] of the same shape, of any width. In a jitted function, where values are
        not known, a pixel with one outside 0..C-1 is counted nowhere.
      num_classes: C.

    Raises:
      ValueError: shapes differ, something is not an integer, or a labelled pixel is predicted as
        none of 0..C-1.
    """
    label, prediction = (
        x if isinstance(x, jax.Array) else np.asarray(x) for x in (label, prediction)
    )
    if label.shape != prediction.shape:
        raise ValueError(f"label has the shape {label.shape}, and prediction {prediction.shape}")
    for name, x in (("label", label), ("prediction", prediction)):
        if x.dtype.kind not in "biu":
            raise ValueError(f"{name} is {x.dtype}; the ids of classes are needed, as of argmax")
    if not any(isinstance(x, jax.core.Tracer) for x in (label, prediction)):
        _check_classes(np.asarray(label), np.asarray(prediction), num_classes)
    label, prediction = (jnp.asarray(x).reshape(-1).astype(jnp.int32) for x in (label, prediction))
    valid = (label >= 0) & (label < num_classes) & (label != IGNORE_LABEL)
    valid &= (prediction >= 0) & (prediction < num_classes)
    # A scatter is by far the fastest on CPU and GPU, a product of one-hot matrices on TPU.
    return jax.lax.platform_dependent(
        label, prediction, valid, tpu=_by_product(num_classes), default=_by_scatter(num_classes)
    )


def _check_classes(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> None:
    labelled = (label >= 0) & (label < num_classes) & (label != IGNORE_LABEL)
    wrong = labelled & ((prediction < 0) | (prediction >= num_classes))
    if wrong.any():
        raise ValueError(
            f"prediction is {prediction[wrong][0]} at {wrong.sum():,} labelled pixels; classes are "
            f"0..{num_classes - 1}. Do the ids start at 1? Then subtract 1"
        )


def _by_scatter(num_classes: int):
    def count(label: jax.Array, prediction: jax.Array, valid: jax.Array) -> jax.Array:
        cells = num_classes * num_classes
        cell = jnp.where(valid, label * num_classes + prediction, cells)
        counts = jnp.zeros(cells + 1, jnp.int32).at[cell].add(1)
        return counts[:cells].reshape(num_classes, num_classes)

    return count


def _by_product(num_classes: int):
    def count(label: jax.Array, prediction: jax.Array, valid: jax.Array) -> jax.Array:
        rows = jax.nn.one_hot(jnp.where(valid, label, -1), num_classes, dtype=jnp.int8)
        columns = jax.nn.one_hot(prediction, num_classes, dtype=jnp.int8)
        return jnp.einsum("ni,nj->ij", rows, columns, preferred_element_type=jnp.int32)

    return count


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix, each in 0..1; NaN for a class that cannot be scored."""

    confusion: np.ndarray  # int [C, C]

    def __post_init__(self) -> None:
        """Takes the counts as int64: sums of int32 overflow at 2^31 pixels."""
        object.__setattr__(self, "confusion", np.asarray(self.confusion, np.int64))

    @property
    def share(self) -> np.ndarray:
        """Share of the labelled pixels by class, float64 [C]."""
        return self.confusion.sum(1) / max(self.confusion.sum(), 1)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of a class's pixels found, float64 [C]; NaN for a class without pixels."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(1))

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union by class, float64 [C]; NaN where the union is empty."""
        hits = np.diag(self.confusion)
        return _ratio(hits, self.confusion.sum(0) + self.confusion.sum(1) - hits)

    @property
    def global_accuracy(self) -> float:
        """Share of all labelled pixels that are right: SegNet's G, "pixel accuracy"."""
        return float(_ratio(np.trace(self.confusion), self.confusion.sum()))

    @property
    def class_average(self) -> float:
        """Mean class accuracy over the classes present: SegNet's C.

        SegNet's script divides by the number of classes even when one is absent; on the sets it
        was made for none is.
        """
        return _mean(self.accuracy)

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union over the classes that occur in truth or prediction."""
        return _mean(self.iou)

    @property
    def frequency_weighted_iou(self) -> float:
        """Intersection over union weighted by the share of each class."""
        return float(np.nansum(self.share * np.nan_to_num(self.iou)))

    def summary(self) -> dict[str, float]:
        """The four numbers, by the names used in logs and files."""
        return {
            "global_accuracy": self.global_accuracy,
            "class_average": self.class_average,
            "mean_iou": self.mean_iou,
            "frequency_weighted_iou": self.frequency_weighted_iou,
        }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def trimap(label: jax.Array, width: int, *, size: jax.Array | None = None) -> jax.Array:
    """Keeps the labels within `width` pixels of the ignored ones; all others become ignored.

    DeepLab's measure along boundaries (DeepLab v1, Fig. 5; v2, Fig. 10): the void rim is dilated
    by a square of side 2 * width + 1 and only that band is scored.

    Args:
      label: int [B, H, W].
      width: pixels.
      size: int [B, 2], height and width of each image on its canvas. Around it the label is ignored
        too, but is no void, and the edge of an image no boundary. None: the images fill the canvas.
    """
    chex.assert_rank(label, 3)
    side = 2 * width + 1
    void = label == IGNORE_LABEL
    if size is not None:
        for axis in (1, 2):
            pixel = jax.lax.broadcasted_iota(jnp.int32, label.shape, axis)
            void &= pixel < size[:, axis - 1, None, None]
    void = void.astype(jnp.int32)
    # The square is a row and a column: 2 * side comparisons a pixel in place of side * side.
    for window in ((1, side, 1), (1, 1, side)):
        void = jax.lax.reduce_window(void, 0, jax.lax.max, window, (1, 1, 1), "SAME")
    return jnp.where(void > 0, label, IGNORE_LABEL)


def boundary_f1(
    label: np.ndarray, prediction: np.ndarray, num_classes: int, *, tolerance: float = 0.0075
) -> tuple[float, np.ndarray]:
    """SegNet's boundary F1 of one image (SegNet, section 4.1; its script computeBFmeasure.m).

    The boundary of a class is that of the Berkeley code's `seg2bdry(..., 'imageSize')`. Boundary
    pixels of truth and prediction are matched one to one within the tolerance, with as many pairs
    as possible (a maximum bipartite matching; `correspondPixels` minimises a cost in which an
    unmatched pixel outweighs every match). A test by dilation would count several for one.

    As in the script, an ignored pixel is one of no class: it has a part in boundaries, and what is
    predicted there counts. A void rim thus costs a prediction that has none.

    Args:
      label: int [H, W].
      prediction: int [H, W].
      num_classes: C.
      tolerance: largest distance of a pair, as a fraction of the image's diagonal.

    Returns:
      The mean over the classes with a boundary in truth or prediction (the script's rule; its
      comment says truth), 0 when there is none, and the F1 by class, float64 [C], NaN for a class
      without a boundary.
    """
    chex.assert_rank((label, prediction), 2)
    chex.assert_equal_shape((label, prediction))
    reach = tolerance * float(np.hypot(*label.shape))
    scores = np.full(num_classes, np.nan)
    for c in range(num_classes):
        truth, found = _boundary(label == c), _boundary(prediction == c)
        if len(truth) or len(found):
            matched = _matches(truth, found, reach)
            # F1 of precision matched / found and recall matched / truth.
            scores[c] = 2 * matched / (len(truth) + len(found))
    return float(np.nan_to_num(_mean(scores))), scores


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Boundary pixels [N, 2] of a mask: those whose lower right corner touches an edge."""
    vertical = np.zeros(mask.shape, bool)
    horizontal = np.zeros(mask.shape, bool)
    vertical[:-1] = mask[:-1] != mask[1:]
    horizontal[:, :-1] = mask[:, :-1] != mask[:, 1:]
    edge = vertical | horizontal
    edge[:-1] |= horizontal[1:]
    edge[:, :-1] |= vertical[:, 1:]
    return np.argwhere(edge)


def _matches(a: np.ndarray, b: np.ndarray, reach: float) -> int:
    """The largest number of disjoint pairs of a point in `a` and one in `b` within `reach`."""
    if not len(a) or not len(b):
        return 0
    near = spatial.KDTree(a).query_ball_point(b, reach)
    columns = np.concatenate([np.asarray(n, np.int32) for n in near])
    pointers = np.concatenate([[0], np.cumsum([len(n) for n in near])]).astype(np.int32)
    graph = sparse.csr_array((np.ones(len(columns), bool), columns, pointers), (len(b), len(a)))
    return int((sparse.csgraph.maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
