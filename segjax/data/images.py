"""Encoded images and masks to arrays, with errors instead of guesses."""

import struct
import zlib

import cv2
import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
GRAY, PALETTE = 0, 3  # colour types of PNG


class DataError(ValueError):
    """A mistake in a data set; the message names the file and what mends it."""


def read_image(data: bytes, *, upright: bool = False) -> np.ndarray:
    """Decodes an image file to uint8 RGB [H, W, 3].

    Grey, RGBA and 16-bit files become 8-bit RGB.

    Args:
        data: of the file.
        upright: turn the picture as its EXIF orientation says; otherwise pixels come as stored.

    Raises:
        DataError: the bytes are truncated or no image. (OpenCV before 4.11 fills the missing part
            of a truncated JPEG with grey, which is why it is not supported.)
    """
    return _decode(data, cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION))


def orientation_matters(data: bytes) -> bool:
    """Returns whether an EXIF orientation would turn or mirror this image."""
    if b"Exif\0\0" not in data[:65536]:
        return False
    return not np.array_equal(read_image(data, upright=True), read_image(data))


def read_mask(data: bytes) -> np.ndarray:
    """Decodes a mask file to the numbers it stores, [H, W] or, in a colour file, [H, W, 3 or 4].

    A palette PNG gives palette indices. 1, 2 and 4 bits per pixel are not stretched to 0..255.
    Colour comes as RGB or RGBA.

    Raises:
        DataError: the bytes are truncated, no image, or a JPEG.
    """
    if data.startswith(JPEG):
        raise DataError(
            "is a JPEG: its compression changes ids near every edge. Export the mask as PNG"
        )
    bits, kind = 8, GRAY
    if data.startswith(PNG) and len(data) > 33:
        bits, kind = data[24], data[25]
    if kind == PALETTE:
        data = _palette_as_gray(data)
    mask = _decode(data, cv2.IMREAD_UNCHANGED)
    if kind in (GRAY, PALETTE) and bits < 8:
        mask = mask // (255 // (2**bits - 1))
    if mask.ndim == 3:
        mask = mask[..., [2, 1, 0, 3][: mask.shape[-1]]]
    return mask


def read_label(data: bytes) -> np.ndarray:
    """Decodes the label of a prepared record to uint8 [H, W]."""
    return _decode(data, cv2.IMREAD_GRAYSCALE)


def write_png(array: np.ndarray) -> bytes:
    """Encodes uint8 [H, W], or RGB [H, W, 3], as PNG."""
    return cv2.imencode(".png", array if array.ndim == 2 else array[..., ::-1])[1].tobytes()


def _decode(data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # an empty file, or a header that promises too much
        image = None
    if image is None:
        raise DataError(
            f"cannot be decoded ({len(data):,} bytes): it is truncated or not an image. "
            "Copy or export the file again"
        )
    return image


def _palette_as_gray(data: bytes) -> bytes:
    """Returns a palette PNG as a grey PNG of the same indices; OpenCV would look colours up."""
    header = data[12:25] + bytes([GRAY]) + data[26:29]
    chunks = [PNG, data[8:12], header, struct.pack(">I", zlib.crc32(header))]
    at = 33
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] in (b"IDAT", b"IEND"):
            chunks.append(data[at:end])
        at = end
    return b"".join(chunks)
