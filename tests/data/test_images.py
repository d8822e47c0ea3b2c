"""Decoding: by index, as stored, and never half a file."""

import cv2
import numpy as np
import pytest

from segjax.data import images
from segjax.data.images import DataError
from tests.data.files import jpeg, picture, png


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [True, False])
def test_masks_are_read_by_index(bits, palette):
    indices = np.random.default_rng(0).integers(0, 2**bits, (13, 21)).astype(np.uint8)
    got = images.read_mask(png(indices, bits=bits, palette=palette))
    np.testing.assert_array_equal(got, indices)
    assert got.ndim == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_png_of_8_and_16_bits(dtype):
    mask = np.arange(60, dtype=dtype).reshape(6, 10) * np.iinfo(dtype).max // 64
    got = images.read_mask(cv2.imencode(".png", mask)[1].tobytes())
    np.testing.assert_array_equal(got, mask)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_tiff_keeps_its_numbers(dtype):
    mask = np.array([[0, -1], [300, 7]], dtype)
    got = images.read_mask(cv2.imencode(".tiff", mask)[1].tobytes())
    np.testing.assert_array_equal(got, mask)


def test_colour_masks_come_as_rgb():
    rgb = picture()
    assert np.array_equal(images.read_mask(images.write_png(rgb)), rgb)
    rgba = np.dstack([rgb, rgb[..., 0]])
    data = cv2.imencode(".png", rgba[..., [2, 1, 0, 3]])[1].tobytes()
    assert np.array_equal(images.read_mask(data), rgba)


def test_every_kind_of_image_becomes_rgb_of_8_bits():
    rgb = picture()
    gray = rgb[..., 1]
    assert np.array_equal(images.read_image(images.write_png(rgb)), rgb)
    assert np.array_equal(images.read_image(images.write_png(gray)), np.dstack([gray] * 3))
    rgba = np.dstack([rgb[..., ::-1], gray])
    assert np.array_equal(images.read_image(cv2.imencode(".png", rgba)[1].tobytes()), rgb)
    deep = cv2.imencode(".png", rgb[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    assert np.abs(images.read_image(deep).astype(int) - rgb).max() <= 1
    assert images.read_image(deep).dtype == np.uint8


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_exif_orientation_is_ignored_and_told(orientation):
    rgb = picture()
    turned, plain = jpeg(rgb, orientation=orientation), jpeg(rgb)
    np.testing.assert_array_equal(images.read_image(turned), images.read_image(plain))
    assert images.orientation_matters(turned) == (orientation != 1)
    assert not images.orientation_matters(plain)


@pytest.mark.parametrize("encode", [jpeg, images.write_png], ids=["jpeg", "png"])
def test_truncated_files_are_refused_wherever_they_end(encode):
    data = encode(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    assert images.read_image(data).shape == (40, 60, 3)
    for end in (0, 10, 100, len(data) // 2, len(data) - 200, len(data) - 2):
        with pytest.raises(DataError, match="truncated or not an image"):
            images.read_image(data[:end])


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(50)])
@pytest.mark.parametrize("read", [images.read_image, images.read_mask])
def test_what_is_no_image_is_refused(read, data):
    with pytest.raises(DataError, match=rf"\({len(data)} bytes\)"):
        read(data)


def test_a_jpeg_is_no_mask():
    with pytest.raises(DataError, match="is a JPEG: its compression changes ids"):
        images.read_mask(jpeg(picture()))
