"""Whatever is handed in as a picture, as 8-bit RGB."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from segjax import paths
from segjax.data.folders import in_brackets, near_miss, printable
from segjax.data.images import read_image, to_rgb

# A path, an array, or anything that numpy.asarray makes an array of.
Picture = str | os.PathLike[str] | Image.Image | np.ndarray

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def split(pictures: Picture | Iterable[Picture]) -> tuple[list[Picture], bool]:
    """Returns the pictures one by one, and whether it was a single one.

    Args:
      pictures: one picture; several, in a list or another iterable; or an array [N, H, W, C].

    Raises:
      ValueError: something is no picture, or an array is not [N, H, W, C].
    """
    if isinstance(pictures, str | os.PathLike | Image.Image):
        return [pictures], True
    if not hasattr(pictures, "__array__"):
        several = list(pictures) if isinstance(pictures, Iterable) else [pictures]
        for picture in several:
            file = isinstance(picture, str | os.PathLike | Image.Image)
            if not file and not hasattr(picture, "__array__"):
                raise ValueError(
                    f"a picture is a path, a PIL image or an array, not {type(picture).__name__}; "
                    "of numbers make one, numpy.asarray(numbers, numpy.uint8)"
                )
        return several, False
    array = np.asanyarray(pictures)  # a memory map stays one
    if array.ndim != 4:
        return [array], True
    if array.shape[1] in CHANNELS and array.shape[-1] not in CHANNELS:
        raise ValueError(
            f"expected NHWC, got {array.shape}: looks like NCHW; transpose(0, 2, 3, 1)"
        )
    return list(array), False


def read(picture: Picture, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Returns a picture as RGB.

    A file is read by the decoder of the data pipeline, so that training and prediction see the
    same pixels: turned as its EXIF orientation says; grey becomes RGB, an alpha channel is dropped,
    of 16 bits the upper 8 are kept.

    Args:
      picture: the path of an image file or of an .npy array; a PIL image; an array [H, W],
        [H, W, 1], [H, W, 3] or [H, W, 4].
      value_range: the values of black and white in an array; needed for floats. They are rounded
        to 8 bits, which is what networks are trained on.

    Returns:
      uint8 [H, W, 3]; a view of the memory map for an .npy file of that form.

    Raises:
      ValueError: the picture cannot be used; the message names the file, where it is one.
    """
    if isinstance(picture, str | os.PathLike):
        try:
            return _read_file(os.fspath(picture), value_range)
        except ValueError as error:
            raise ValueError(f"{printable(os.fspath(picture))} {error}") from error
    if isinstance(picture, Image.Image):
        return _from_pil(picture)
    return _from_array(np.asanyarray(picture), value_range)


def _read_file(path: str, value_range: tuple[float, float] | None) -> np.ndarray:
    if paths.in_bucket(path):
        raise ValueError("is in a bucket; pictures must be on a disk of this machine")
    if os.path.isdir(path):
        raise ValueError("is a folder; give the files in it")
    if not os.path.exists(path):
        raise ValueError(f"does not exist{in_brackets(near_miss(pathlib.Path(path)))}")
    if not os.path.isfile(path):
        raise ValueError("is no ordinary file")
    if path.endswith(".npy"):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header can make NumPy raise any error
            raise ValueError(f"is no .npy array: {error}") from error
        return _from_array(array, value_range)
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    return read_image(data)


def _from_pil(image: Image.Image) -> np.ndarray:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a phone's photo with its previews
        raise ValueError(f"has {frames} frames or pages; one picture is needed. Extract one")
    name = getattr(image, "filename", "")
    if name:
        image.filename = ""  # Pillow does not turn a TIFF that it maps into memory by its name
    upright = ImageOps.exif_transpose(image)
    if name:
        image.filename = name
    upright.format = image.format
    return to_rgb(upright)


def _from_array(array: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"expected an image [H, W, 3] or a batch [N, H, W, 3], got {array.shape}")
    if array.ndim == 3 and array.shape[-1] not in CHANNELS:
        if array.shape[0] in CHANNELS:
            raise ValueError(f"expected HWC, got {array.shape}: looks like CHW; transpose(1, 2, 0)")
        raise ValueError(f"expected 1, 3 or 4 channels in the last axis, got {array.shape}")
    return _rgb(_to_8_bits(array, value_range))


def _to_8_bits(array: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    kind = array.dtype
    if value_range is None and kind == np.uint8:
        return array
    if kind.kind not in "uif":
        raise ValueError(f"an image of {kind} cannot be used; give uint8 in 0..255")
    low, high = _extent(array)
    if value_range is not None:
        black, white = value_range
        if not (black <= low and high <= white) or black >= white:
            raise ValueError(f"values {low:g}..{high:g} are outside value_range={value_range}")
        scaled = (array.astype(np.float32) - black) * (255 / (white - black))
        return np.rint(scaled).astype(np.uint8)
    if kind.kind == "f":
        if low >= 0 and high <= 1:
            raise ValueError(
                "float image in 0..1 given to a checkpoint that wants 0..255; write "
                "value_range=(0, 1), or give uint8"
            )
        raise ValueError(
            f"float image in {low:g}..{high:g}: say which values are black and white, for example "
            "value_range=(0, 255), or give uint8"
        )
    if kind == np.uint16 and high > 255:
        return (array >> 8).astype(np.uint8)
    if kind == np.uint16 or low < 0 or high > 255:
        raise ValueError(
            f"{kind} image in {low:g}..{high:g}: say which values are black and white, for example "
            f"value_range=({min(low, 0):g}, {max(high, 255):g}), or give uint8"
        )
    return array.astype(np.uint8)


def _extent(array: np.ndarray) -> tuple[Any, Any]:
    low, high = array.min(), array.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("image has values that are not finite")
    return low.item(), high.item()


def _rgb(array: np.ndarray) -> np.ndarray:
    """Returns [H, W, 3] of [H, W] or [H, W, 1, 3 or 4]."""
    if array.ndim == 2:
        array = array[..., None]
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]
