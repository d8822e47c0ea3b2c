import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax import metrics


def test_confusion_ignores_a_void_pixel_in_row_and_column():
    label = jnp.asarray([[0, 0, 1], [1, 2, 255]], jnp.int32)
    prediction = jnp.asarray([[0, 1, 1], [1, 0, 2]], jnp.int32)
    confusion = jax.jit(metrics.confusion_matrix, static_argnums=2)(label, prediction, 3)
    np.testing.assert_array_equal(confusion, [[1, 1, 0], [0, 2, 0], [1, 0, 0]])
    scores = metrics.Scores(np.asarray(confusion, np.int64))
    # Class 2: a pixel in truth, none predicted among the valid ones.
    np.testing.assert_allclose(scores.iou, [1 / 3, 2 / 3, 0])
    np.testing.assert_allclose(scores.accuracy, [1 / 2, 1, 0])
    assert scores.global_accuracy == pytest.approx(3 / 5)
    assert scores.class_average == pytest.approx(0.5)
    assert scores.mean_iou == pytest.approx(1 / 3)
    assert scores.frequency_weighted_iou == pytest.approx(0.4 / 3 + 0.4 * 2 / 3)


def test_predictions_out_of_range_are_counted_nowhere_in_a_program():
    """A prediction of class 3 of 3 would be the first class in the next row."""
    label, prediction = np.uint8([0, 0, 1, 2, 2, 255]), np.int32([0, 3, -1, 2, 200, 3])
    found = jax.jit(metrics.confusion_matrix, static_argnums=2)(label, prediction, 3)
    np.testing.assert_array_equal(found, np.diag([1, 0, 1]))


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.float32([0.2, 0.7, 0.9]), "prediction is float32; .* as of argmax"),
        (
            np.uint8([1, 2, 255]),
            r"prediction is 2 at 1 labelled pixels.* 0\.\.1.*start at 1",
        ),
        (np.uint8([[0, 1, 1]]), r"label has the shape \(3,\), and prediction \(1, 3\)"),
    ],
)
def test_what_is_no_label_map_is_refused(prediction, message):
    with pytest.raises(ValueError, match=message):
        metrics.confusion_matrix(np.uint8([0, 1, 255]), prediction, 2)


def test_label_maps_of_other_libraries_and_counts_of_32_bits_are_taken():
    found = metrics.confusion_matrix([0, 1, 1], [False, True, False], 2)
    np.testing.assert_array_equal(found, [[1, 0], [1, 1]])
    many = jnp.full((2, 2), 2**30, jnp.int32)
    assert metrics.Scores(many).mean_iou == pytest.approx(1 / 3)


def test_label_maps_of_eight_bits_are_counted_alike():
    """150 classes of ADE20K: row times 150 does not fit in eight bits."""
    rng = np.random.default_rng(0)
    label, prediction = (rng.integers(0, 150, 500).astype(np.uint8) for _ in range(2))
    expected = np.zeros((150, 150), int)
    np.add.at(expected, (label, prediction), 1)
    found = metrics.confusion_matrix(jnp.asarray(label), jnp.asarray(prediction), 150)
    np.testing.assert_array_equal(found, expected)


def test_absent_class_is_not_scored():
    scores = metrics.Scores(np.diag([3, 0, 5]).astype(np.int64))
    assert np.isnan(scores.iou[1]) and np.isnan(scores.accuracy[1])
    assert scores.mean_iou == scores.class_average == scores.frequency_weighted_iou == 1.0


def test_nothing_labelled_is_nan_without_a_warning():
    scores = metrics.Scores(np.zeros((3, 3), np.int64))
    assert np.isnan(scores.mean_iou) and np.isnan(scores.global_accuracy)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_scatter_and_product_count_alike(seed, classes):
    rng = np.random.default_rng(seed)
    label = rng.choice([*range(classes), 255, -1], 200).astype(np.int32)
    prediction = rng.integers(0, classes, 200).astype(np.int32)
    valid = (label >= 0) & (label < classes)
    expected = np.zeros((classes, classes), int)
    np.add.at(expected, (label[valid], prediction[valid]), 1)
    for count in (metrics._by_scatter(classes), metrics._by_product(classes)):
        np.testing.assert_array_equal(count(label, prediction, valid), expected)


def test_trimap_is_the_void_dilated_by_a_square():
    label = np.zeros((1, 9, 9), np.int32)
    label[0, 4, 4] = 255
    band = np.asarray(metrics.trimap(jnp.asarray(label), 2))
    expected = np.full((9, 9), 255)
    expected[2:7, 2:7] = 0
    expected[4, 4] = 255
    np.testing.assert_array_equal(band[0], expected)
    assert (np.asarray(metrics.trimap(jnp.asarray(label), 0)) == 255).all()


def test_the_edge_of_an_image_on_its_canvas_is_no_boundary():
    """The band is that of the image alone, whatever lies around it."""
    alone = np.zeros((1, 7, 6), np.int32)
    alone[0, 2, 1] = 255
    canvas = np.full((1, 10, 9), 255, np.int32)
    canvas[:, :7, :6] = alone
    band = jax.jit(lambda x: metrics.trimap(x, 2, size=jnp.array([[7, 6]])))(canvas)
    expected = np.full(canvas.shape, 255)
    expected[:, :7, :6] = metrics.trimap(jnp.asarray(alone), 2)
    np.testing.assert_array_equal(band, expected)


def berkeley_boundary(mask):
    """seg2bdry(mask, 'imageSize') as published: odd cells of a map of doubled size."""
    h, w = mask.shape
    vertical, horizontal = np.zeros((h, w), int), np.zeros((h, w), int)
    vertical[:-1] = mask[:-1] != mask[1:]
    horizontal[:, :-1] = mask[:, :-1] != mask[:, 1:]
    large = np.zeros((2 * h + 1, 2 * w + 1), int)
    large[2::2, 1::2] = vertical
    large[1::2, 2::2] = horizontal
    large[2:-1:2, 2:-1:2] = np.maximum(
        np.maximum(horizontal[:-1, :-1], horizontal[1:, :-1]),
        np.maximum(vertical[:-1, :-1], vertical[:-1, 1:]),
    )
    large[0], large[:, 0] = large[1], large[:, 1]
    large[-1], large[:, -1] = large[-2], large[:, -2]
    return large[2::2, 2::2]


@pytest.mark.parametrize("seed", range(5))
def test_boundary_is_berkeleys(seed):
    mask = np.random.default_rng(seed).random((7, 9)) > 0.5
    found = np.zeros(mask.shape, int)
    found[tuple(metrics._boundary(mask).T)] = 1
    np.testing.assert_array_equal(found, berkeley_boundary(mask))


def most_pairs(a, b, reach):
    """The largest one-to-one matching, by trying all."""
    if len(a) > len(b):
        a, b = b, a
    near = lambda i, j: np.hypot(*(a[i] - b[j])) <= reach
    return max(
        sum(near(i, j) for i, j in enumerate(order))
        for order in itertools.permutations(range(len(b)), len(a))
    )


@pytest.mark.parametrize("seed", range(5))
def test_boundary_pixels_are_matched_one_to_one(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 8, (5, 2)), rng.integers(0, 8, (6, 2))
    assert metrics._matches(a, b, 2.5) == most_pairs(a, b, 2.5)
    # Two points near a single one make one pair; a dilation would count both.
    assert metrics._matches(np.array([[0, 0], [0, 1]]), np.array([[0, 0]]), 3.0) == 1


def test_boundary_f1_of_a_shifted_square():
    label = np.zeros((60, 80), np.int32)  # the diagonal is 100: 0.0075 of it is 0.75 pixels
    label[10:30, 10:30] = 1
    same, by_class = metrics.boundary_f1(label, label, 3)
    assert same == 1.0
    np.testing.assert_array_equal(by_class, [1.0, 1.0, np.nan])
    near, _ = metrics.boundary_f1(label, np.roll(label, 1, axis=1), 3, tolerance=0.0101)
    assert near == 1.0  # a shift by one pixel is within 1.01 pixels
    far, _ = metrics.boundary_f1(label, np.roll(label, 4, axis=1), 3)
    assert 0 < far < 0.6  # only the two horizontal sides still meet
    nothing, _ = metrics.boundary_f1(label * 0, label * 0, 3)
    assert nothing == 0.0
