"""Everything that is taken for a picture becomes the same array, and the rest an error."""

import itertools
import pathlib
import re
import warnings

import numpy as np
import pytest
from PIL import Image

from segjax import config
from segjax.data import datasets, pipeline
from segjax.data.images import read_image, write_png
from segjax.predict import images as inputs

RGB = np.random.default_rng(0).integers(0, 256, (12, 18, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def saved(folder, array, name="a.png", **options):
    path = folder / name
    Image.fromarray(array).save(path, **options)
    return path


def test_paths_pil_images_and_arrays_are_the_same(folder):
    path = saved(folder, RGB)
    np.save(folder / "a.npy", RGB)
    with Image.open(path) as image:
        forms = [path, str(path), image, RGB, RGB.astype(np.int64), folder / "a.npy"]
        for form in forms:
            found = inputs.read(form)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, RGB)


def test_npy_files_are_not_read_into_memory(folder):
    np.save(folder / "a.npy", RGB)
    assert isinstance(inputs.read(folder / "a.npy").base, np.memmap)


CONTAINERS = {
    "PNG": ("png", {}),
    "JPEG": ("jpg", {"quality": 80}),
    "progressive JPEG": ("jpg", {"quality": 80, "progressive": True, "subsampling": 1}),
    "BMP": ("bmp", {}),
    "TIFF": ("tif", {}),
    "TIFF LZW": ("tif", {"compression": "tiff_lzw"}),
    "TIFF Deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF JPEG": ("tif", {"compression": "jpeg"}),
    "WEBP": ("webp", {}),
    "lossless WEBP": ("webp", {"lossless": True}),
    "GIF": ("gif", {}),
    "PPM": ("ppm", {}),
}
MODES = ("1", "L", "P", "P transparent", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F")


def in_mode(mode):
    """A picture in a mode of Pillow."""
    image = Image.fromarray(np.linspace(0, 255, 18 * 12 * 3).reshape(12, 18, 3).astype(np.uint8))
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(np.asarray(image.convert("L")).astype(kind) * 257)
    if mode.startswith("P"):
        image = image.quantize(16)
        if mode != "P":
            image.info["transparency"] = 3
        return image
    return image.convert(mode)


def test_training_and_prediction_see_the_same_pixels(folder, tmp_path, capsys):
    """Each container, mode and orientation: prepared and loaded for training, and predicted."""
    equal = refused = 0
    written: dict[str, pathlib.Path] = {}
    for container, mode, orientation in itertools.product(CONTAINERS, MODES, range(1, 9)):
        suffix, options = CONTAINERS[container]
        exif = Image.Exif()
        exif[0x0112] = orientation
        name = f"{container}-{mode}-{orientation}".replace(" ", "_").replace(";", "")
        path = folder / "images" / f"{name}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        try:
            in_mode(mode).save(
                path, container.split()[-1 if "TIFF" not in container else 0], exif=exif, **options
            )
        except (OSError, ValueError, RuntimeError):  # the container does not hold the mode
            path.unlink(missing_ok=True)
            continue
        try:
            expected = inputs.read(path)
        except ValueError as error:
            with pytest.raises(ValueError, match=re.escape(str(error).split(": ")[0][-40:])):
                read_image(path.read_bytes())
            path.unlink()
            refused += 1
            continue
        with Image.open(path) as image:
            np.testing.assert_array_equal(inputs.read(image), expected)
        mask = folder / "masks" / f"{name}.png"
        mask.parent.mkdir(exist_ok=True)
        mask.write_bytes(
            write_png(
                np.arange(expected.shape[0] * expected.shape[1], dtype=np.uint8).reshape(
                    expected.shape[:2]
                )
                % 2
            )
        )
        written[name] = path
    data = config.Data(
        name="folder", dir=str(folder), cache=str(tmp_path / "cache"), options="val_every=1000"
    )
    prepared = datasets.prepare(data, ["train"], show=False)
    for record in prepared.source("train"):
        loaded = pipeline.load([0], source=[record], canvas=(18, 18), fill=(0, 0, 0), where="")
        expected = inputs.read(written[record["id"].decode()])
        height, width = loaded["sizes"][0]
        np.testing.assert_array_equal(loaded["image"][0, :height, :width], expected)
        equal += 1
    assert equal == len(written) > 400
    with capsys.disabled():
        print(
            f"\n{equal} combinations of container, mode and orientation held equal, {refused} "
            "refused by both"
        )


def test_grey_rgba_palette_and_16_bits(folder):
    grey = np.repeat(RGB[..., :1], 3, -1)
    for form in (RGB[..., 0], RGB[..., :1], saved(folder, RGB[..., 0])):
        np.testing.assert_array_equal(inputs.read(form), grey)
    rgba = np.dstack([RGB, RGB[..., 0]])
    for form in (rgba, saved(folder, rgba)):
        np.testing.assert_array_equal(inputs.read(form), RGB)
    deep = RGB[..., 0].astype(np.uint16) * 257
    for form in (deep, saved(folder, deep), Image.fromarray(deep)):
        np.testing.assert_array_equal(inputs.read(form), grey)
    two = Image.fromarray((RGB > 127)[..., 0])  # one bit per pixel
    np.testing.assert_array_equal(inputs.read(two), (grey > 127) * np.uint8(255))
    palette = Image.fromarray(RGB).quantize(4)
    np.testing.assert_array_equal(inputs.read(palette), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture(folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(folder, RGB, exif=exif)
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.swapaxes(0, 1),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(RGB),
    }[orientation]
    np.testing.assert_array_equal(inputs.read(path), turned)


def test_declared_ranges():
    np.testing.assert_array_equal(inputs.read(RGB / 255, (0, 1)), RGB)
    np.testing.assert_array_equal(inputs.read(RGB.astype(np.float32), (0, 255)), RGB)
    np.testing.assert_array_equal(inputs.read(RGB / 127.5 - 1, (-1, 1)), RGB)
    np.testing.assert_array_equal(inputs.read(RGB.astype(np.uint16) * 16, (0, 4080)), RGB)


@pytest.mark.parametrize(
    ("array", "value_range", "message"),
    [
        (RGB / 255, None, r"float image in 0\.\.1 given .* wants 0\.\.255; write value_range=\(0"),
        (RGB.astype(np.float32), None, r"float image in 0\.\.255: say which values .*\(0, 255\)"),
        (RGB / 255 * 3, (0, 1), r"values 0\.\.3 are outside value_range=\(0, 1\)"),
        (np.where(RGB > 99, np.nan, 1), (0, 1), "values that are not finite"),
        (RGB.astype(np.int32) * 2, None, r"int32 image in 0\.\.510: .*value_range=\(0, 510\)"),
        (RGB.astype(np.int32) - 9, None, r"int32 image in -9\.\.246: .*value_range=\(-9, 255\)"),
        (RGB.astype(np.uint16), None, r"uint16 image in 0\.\.255: .*or give uint8"),
        (RGB > 99, None, "an image of bool cannot be used"),
        (RGB.transpose(2, 0, 1), None, r"expected HWC, got \(3, 12, 18\): .*transpose\(1, 2, 0\)"),
        (np.dstack([RGB, RGB]), None, r"1, 3 or 4 channels .* got \(12, 18, 6\)"),
        (RGB[0, 0], None, r"expected an image .* got \(3,\)"),
        (RGB[:0], None, r"expected an image .* got \(0, 18, 3\)"),
    ],
)
def test_arrays_that_cannot_be_used(array, value_range, message):
    with pytest.raises(ValueError, match=message):
        inputs.read(array, value_range)


def test_split():
    assert inputs.split("a.png") == (["a.png"], True)
    assert inputs.split(pathlib.Path("a.png")) == ([pathlib.Path("a.png")], True)
    assert inputs.split(p for p in ("a.png", "b.png")) == (["a.png", "b.png"], False)
    assert inputs.split(RGB)[1]
    for wrong in (RGB.tolist(), 5, None):
        with pytest.raises(ValueError, match="a picture is a path, a PIL image or an array, not"):
            inputs.split(wrong)
    arrays, single = inputs.split(np.stack([RGB, RGB]))
    assert not single and len(arrays) == 2 and arrays[0].shape == RGB.shape
    with pytest.raises(ValueError, match=r"NHWC, got \(8, 3, 51, 52\): .*NCHW; transpose\(0, 2, 3"):
        inputs.split(np.zeros((8, 3, 51, 52), np.uint8))


def test_files_that_are_no_picture(folder):
    def message(path):
        with pytest.raises(ValueError) as caught:
            inputs.read(path)
        text = str(caught.value)
        assert text.startswith(str(path)), text
        return text

    assert "does not exist" in message(folder / "none.png")
    assert "is a folder" in message(folder)
    (folder / "empty.png").touch()
    assert "is empty (0 bytes)" in message(folder / "empty.png")
    (folder / "notes.png").write_text("no picture at all")
    assert "no image of a known format" in message(folder / "notes.png")
    (folder / "notes.npy").write_text("no array at all")
    assert "is no .npy array" in message(folder / "notes.npy")
    (folder / "open.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',\n")
    assert "is no .npy array" in message(folder / "open.npy")
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)
    assert "is no .npy array" in message(folder / "objects.npy")  # never unpickled
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    for name in ("a.gif", "a.png", "a.tif", "a.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
        assert "has 2 frames or pages" in message(folder / name)
    Image.fromarray(RGB[..., 0].astype(np.float32)).save(folder / "float.tif")
    assert "or 32 bits per pixel" in message(folder / "float.tif")


@pytest.mark.parametrize("warned", ["error", "ignore"])  # warnings are of the process, not ours
@pytest.mark.parametrize("factor", [1, 2])  # Pillow warns at its limit and raises at twice that
def test_decompression_bombs_are_not_decoded(folder, monkeypatch, factor, warned):
    warnings.simplefilter(warned, Image.DecompressionBombWarning)
    path = saved(folder, RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 18 // factor - 1)
    with monkeypatch.context() as patch:
        patch.setattr(warnings, "catch_warnings", None)  # it is not for threads
        with pytest.raises(ValueError, match=r"a\.png is larger than \d+ pixels.*MAX_IMAGE_PIXELS"):
            inputs.read(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow mends what it can
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "bmp"])
def test_damaged_files(folder, suffix):
    """Whatever is cut off or changed: an array of the right form, or an error with the name."""
    path = saved(folder, RGB, f"a.{suffix}")
    content = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [content[: len(content) * i // 12] for i in range(1, 12)]
    for _ in range(25):
        changed = bytearray(content)
        changed[random.integers(len(content))] ^= int(random.integers(1, 256))
        damaged.append(bytes(changed))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            assert inputs.read(path).shape[-1] == 3
        except ValueError as error:
            assert str(error).startswith(str(path))
            refused += 1
    assert refused >= 5
