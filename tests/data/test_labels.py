"""Ids: every mistake of users names its place, its likely reason and what mends it."""

import numpy as np
import pytest

from segjax.data.images import DataError
from segjax.data.labels import parse_label_map, spans, to_train_ids

IDS = {i: i for i in (0, 1, 2, 255)}


def mask(*changes, dtype=np.uint8):
    """6 x 8 of class 1, and (row, column, id) changed."""
    array = np.ones((6, 8), dtype)
    for row, column, value in changes:
        array[row, column] = value
    return array


def test_ids_pass():
    got = to_train_ids(mask((0, 0, 255), (5, 7, 2)), IDS, label_map={})
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, mask((0, 0, 255), (5, 7, 2)))


def test_the_label_map_comes_before_the_ids_of_the_data_set():
    got = to_train_ids(
        mask((0, 0, -1), (1, 1, 40000), dtype=np.int32),
        {1: 0, 2: 1, 3: 255},
        label_map={-1: 3, 40000: 2},
    )
    assert got[0, 0] == 255 and got[1, 1] == 1 and (np.delete(got.ravel(), [0, 9]) == 0).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_whole_numbers_of_any_dtype_pass(dtype):
    np.testing.assert_array_equal(
        to_train_ids(mask((2, 3, 2), dtype=dtype), IDS, label_map={}), mask((2, 3, 2))
    )


def test_an_rgb_mask_of_equal_channels_is_a_gray_one():
    gray = mask((2, 3, 2))
    got = to_train_ids(np.dstack([gray] * 3), IDS, label_map={})
    np.testing.assert_array_equal(got, gray)


def colour_mask():
    rgb = np.zeros((6, 8, 3), np.uint8)
    rgb[:2] = (128, 64, 128)
    rgb[4, 5] = (9, 8, 7)
    return rgb


def test_colours_stand_for_classes_where_that_is_said():
    colours = {(0, 0, 0): 2, (128, 64, 128): 0, (9, 8, 7): 255}
    got = to_train_ids(colour_mask(), IDS, label_map={}, colours=colours)
    assert (got[:2] == 0).all() and got[4, 5] == 255 and (got[2:4] == 2).all()
    rgba = np.dstack([colour_mask(), np.full((6, 8), 3, np.uint8)])
    np.testing.assert_array_equal(to_train_ids(rgba, IDS, label_map={}, colours=colours), got)


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (
            colour_mask(),
            [
                "is an RGB picture (3 channels, 3 colours); one class id per pixel is needed",
                "If colours mean classes: ",
                "classes.txt",
                "Colours found: (0, 0, 0) 64.6%, (128, 64, 128) 33.3%, (9, 8, 7) 2.1%",
            ],
        ),
        (
            mask((3, 5, 19), (3, 6, 19), (4, 0, 77)),
            [
                "has id 19 at row 3, column 5 (2 pixels) but num_classes=3 allows 0..2 (and 255).",
                "Other ids that are not allowed: 77.",
                '--config.data.label_map="{19:255,77:255}"',
            ],
        ),
        (
            mask((3, 5, -1), dtype=np.int16),
            ["has id -1 at row 3, column 5 (1 pixels)", "void", 'label_map="{-1:255}"'],
        ),
        (
            mask((0, 0, 3), (0, 1, 2)),
            ["has id 3 at", "Do the ids start at 1?", 'label_map="{1:0,2:1,3:2}"'],
        ),
        (
            np.arange(48, dtype=np.uint8).reshape(6, 8),
            ["has id 3 at row 0, column 3", "Other ids that are not allowed: 4..47.", "JPEG"],
        ),
        (
            mask((2, 7, 0.5), dtype=np.float32),
            ["holds 0.5 at row 2, column 7: class ids are whole numbers", "8-bit PNG"],
        ),
        (mask((2, 7, np.nan), dtype=np.float32), ["holds nan at row 2, column 7"]),
    ],
    ids=["rgb", "out of range", "negative", "from one", "interpolated", "fraction", "nan"],
)
def test_mistakes_are_explained(array, parts):
    with pytest.raises(DataError) as caught:
        to_train_ids(array, IDS, label_map={})
    for part in parts:
        assert part in str(caught.value)


def test_a_colour_without_a_class_is_named():
    with pytest.raises(
        DataError, match=r"has the colour \(9, 8, 7\) at row 4, column 5.*void 9 8 7"
    ):
        to_train_ids(colour_mask(), IDS, label_map={}, colours={(0, 0, 0): 0, (128, 64, 128): 1})


def test_label_maps_are_read():
    assert parse_label_map("{0:0,255:1}") == {0: 0, 255: 1}
    assert parse_label_map("{-1: 255}") == {-1: 255}
    assert parse_label_map("") == {}


@pytest.mark.parametrize("text", ["0:1", "{0:1", "[1]", "{'a':1}", "{0:1.5}", "{0:True}", "f(1)"])
def test_what_is_no_label_map_is_refused(text):
    with pytest.raises(ValueError, match=r"data.label_map=.*--config.data.label_map="):
        parse_label_map(text)


def test_label_maps_stay_in_range():
    with pytest.raises(ValueError, match="maps to 256"):
        parse_label_map("{0:256}")


def test_spans():
    assert spans([3, 0, 1, 2, 255]) == "0..3 (and 255)"
    assert spans([5]) == "5" and spans([1, 3, 4]) == "1, 3..4" and spans([255]) == "255"
