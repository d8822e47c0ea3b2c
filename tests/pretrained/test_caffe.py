"""The reader of .caffemodel files, whole, damaged and hostile."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.pretrained import caffe
from tests.reference import caffemodel, fill

NET = {
    "conv1_1.weight": fill.uniform("net/a", (4, 3, 3, 3), -1, 1),
    "conv1_1.bias": fill.uniform("net/b", (4,), -1, 1),
    "conv1_1_bn.weight": fill.uniform("net/c", (1, 4, 1, 1), -1, 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("weights")


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_form_of_a_caffemodel_is_read(v1, packed, legacy, tmp_path):
    path = tmp_path / "a.caffemodel"
    path.write_bytes(caffemodel.of_tensors(NET, v1=v1, packed=packed, legacy=legacy))
    found = caffe.read(path)
    assert list(found) == list(NET)
    for name, expected in NET.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name].ravel(), expected.ravel())
    bias = (1, 1, 1, 4) if legacy else (4,)
    assert [a.shape for a in found.values()] == [(4, 3, 3, 3), bias, (1, 4, 1, 1)]


def hostile_nets() -> dict[str, tuple[bytes, str]]:
    """What is wrong: the content of a .caffemodel, what the error says."""
    layer = lambda blob: caffemodel.net({"a": [blob]})
    field, varint = caffemodel.field, caffemodel.varint
    dims = lambda *sizes: field(7, field(1, b"".join(map(varint, sizes))))
    return {
        "a length beyond the file": (varint(100 << 3 | 2) + varint(2**60) + b"a", "truncated"),
        "a length of eleven bytes": (varint(100 << 3 | 2) + b"\xff" * 11, "ten bytes"),
        "a shape without values": (layer(dims(2**31, 2**31)), "holds 0 numbers"),
        "a negative size": (layer(dims(2**64 - 1) + field(5, b"\0" * 4)), "holds 1 numbers"),
        "hundreds of axes": (layer(dims(*[1] * 99) + field(5, b"\0" * 4)), "shape"),
        "half a number": (layer(field(5, b"\0" * 6)), "6 bytes"),
        "a group": (bytes([3 << 3 | 3]), "wire type 3"),
        "a name twice": (caffemodel.net({"a": [caffemodel.blob(np.ones(2))]}) * 2, "two layers"),
    }


@pytest.mark.parametrize("wrong", hostile_nets())
def test_a_hostile_caffemodel_is_refused(wrong: str, tmp_path: pathlib.Path):
    content, message = hostile_nets()[wrong]
    (tmp_path / "a.caffemodel").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        caffe.read(tmp_path / "a.caffemodel")


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_damaged_caffemodel_is_read_or_refused(data, folder: pathlib.Path):
    content = bytearray(caffemodel.of_tensors(NET))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] + data.draw(st.binary(max_size=20))
    path = folder / "damaged.caffemodel"
    path.write_bytes(content)
    try:
        found = caffe.read(path)
    except ValueError as error:
        assert "caffemodel" in str(error)
    else:
        assert sum(array.nbytes for array in found.values()) <= 2 * len(content)
