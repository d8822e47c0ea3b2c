"""Writes a .caffemodel as Caffe does, for tests of the reader: the wire format, field by field."""

from collections.abc import Mapping

import numpy as np


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray, *, legacy: bool = False, packed: bool = True) -> bytes:
    """A BlobProto; `legacy` has num, channels, height, width in place of a shape."""
    if legacy:
        shape = (1,) * (4 - array.ndim) + array.shape
        head = b"".join(field(i, n) for i, n in enumerate(shape, start=1))
    else:
        head = field(7, field(1, b"".join(map(varint, array.shape))))
    values = array.astype("<f4").ravel()
    if packed:
        return head + field(5, values.tobytes())
    return head + b"".join(varint(5 << 3 | 5) + value.tobytes() for value in values)


def net(layers: Mapping[str, list[bytes]], *, v1: bool = False) -> bytes:
    """A NetParameter of layers with blobs, and some fields that a reader has to pass over."""
    number, name_field, blobs_field = (2, 4, 6) if v1 else (100, 1, 7)
    out = field(1, b"a net") + field(5, 1)
    for name, blobs in layers.items():
        kind = field(5, 4) if v1 else field(2, b"Convolution")
        body = field(name_field, name.encode()) + kind + field(3, b"top")
        body += b"".join(field(blobs_field, content) for content in blobs)
        out += field(number, body)
    return out


def of_tensors(tensors: Mapping[str, np.ndarray], **options: bool) -> bytes:
    """A net whose layers hold `<layer>.weight`, `<layer>.bias` as their first and second blob."""
    v1 = options.pop("v1", False)
    layers: dict[str, list[bytes]] = {"data": []}
    for name, array in tensors.items():
        layers.setdefault(name.rsplit(".", 1)[0], []).append(blob(array, **options))
    return net(layers, v1=v1)
