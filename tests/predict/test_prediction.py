"""What a network says about a picture, and how it is shown."""

import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from segjax.data.labels import colour_map
from segjax.predict.prediction import Prediction

RNG = np.random.default_rng(0)


def prediction(labels, classes=("sky", "road", "car")):
    labels = np.asarray(labels, np.uint8)
    image = RNG.integers(0, 256, (*labels.shape, 3)).astype(np.uint8)
    return Prediction(image, labels, tuple(classes), colour_map(len(classes)), None, lambda: None)


@pytest.fixture
def two():
    """Twenty rows of sky over ten of road."""
    labels = np.zeros((30, 40), np.uint8)
    labels[20:] = 1
    return prediction(labels)


def test_overlay_mixes_picture_and_colours(two):
    colours = np.array(two.palette)[two.labels]
    np.testing.assert_array_equal(two.overlay(1.0), colours)
    np.testing.assert_array_equal(two.overlay(0.0), two.image)
    mixed = two.overlay(0.25, outlines=False)
    np.testing.assert_allclose(mixed, 0.75 * two.image + 0.25 * colours, atol=0.5)
    with pytest.raises(ValueError, match=r"alpha is 50; give a number from 0 to 1"):
        two.overlay(50)


def test_outlines_are_stronger_on_both_sides_of_a_border(two):
    colours = np.array(two.palette)[two.labels]
    expected = 0.75 * two.image + 0.25 * colours
    expected[19:21] = 0.5 * two.image[19:21] + 0.5 * colours[19:21]
    np.testing.assert_allclose(two.overlay(0.25), expected, atol=0.5)


def test_background_is_left_as_it_is():
    labels = np.zeros((30, 40), np.uint8)
    labels[20:] = 1
    out = prediction(labels, ("Background", "road", "car"))
    np.testing.assert_array_equal(out.overlay()[:20], out.image[:20])
    np.testing.assert_array_equal(out.overlay(1.0)[20:], np.full((10, 40, 3), (128, 0, 0)))
    other = prediction(labels, ("road", "background", "car"))  # only a class 0 of that name
    assert (other.overlay(1.0)[20:] == (128, 0, 0)).all()


def test_legend_has_the_classes_that_are_there(two):
    plain, legend = two.overlay(), two.overlay(legend=True)
    np.testing.assert_array_equal(legend[:30, :40], plain)
    assert (legend[:30, 40:] == 255).all()  # a name is wider than the picture
    below = legend[30:].reshape(-1, 3)
    for colour, there in zip(two.palette, (True, True, False), strict=True):
        assert (below == colour).all(1).any() == there or colour == (0, 0, 0)
    wide = prediction(np.arange(3).repeat(400)[None].repeat(9, 0)).overlay(legend=True)
    assert wide.shape[1] == 1200  # room for all names in one row
    lines = prediction(np.zeros((5, 5)), ("two\nlines",)).overlay(legend=True)
    assert lines.shape[0] > 5


def test_shares_and_repr(two):
    np.testing.assert_allclose(two.shares, [2 / 3, 1 / 3, 0])
    assert repr(two) == "Prediction(30x40: sky 66.7%, road 33.3%)"
    many = prediction(np.arange(6)[None], [f"c{i}" for i in range(6)])
    assert repr(many).endswith("c0 16.7%, c1 16.7%, c2 16.7%, c3 16.7%, 2 more)")


def test_a_notebook_shows_the_overlay(two, monkeypatch):
    expected = two.overlay(legend=True)
    with Image.open(io.BytesIO(two._repr_png_())) as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(("viewer", picture)))
    display = types.SimpleNamespace(display=lambda picture: shown.append(("notebook", picture)))
    for shell in (None, object()):
        ipython = types.SimpleNamespace(get_ipython=lambda shell=shell: shell, display=display)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        two.show()
    assert [where for where, _ in shown] == ["viewer", "notebook"]
    for _, picture in shown:
        np.testing.assert_array_equal(np.asarray(picture), expected)
