"""Decoding: by index, as stored, and never half a file."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, TiffImagePlugin

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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_that_of_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "PNG", exif=exif)
    decoded = images.decode(file.getvalue())
    assert decoded.orientation == orientation
    np.testing.assert_array_equal(decoded.rgb, images.turn(picture(), orientation))
    mask = images.turn(np.arange(12).reshape(3, 4), orientation)
    file = io.BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(images.read_mask(file.getvalue()), mask)


@pytest.mark.parametrize("encode", [jpeg, images.write_png], ids=["jpeg", "png"])
@pytest.mark.parametrize("read", [images.read_image, images.read_mask])
def test_truncated_files_are_refused_wherever_they_end(encode, read):
    data = encode(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    assert images.read_image(data).shape == (40, 60, 3)
    for end in (10, 100, len(data) // 2, len(data) - 200, len(data) - 2):
        with pytest.raises(DataError, match="it is truncated or"):
            read(data[:end])


@pytest.mark.parametrize("data", [b"hello", b"\x89PNG\r\n\x1a\n" + bytes(50)])
@pytest.mark.parametrize("read", [images.read_image, images.read_mask])
def test_what_is_no_image_is_refused(read, data):
    with pytest.raises(DataError, match=rf"\({len(data)} bytes"):
        read(data)
    with pytest.raises(DataError, match=r"is empty \(0 bytes\)"):
        read(b"")


def test_a_flipped_bit_of_a_png_is_seen():
    data = bytearray(images.write_png(picture()))
    data[len(data) // 2] ^= 4
    with pytest.raises(DataError, match=r"wrong checksum of the chunk 'IDAT'"):
        images.read_image(bytes(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is EPS or PostScript"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer; `git lfs pull`"),
        (b"\n<!doctype HTML><html>", "is a web page"),
        (b"\0\0\0\x18ftypheic", "is HEIC, AVIF or a video"),
    ],
)
def test_other_formats_are_named_and_never_opened(monkeypatch, data, message):
    monkeypatch.setattr(EpsImagePlugin, "EpsImageFile", lambda *_: pytest.fail("opened"))
    for read in (images.read_image, images.read_mask):
        with pytest.raises(DataError, match=message):
            read(data)


def bmp(indices, bits, palette):
    """A BMP of few bits per pixel with a palette."""
    rows = []
    for row in indices[::-1]:
        packed = np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()
        rows.append(packed + bytes(-len(packed) % 4))
    body, colours = b"".join(rows), len(palette)
    start = 54 + 4 * colours
    height, width = indices.shape
    header = struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start)
    header += struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(body), 0, 0, colours, 0
    )
    return header + b"".join(bytes([b, g, r, 0]) for r, g, b in palette) + body


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("palette", ["grey", "black and white", "white and black", "colour"])
@pytest.mark.parametrize("full", [False, True])
def test_bmp_masks_are_read_by_index(bits, palette, full):
    count = 2**bits if full else 2
    black, white = (0, 0, 0), (255, 255, 255)
    colours = {
        "grey": [(i * 85 % 256,) * 3 for i in range(count)],
        "black and white": [black, white] + [(i, i, i) for i in range(2, count)],
        "white and black": [white, black] + [(i, i, i) for i in range(2, count)],
        "colour": [(i, 3, 9) for i in range(count)],
    }[palette]
    indices = np.random.default_rng(0).integers(0, count, (9, 13)).astype(np.uint8)
    data = bmp(indices, bits, colours)
    mask, palette = images.read_mask_and_palette(data)
    np.testing.assert_array_equal(mask, indices)
    np.testing.assert_array_equal(palette[:count], colours)
    np.testing.assert_array_equal(images.read_image(data), np.array(colours, np.uint8)[indices])


@pytest.mark.parametrize("form", ["TIFF", "GIF", "PNG", "BMP"])
def test_palettes_give_indices(form):
    ids = np.random.default_rng(0).integers(0, 4, (9, 13)).astype(np.uint8)
    ids.flat[:4] = range(4)
    for colours in ([(i * 85,) * 3 for i in range(4)], [(9, i, 80 - i) for i in range(4)]):
        image = Image.fromarray(ids, "P")
        image.putpalette(np.array(colours, np.uint8).tobytes())
        file = io.BytesIO()
        image.save(file, form, **({"optimize": False} if form == "GIF" else {}))
        got, palette = images.read_mask_and_palette(file.getvalue())
        np.testing.assert_array_equal(got, ids)
        np.testing.assert_array_equal(palette[:4], colours)
    assert images.read_mask_and_palette(images.write_png(ids))[1] is None


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "I", "F", "LA", "RGBA"])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "WEBP"])
def test_every_container_gives_the_ids_it_stores(mode, form):
    ids = np.random.default_rng(0).integers(0, 2, (9, 13)).astype(np.uint8)
    grey = Image.fromarray(ids)
    kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in kinds:
        image = Image.fromarray(ids.astype(kinds[mode]))
    else:
        image = Image.fromarray(ids * 255).convert("1") if mode == "1" else grey.convert(mode)
    file = io.BytesIO()
    try:
        image.save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    except OSError:
        pytest.skip(f"{form} cannot hold {mode}")
    if mode == "1" and form == "WEBP":
        ids = ids * 255  # it has no files of one bit
    got = images.read_mask(file.getvalue())
    np.testing.assert_array_equal(got[..., 0] if got.ndim == 3 else got, ids)


@pytest.mark.parametrize("most", [1, 20, 255, 300, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P5"])
def test_pgm_masks_are_not_stretched(most, kind):
    ids = np.arange(12) * most // 11
    header = kind + b"\n# by a program\n4 3\n%d\n" % most
    size = ">u2" if most > 255 else "u1"
    body = b" ".join(b"%d" % i for i in ids) if kind == b"P2" else ids.astype(size).tobytes()
    np.testing.assert_array_equal(images.read_mask(header + body), ids.reshape(3, 4))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_colours_of_16_bits_are_those_of_8_or_refused(suffix):
    rgb = picture()
    for stored in (rgb.astype(np.uint16) * 257, rgb.astype(np.uint16)):
        data = cv2.imencode(suffix, stored[..., ::-1])[1].tobytes()
        np.testing.assert_array_equal(images.read_mask(data), rgb)
    data = cv2.imencode(suffix, rgb.astype(np.uint16) * 100)[1].tobytes()
    with pytest.raises(DataError, match="has 16 bits per channel, and its colours are not those"):
        images.read_mask(data)


@pytest.mark.parametrize("compression", [1, 5, 8])  # none, LZW, Deflate
def test_tiff_of_any_compression(compression):
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression]
    wide = np.random.default_rng(0).integers(0, 65536, (9, 13, 3)).astype(np.uint16)
    data = cv2.imencode(".tiff", wide[..., ::-1], options)[1].tobytes()
    np.testing.assert_array_equal(images.read_image(data), wide >> 8)
    assert images.decode(data).deep
    for kind in (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32):
        mask = (np.arange(117).reshape(9, 13) - 1 * (np.dtype(kind).kind == "i")).astype(kind)
        data = cv2.imencode(".tiff", mask, options)[1].tobytes()
        np.testing.assert_array_equal(images.read_mask(data), mask)


@pytest.mark.parametrize(
    ("form", "options"),
    [("WEBP", {"quality": 90}), ("TIFF", {"compression": "jpeg"}), ("JPEG", {})],
)
def test_lossy_masks_are_refused(form, options):
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, form, **options)
    with pytest.raises(DataError, match=r"compression,? (which )?changes ids near every edge"):
        images.read_mask(file.getvalue())
    assert images.read_image(file.getvalue()).shape == picture().shape


def test_inverted_masks_are_refused():
    file = io.BytesIO()
    Image.fromarray(picture()[..., 0]).save(file, "TIFF", tiffinfo={262: 0})
    with pytest.raises(DataError, match="stores its numbers inverted"):
        images.read_mask(file.getvalue())


def test_a_whole_file_is_not_called_truncated():
    floats = cv2.imencode(".tiff", np.random.rand(6, 8, 3).astype(np.float32))[1].tobytes()
    with pytest.raises(DataError, match="TIFF of 3 channels with 32-bit floating-point numbers"):
        images.read_image(floats)
    one = cv2.imencode(".tiff", np.random.rand(6, 8).astype(np.float32))[1].tobytes()
    with pytest.raises(DataError, match="nothing says which values are black and white"):
        images.read_image(one)


def pages(form, **options):
    file = io.BytesIO()
    one, two = Image.fromarray(picture()), Image.fromarray(picture(seed=1))
    one.save(file, form, save_all=True, append_images=[two], **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP", "GIF"])
def test_several_pages_are_refused(form):
    for read in (images.read_image, images.read_mask):
        with pytest.raises(DataError, match="has 2 frames or pages"):
            read(pages(form))


def test_the_overviews_of_a_map_are_no_pages():
    file = io.BytesIO()
    small = Image.fromarray(picture()[::2, ::2])
    small.encoderinfo = {"tiffinfo": {254: 1}}
    with TiffImagePlugin.AppendingTiffWriter(file) as writer:
        Image.fromarray(picture()).save(writer, "TIFF")
        writer.newFrame()
        small.save(writer, "TIFF", tiffinfo={254: 1})
    np.testing.assert_array_equal(images.read_image(file.getvalue()), picture())


@pytest.mark.parametrize("read", [images.read_image, images.read_mask])
@pytest.mark.parametrize("factor", [1, 2])  # Pillow warns at its limit and raises at twice that
def test_decompression_bombs_are_not_decoded(monkeypatch, read, factor):
    data = images.write_png(picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 // factor - 1)
    with pytest.raises(DataError, match=r"is larger than \d+ pixels.*MAX_IMAGE_PIXELS"):
        read(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow mends what it can
def test_damaged_files_raise_nothing_else():
    """Every container cut off and changed at random: an array, or our error."""
    rng = np.random.default_rng(0)
    count = refused = 0
    for form in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM"):
        file = io.BytesIO()
        Image.fromarray(picture()).save(file, form)
        data = file.getvalue()
        for _ in range(120):
            changed = bytearray(data[: rng.integers(1, len(data) + 1)])
            for _ in range(rng.integers(0, 4)):
                place = min(rng.integers(len(changed)), int(rng.integers(1, 400)), len(changed) - 1)
                changed[place] = rng.integers(256)
            for read in (images.read_image, images.read_mask):
                count += 1
                try:
                    read(bytes(changed))
                except DataError:
                    refused += 1
    assert count == 1680 and refused > 800


@pytest.mark.parametrize("form", ["BMP", "GIF"])
@pytest.mark.parametrize("read", [images.read_image, images.read_mask])
def test_a_palette_picture_that_is_cut_off(form, read):
    file = io.BytesIO()
    Image.fromarray(picture()).convert("P").save(file, form)
    with pytest.raises(images.DecodeError, match="truncated or damaged"):
        read(file.getvalue()[:-300])


def test_a_jpeg_is_no_mask():
    with pytest.raises(DataError, match="is a JPEG: its compression changes ids"):
        images.read_mask(jpeg(picture()))
