"""Reads the weights of a .caffemodel without Caffe and without protobuf.

The file is a serialised NetParameter of caffe.proto. Of its fields these are read, by number: the
layers (`layer` 100; `layers` 2 in files of 2014), of a layer its name (1; 4) and blobs (7; 6), of
a blob its shape (7, packed dims in field 1; or num, channels, height, width in 1 to 4) and its data
(float 5, double 8). Everything else, gradients and layer settings included, is passed over.
"""

import math
import mmap
import pathlib
from collections.abc import Iterator

import numpy as np

# (field of the layer in the net, of the name and of the blobs in the layer)
LAYER_FORMS = {100: (1, 7), 2: (4, 6)}
BLOB_NAMES = ("weight", "bias")
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the blobs as float32 arrays: `<layer>.weight`, `<layer>.bias`, `<layer>.blob2`, ...

    Raises:
      ValueError: the file is truncated, damaged or something else; its size bounds the memory.
    """
    with path.open("rb") as file:
        try:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            blobs = _net(data)
        except ValueError as error:
            raise ValueError(f"{path} is not a whole .caffemodel: {error}") from error
    if not blobs:
        raise ValueError(f"{path} holds no layer with weights; is it a .caffemodel?")
    return blobs


def _net(data: memoryview) -> dict[str, np.ndarray]:
    blobs = {}
    for number, wire, layer in _fields(data):
        if number not in LAYER_FORMS or wire != BYTES:
            continue
        name_field, blobs_field = LAYER_FORMS[number]
        name, arrays = "", []
        for field, kind, value in _fields(layer):
            if field == name_field and kind == BYTES:
                name = bytes(value).decode(errors="replace")
            elif field == blobs_field and kind == BYTES:
                arrays.append(_blob(value))
        for i, array in enumerate(arrays):
            key = f"{name}.{BLOB_NAMES[i] if i < len(BLOB_NAMES) else f'blob{i}'}"
            if key in blobs:
                raise ValueError(f"two layers are called {name!r}")
            blobs[key] = array
    return blobs


def _blob(data: memoryview) -> np.ndarray:
    legacy, shape, parts = {}, None, []
    for field, wire, value in _fields(data):
        if field == 7 and wire == BYTES:
            shape = _dims(value)
        elif field in (1, 2, 3, 4) and wire == VARINT:
            legacy[field] = value
        elif (field == 5 and wire in (BYTES, FIXED32)) or (field == 8 and wire in (BYTES, FIXED64)):
            size = 4 if field == 5 else 8
            if len(value) % size:
                raise ValueError(f"a blob has {len(value)} bytes of {size}-byte numbers")
            parts.append(np.frombuffer(value, f"<f{size}"))
    values = np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)
    if shape is None:
        shape = tuple(legacy.get(i, 1) for i in (1, 2, 3, 4))
    if len(shape) > 32 or math.prod(shape) != len(values):
        raise ValueError(f"a blob of shape {shape[:32]} holds {len(values)} numbers")
    return values.reshape(shape)


def _dims(data: memoryview) -> tuple[int, ...]:
    dims = []
    for field, wire, value in _fields(data):
        if field == 1 and wire == VARINT:
            dims.append(value)
        elif field == 1 and wire == BYTES:
            position = 0
            while position < len(value):
                dim, position = _varint(value, position)
                dims.append(dim)
    return tuple(dims)


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yields (number, wire type, value) of each field of a message: an integer or its bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == VARINT:
            value, position = _varint(data, position)
        else:
            if wire == BYTES:
                size, position = _varint(data, position)
            elif wire in (FIXED32, FIXED64):
                size = 4 if wire == FIXED32 else 8
            else:
                raise ValueError(f"a field of wire type {wire} near byte {position}")
            if size > len(data) - position:
                raise ValueError(
                    f"a field of {size} bytes where {len(data) - position} are left: truncated?"
                )
            value = data[position : position + size]
            position += size
        yield key >> 3, wire, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Returns an integer of seven bits per byte, at most ten bytes, and the position after it."""
    value = 0
    for i, byte in enumerate(data[position : position + 10]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, position + i + 1
    raise ValueError("an integer is cut off or longer than ten bytes")
