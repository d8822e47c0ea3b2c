"""Writers of the odd files that data sets are made of."""

import pathlib
import struct
import zlib

import cv2
import numpy as np


def png(indices: np.ndarray, *, bits: int = 8, palette: bool = True) -> bytes:
    """A PNG of few bits per pixel, with a palette that has nothing to do with the indices."""
    height, width = indices.shape
    rows = [
        np.packbits(
            np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].ravel()
        ).tobytes()
        for row in indices
    ]
    header = struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0)
    colours = np.random.default_rng(0).integers(0, 256, (2**bits, 3), np.uint8).tobytes()
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header)]
    if palette:
        chunks += [(b"PLTE", colours), (b"tRNS", bytes(2**bits))]
    chunks += [(b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def jpeg(rgb: np.ndarray, *, orientation: int = 0) -> bytes:
    """A JPEG, with an EXIF orientation of 1..8 unless 0."""
    data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    if not orientation:
        return data
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def write(path: pathlib.Path, array: np.ndarray | bytes) -> pathlib.Path:
    """Writes bytes, or an array (colour as RGB) in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(array, bytes):
        array = array[..., [2, 1, 0, 3][: array.shape[-1]]] if array.ndim == 3 else array
        array = cv2.imencode(path.suffix, array)[1].tobytes()
    path.write_bytes(array)
    return path


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth colours, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (width, height))


def blocks(height: int = 24, width: int = 32, ids=(0, 1, 2), seed: int = 0) -> np.ndarray:
    """A mask of 8 x 8 blocks, uint8 [H, W]; the first ones go through all ids."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(ids, (-(-height // 8), -(-width // 8)))
    coarse.flat[: len(ids)] = ids
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)


def folder(root: pathlib.Path, count: int = 10, ids=(0, 1, 2)) -> pathlib.Path:
    """A data set 'folder' of `count` pairs."""
    for i in range(count):
        write(root / f"images/{i:03d}.jpg", jpeg(picture(seed=i)))
        write(root / f"masks/{i:03d}.png", blocks(ids=ids, seed=i))
    return root
