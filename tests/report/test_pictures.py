import cv2
import numpy as np
import pytest

from segjax.report import pictures

PALETTE = ((255, 0, 0), (0, 0, 255))


def test_colours_are_the_palettes_and_void_is_vocs():
    label = np.array([[0, 1], [255, 7]])
    expected = [[PALETTE[0], PALETTE[1]], [pictures.VOID_COLOUR, pictures.VOID_COLOUR]]
    np.testing.assert_array_equal(pictures.colourize(label, PALETTE), expected)


def test_errors_are_red_and_void_is_neither():
    label, prediction = np.array([[0, 1, 255]]), np.array([[0, 0, 1]])
    expected = [[pictures.RIGHT, pictures.WRONG, pictures.VOID_COLOUR]]
    np.testing.assert_array_equal(pictures.errors(label, prediction), expected)


def test_sheet_has_a_row_for_each_image_of_any_size(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for name, size in (("wide", (40, 80)), ("tall", (600, 300))):
        label = rng.integers(0, 2, size)
        rows.append((name, rng.integers(0, 256, (*size, 3)).astype(np.uint8), label, 1 - label))
    sheet = pictures.sheet(rows, ("road", "sky"), PALETTE, width=100)
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 4 * 108
    assert sheet.shape[0] > 50 + 200
    pictures.write(tmp_path / "a" / "sheet.png", sheet)
    read = cv2.cvtColor(cv2.imread(str(tmp_path / "a" / "sheet.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(read, sheet)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["sheet.png"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/sheet.png cannot be written"):
        pictures.write(tmp_path / "file" / "sheet.png", np.zeros((4, 4, 3), np.uint8))
