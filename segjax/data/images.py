"""The one decoder: encoded images and masks to arrays, with errors instead of guesses.

Preparing, training and prediction read files by `decode`, so all of them see the same pixels.
"""

import dataclasses
import io
import re
import struct
import zlib

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

# Of the many formats Pillow opens these alone are tried: EPS would start Ghostscript, others are
# rarely tested.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")
NAMED = "JPEG, PNG, BMP, TIFF, WebP, PPM, PGM or GIF"

PNG = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  # tag of EXIF and of TIFF
BITS, COMPRESSION, PHOTOMETRIC, CHANNELS, SUBFILE, SAMPLES = 258, 259, 262, 277, 254, 339  # of TIFF
LOSSY = {6, 7, 34712, 50001, 50002}  # compressions of TIFF: JPEG, JPEG 2000, WebP, JPEG XL
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of 16-bit grey

# What files that are no image of these formats often are, by how they begin.
OTHERS = (
    (b"%!PS", "EPS or PostScript"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<!DOCTYPE html", "a web page, perhaps of a download that failed"),
    (b"<html", "a web page, perhaps of a download that failed"),
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the file itself"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"8BPS", "PSD"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
)


class DataError(ValueError):
    """A mistake in a data set; the message names the file and what mends it."""


class DecodeError(DataError):
    """The bytes of a file are no picture that can be decoded: truncated or something else."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A decoded image file, ready for a network."""

    rgb: np.ndarray  # uint8 [H, W, 3], upright
    orientation: int  # of EXIF or TIFF, 1..8, which `rgb` was turned by; 1: as stored
    deep: bool  # the file has 16 bits per channel, of which the upper 8 are kept


def decode(data: bytes) -> Decoded:
    """Decodes an image file.

    The picture is turned upright as its EXIF orientation says. Grey becomes RGB, an alpha channel
    is dropped, a palette is looked up, CMYK is converted; of 16 bits the upper 8 are kept.

    Args:
        data: of the file.

    Raises:
        DataError: the bytes are truncated, no image of a known format, too large, of several pages,
            or have numbers that nothing relates to black and white. The message is a sentence
            without its subject, the name of the file.
    """
    image, orientation = _load(data)
    deep = image.mode in DEEP or (image.format in ("PNG", "TIFF") and _bits(data, image) == 16)
    return Decoded(to_rgb(image), orientation, deep)


def read_image(data: bytes) -> np.ndarray:
    """Decodes an image file to uint8 RGB [H, W, 3], upright; see `decode`."""
    return decode(data).rgb


def to_rgb(image: Image.Image) -> np.ndarray:
    """Returns the pixels of a PIL image as uint8 RGB [H, W, 3], without turning it.

    Raises:
        DataError: the numbers have no known black and white, or the colours cannot be converted.
    """
    if image.mode in DEEP or (image.mode == "I" and image.format == "PPM"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise DataError(
            "has signed numbers or 32 bits per pixel, and nothing says which values are black and "
            "white. Save it with 8 bits, or, for prediction, give numpy.asarray(image) and "
            "value_range=(black, white)"
        )
    try:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        raise DataError(f"has the colours {image.mode}, which cannot become RGB: {error}") from None


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Returns stored pixels [H, W, ...] upright, as an EXIF orientation 1..8 says."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array


def read_mask(data: bytes) -> np.ndarray:
    """Decodes a mask file to the numbers it stores, [H, W] or, in a colour file, [H, W, 3 or 4].

    A palette gives its indices. 1, 2 and 4 bits per pixel are not stretched to 0..255. Colour comes
    as RGB or RGBA of 8 bits. The mask is turned upright as its own EXIF orientation says.

    Raises:
        DataError: as by `decode`, or the numbers were changed by lossy compression.
    """
    return read_mask_and_palette(data)[0]


def read_mask_and_palette(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns `read_mask`, and the palette, uint8 [N, 3] RGB by index, or None without one."""
    image, orientation = _load(data)
    numbers = _numbers(data, image, orientation)
    if image.mode not in ("P", "PA"):
        return numbers, None
    return numbers, np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)


def _numbers(data: bytes, image: Image.Image, orientation: int) -> np.ndarray:
    """Returns the numbers that a decoded mask file stores."""
    if image.format in ("JPEG", "MPO"):
        raise DataError(
            "is a JPEG: its compression changes ids near every edge. Export the mask as PNG"
        )
    tags = getattr(image, "tag_v2", {})
    if tags.get(COMPRESSION) in LOSSY or (image.format == "WEBP" and b"VP8 " in data[:4096]):
        raise DataError(
            f"is a {image.format} with lossy compression, which changes ids near every edge. "
            "Export the mask as PNG"
        )
    mode, bits = image.mode, _bits(data, image)
    if bits == 16 and mode in ("RGB", "RGBA", "RGBX", "LA"):
        return _narrow(turn(_wide_colours(data), orientation))
    if mode == "L" and tags.get(PHOTOMETRIC) == 0:
        raise DataError(
            "stores its numbers inverted (TIFF, WhiteIsZero), and programs disagree about what "
            "that means for ids. Export the mask as PNG"
        )
    array = np.asarray(image)
    if mode == "1":
        return array.astype(np.uint8)
    if mode == "L" and bits < 8:
        return array // (255 // (2**bits - 1))
    if mode == "L" and tags.get(SAMPLES, (1,))[0] == 2:
        return array.view(np.int8)
    if image.format == "PPM" and mode in ("L", "I", "RGB"):
        return _unscaled(array, data)
    if mode in ("LA", "PA"):
        return array[..., 0]
    if mode in ("P", "L", "I", "F", "RGB", "RGBA", *DEEP):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    raise DataError(
        f"has the colours {mode}; a mask has one id per pixel, or RGB. Export it as PNG"
    )


def write_png(array: np.ndarray) -> bytes:
    """Encodes uint8 [H, W], or RGB [H, W, 3], as PNG."""
    return cv2.imencode(".png", array if array.ndim == 2 else array[..., ::-1])[1].tobytes()


def _load(data: bytes) -> tuple[Image.Image, int]:
    """Returns a decoded image, upright, and the orientation that said how to turn it."""
    image = _open(data)
    # A damaged file can make Pillow's decoders raise any error from here on.
    try:
        if image.format == "PNG":
            _check_chunks(data)
            image.load()
        # Before TIFF is loaded, which turns it, and after PNG, whose EXIF may follow the pixels.
        orientation = image.getexif().get(ORIENTATION, 1)
        kind = image.format
        image.load()
        if orientation != 1:
            upright = ImageOps.exif_transpose(image)
            upright.format, image = kind, upright
    except Exception as error:
        raise DecodeError(_damaged(data, error)) from error
    return image, orientation if orientation in range(1, 9) else 1


def _open(data: bytes) -> Image.Image:
    """Reads the header of an image file, and refuses what must not be decoded."""
    if not data:
        raise DecodeError("is empty (0 bytes); copy or export it again")
    try:
        image = Image.open(io.BytesIO(_with_colour_palette(data)), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(_too_large()) from None
    except Exception as error:  # a damaged header can make Pillow raise any error
        raise DecodeError(_what_else(data)) from error
    limit = Image.MAX_IMAGE_PIXELS
    # Below twice the limit Pillow only warns, and warnings cannot be caught on threads.
    if limit is not None and image.width * image.height > limit:
        raise DataError(_too_large())
    try:
        if image.format == "BMP" and image.mode == "P":
            image.load()
            size = int.from_bytes(data[14:18], "little")
            entry = 3 if size == 12 else 4
            count = len(image.getpalette("RGB")) // 3
            colours = np.frombuffer(data[14 + size : 14 + size + count * entry], np.uint8)
            image.putpalette(colours.reshape(-1, entry)[:, 2::-1].tobytes())
        pages = _pages(image)
    except Exception as error:  # as above
        raise DecodeError(_damaged(data, error)) from error
    if pages > 1:
        raise DataError(f"has {pages} frames or pages; one picture is needed. Extract one")
    return image


def _pages(image: Image.Image) -> int:
    """Returns the number of frames or pages; smaller copies of one page are not counted."""
    count = getattr(image, "n_frames", 1)
    if count == 1 or image.format == "MPO":  # a phone's JPEG, with previews after the photo
        return 1
    if image.format == "TIFF":  # maps have overviews of themselves after the first page
        for page in range(1, count):
            image.seek(page)
            count -= image.tag_v2.get(SUBFILE, 0) & 1
        image.seek(0)
    return count


def _bits(data: bytes, image: Image.Image) -> int:
    """Returns the bits per channel of a PNG or TIFF file, else 8."""
    if data.startswith(PNG):
        return data[24]
    if (tags := getattr(image, "tag_v2", None)) is not None:
        return tags.get(BITS, (1,))[0]
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # turned: a copy without tags
        return _tags(data).get(BITS, (1,))[0]
    return 8


def _wide_colours(data: bytes) -> np.ndarray:
    """Decodes 16-bit colour, of which Pillow keeps 8 bits: uint16 [H, W, 3 or 4]."""
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        array = None
    if array is None or array.dtype != np.uint16 or array.ndim != 3:
        raise DataError(
            "has 16 bits per channel in a form that cannot be read; save it with 8 bits"
        )
    return array[..., [2, 1, 0, 3][: array.shape[-1]]]


def _narrow(array: np.ndarray) -> np.ndarray:
    """Returns 16-bit colours that are those of 8 bits, stretched or not, as uint8."""
    if array.max() <= 255:
        return array.astype(np.uint8)
    if (array % 257 == 0).all():
        return (array // 257).astype(np.uint8)
    raise DataError(
        "has 16 bits per channel, and its colours are not those of 8 bits: which class they mean "
        "cannot be told. Save the mask with 8 bits"
    )


def _unscaled(array: np.ndarray, data: bytes) -> np.ndarray:
    """Returns the numbers of a PGM or PPM, which Pillow stretches from 0..maxval."""
    comment = rb"(?:\s+|#[^\n]*\n)+"
    header = re.match(rb"P\d" + comment + rb"\d+" + comment + rb"\d+" + comment + rb"(\d+)", data)
    most = int(header[1]) if header else 255
    top = 65535 if array.dtype.itemsize > 1 else 255
    if most == top:
        return array
    return np.rint(array * (most / top)).astype(np.uint16 if most > 255 else np.uint8)


def _with_colour_palette(data: bytes) -> bytes:
    """Returns a BMP of 1 to 8 bits with a palette that is not grey; other files as they are.

    Pillow takes a grey palette for grey pixels, and misreads 8 bits with a palette of two colours.
    """
    if data[:2] != b"BM" or len(data) < 54:
        return data
    size = int.from_bytes(data[14:18], "little")
    bits = int.from_bytes(data[24:26] if size == 12 else data[28:30], "little")
    if bits > 8 or len(data) < 18 + size:
        return data
    return data[: 14 + size] + b"\1\0\0" + data[17 + size :]


def _check_chunks(data: bytes) -> None:
    """Raises ValueError where a part of a PNG that matters is missing or damaged."""
    at, kind = len(PNG), b""
    while kind != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        if len(kind) < 4 or end > len(data):
            raise ValueError(f"the file ends in the chunk {kind.decode('latin-1')!r}")
        intact = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
        if kind[:1].isupper() and not intact:
            raise ValueError(f"wrong checksum of the chunk {kind.decode('latin-1')!r}")
        at = end


def _damaged(data: bytes, error: Exception) -> str:
    return (
        f"cannot be decoded ({len(data):,} bytes; {error}): it is truncated or damaged. Copy or "
        "export it again"
    )


def _too_large() -> str:
    return (
        f"is larger than {Image.MAX_IMAGE_PIXELS:,} pixels, which may be an attack on memory. Cut "
        "it into tiles; or, if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS, or give it to "
        "prediction as an .npy file"
    )


def _tags(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Returns the tags of the first page of a TIFF."""
    header = data[:16] if data[2:4] in (b"+\0", b"\0+") else data[:8]
    tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _what_else(data: bytes) -> str:
    """Says why the header of a file cannot be read."""
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:64]
    for begins, name in OTHERS:
        if start.lower().startswith(begins.lower()):
            return f"is {name}, which is not read as a picture. Save it as {NAMED}"
    if data[4:8] == b"ftyp":
        return f"is HEIC, AVIF or a video, which is not read as a picture. Save it as {NAMED}"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        try:
            tags = _tags(data)
            bits, kind = tags.get(BITS, (1,))[0], tags.get(SAMPLES, (1,))[0]
            channels = tags.get(CHANNELS, 1)
        except (SyntaxError, OSError, KeyError, IndexError, struct.error, ValueError, TypeError):
            channels = 0
        if channels:
            numbers = {1: "whole", 2: "signed", 3: "floating-point"}.get(kind, "other")
            return (
                f"is a TIFF of {channels} channels with {bits}-bit {numbers} numbers, which is no "
                "picture that can be read. Save grey, RGB or RGBA with 8 or 16 bits"
            )
    return (
        f"cannot be decoded ({len(data):,} bytes): it is truncated or no image of a known "
        f"format, {NAMED}. Copy or export the file again"
    )
