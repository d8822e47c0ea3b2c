import cv2
import numpy as np
import pytest

from segjax.report import pictures

PALETTE = ((255, 0, 0), (0, 0, 255))


def test_colours_are_the_palettes_and_void_is_vocs():
    label = np.array([[0, 1], [255, 7]])
    expected = [[PALETTE[0], PALETTE[1]], [pictures.VOID_COLOUR, pictures.VOID_COLOUR]]
    np.testing.assert_array_equal(pictures.colourize(label, PALETTE), expected)


def test_errors_are_striped_and_void_is_grey():
    label, prediction = np.zeros((9, 9), np.uint8), np.ones((9, 9), np.uint8)
    label[0, :2] = 1, 255
    found = pictures.errors(label, prediction)
    assert found[0, 0].tolist() == [0, 0, 0, 0] and tuple(found[0, 1]) == pictures.VOID
    assert {tuple(c) for c in found[1:].reshape(-1, 4)} == {pictures.WRONG, pictures.STRIPE}
    for line in (found[4], found[:, 4]):  # however thin an error is, both are seen
        assert len(np.unique(line, axis=0)) == 2


def luminance(colour):
    return np.dot(colour[:3], (0.299, 0.587, 0.114))


def test_errors_differ_from_what_is_right_without_colours():
    white, black = (pictures.faded(np.full((1, 1, 3), v, np.uint8))[0, 0] for v in (255, 0))
    darkest_right = luminance(black)
    assert luminance(white) > darkest_right > luminance(pictures.STRIPE) + 80
    assert darkest_right > luminance(pictures.WRONG) + 15


@pytest.mark.parametrize("size", [(1, 1500), (1500, 1), (1, 1)])
def test_thin_pictures_have_a_sheet(size):
    image, label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    sheet = pictures.sheet([("thin", image, label, label)], ("road", "sky"), PALETTE, width=100)
    assert sheet.shape[1] == 4 * 108 and sheet.shape[0] < 2 * 100 + 200


def test_names_are_cut_to_their_place_and_written_in_any_script():
    long = pictures._legend(
        ["a very long name of a class, much longer than its place"] * 2, PALETTE, 340
    )
    assert long.shape[1] == 340
    assert (long[:, 164:176] == 255).all()  # nothing reaches into the next column
    plain, accented = (pictures._caption(text, 80) for text in ("Strasse", "Straße"))
    assert (accented != plain).any() and (accented < 200).any()


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
