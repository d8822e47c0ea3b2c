"""Files of weights: what comes back, and what is refused."""

import hashlib
import json
import pathlib
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from segjax import pretrained
from segjax.pretrained import files


def test_saved_weights_come_back(tmp_path: pathlib.Path):
    variables = {
        "params": {"fc6": {"kernel": jnp.arange(6.0).reshape(2, 3).T}},
        "batch_stats": {"bn": {"mean": np.float32([1, 2])}},
    }
    pretrained.save_weights(tmp_path / "a" / "b", variables, {"classes": ["sky"]})
    loaded, metadata = pretrained.load_weights(tmp_path / "a" / "b")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert metadata["classes"] == ["sky"]
    stored = safetensors.numpy.load_file(tmp_path / "a" / "b" / "weights.safetensors")
    assert set(stored) == {"params/fc6/kernel", "batch_stats/bn/mean"}
    same, _ = pretrained.load_weights(tmp_path / "a" / "b" / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, same, variables)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_of_any_kind_are_written_in_one_and_vectors_stay_float32(
    tmp_path: pathlib.Path, dtype
):
    kinds = (jnp.bfloat16, np.float16, np.float32, np.float64)
    params = {jnp.dtype(kind).name: np.ones((3, 1), kind) for kind in kinds}
    params |= {"n": np.int32([1]), "mean": np.ones(3)}
    pretrained.save_weights(tmp_path, {"params": params}, {}, dtype=dtype)
    with safetensors.safe_open(tmp_path / "weights.safetensors", framework="np") as file:
        stored = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert stored.pop("params/n") == np.int32 and stored.pop("params/mean") == np.float32
    assert {dtype.name for dtype in stored.values()} == {dtype}


def test_a_folder_is_written_whole_or_found_out(tmp_path: pathlib.Path, monkeypatch):
    for value in (1, 2):
        variables = {"params": {"a": np.full(3, value, np.float32)}}
        pretrained.save_weights(tmp_path / f"run{value}", variables, {"value": value})
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(ValueError, match="cannot be written: full"):
        pretrained.save_weights(tmp_path / "run1", {"params": {"a": np.zeros(3)}}, {})
    loaded, metadata = pretrained.load_weights(tmp_path / "run1")
    assert (loaded["params"]["a"] == 1).all() and metadata["value"] == 1
    assert len(list((tmp_path / "run1").iterdir())) == 2
    (tmp_path / "run2" / "config.json").replace(tmp_path / "run1" / "config.json")
    with pytest.raises(ValueError, match=r"is not the file that config\.json describes"):
        pretrained.load_weights(tmp_path / "run1")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        pretrained.load_weights(tmp_path / "run2")
    (tmp_path / "run1" / "config.json").write_text("[")
    with pytest.raises(ValueError, match="does not describe"):
        pretrained.load_weights(tmp_path / "run1")


class Trap:
    """Pickled, it makes a file when it is read without care."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_a_pickle_with_code_is_not_run(tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch", reason="writes a file of torch")
    trap = tmp_path / "sprung"
    torch.save({"state_dict": {"conv1.weight": Trap(trap)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="more than tensors"):
        files.read(tmp_path / "a.pth")
    np.savez(tmp_path / "a.npz", a=np.array([Trap(trap)], object))
    with pytest.raises(ValueError, match="npz of plain arrays"):
        files.read(tmp_path / "a.npz")
    assert not trap.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert trap.exists()  # it was armed


def broken_files(folder: pathlib.Path) -> dict[str, tuple[bytes, str]]:
    """File name: content, what the error says."""
    np.savez(folder / "whole.npz", a=np.ones(100))
    npz = (folder / "whole.npz").read_bytes()
    packed = npz.index(b"PK\1\2") + 10  # how the directory says that the array is compressed
    tensors = safetensors.numpy.save({"a": np.ones(100, np.float32)})
    return {
        "a.pth": (b"", "is empty"),
        "b.pth": (b"not torch at all", "torch|more than tensors"),
        "c.safetensors": (tensors[:-8], "not a whole .safetensors"),
        "d.safetensors": (b"\xff" * 64, "not a whole .safetensors"),
        "e.npz": (npz[:-40], "not an .npz"),
        "f.npz": (npz[:80] + b"\0" * 40 + npz[120:], "not an .npz"),
        "k.npz": (npz[:packed] + b"\x63" + npz[packed + 1 :], "not an .npz"),
        "g.caffemodel": (b"\x08", "not a whole .caffemodel"),
        "h.caffemodel": (b"\x08\x01", "no layer with weights"),
        "i.h5": (b"HDF", "accepted are .pth, .pt, .safetensors, .npz, .caffemodel"),
        "j.safetensors": (
            safetensors.numpy.save({"w": np.array([1, np.nan], np.float32)}),
            "w has values that are not finite",
        ),
    }


@pytest.mark.parametrize("name", "abcdefghijk")
def test_a_broken_file_gives_one_clear_line(name: str, tmp_path: pathlib.Path):
    files_by_letter = {key[0]: (key, *value) for key, value in broken_files(tmp_path).items()}
    key, content, message = files_by_letter[name]
    if key.endswith(".pth") and content:
        pytest.importorskip("torch", reason="is torch's reader")
    (tmp_path / key).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        files.read(tmp_path / key)
    assert key in str(error.value)


def test_what_torch_wrote_beside_tensors_is_named(tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch", reason="writes a file of torch")
    torch.save({"conv1.weight": torch.ones(3), "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds epoch besides tensors"):
        files.read(tmp_path / "a.pth")
    torch.save(torch.ones(3), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds a Tensor, not a state_dict"):
        files.read(tmp_path / "a.pth")
    torch.save({"a": torch.ones(300)}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    for end in range(0, len(content), 97):
        (tmp_path / "b.pth").write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"b\.pth"):
            files.read(tmp_path / "b.pth")


def test_without_torch_the_extra_is_named(tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"pip install '\.\[parity\]'"):
        files.read(tmp_path / "a.pth")
    with pytest.raises(ValueError, match="does not exist"):
        files.read(tmp_path / "b.pth")


def torch_files():
    """Name: (tensor that torch makes, what the error says)."""
    return {
        "sparse": (lambda torch: torch.ones(3, 4).to_sparse(), "a is sparse"),
        "rows": (lambda torch: torch.ones(3, 4).to_sparse_csr(), "a is sparse"),
        "quantised": (
            lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "a is quantised",
        ),
        "nested": (lambda torch: torch.nested.nested_tensor([torch.ones(3)]), "a is nested"),
        "float8": (lambda torch: torch.ones(3).to(torch.float8_e4m3fn), "a is torch.float8_e4m3fn"),
        "complex": (lambda torch: torch.ones(3, dtype=torch.complex64), "a is torch.complex64"),
        "meta": (lambda torch: torch.ones(3, device="meta"), "a is without values"),
    }


@pytest.mark.filterwarnings("ignore")  # of torch, about the future of these forms
@pytest.mark.parametrize("form", torch_files())
def test_tensors_that_are_no_weights_are_named(form: str, tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch", reason="writes a file of torch")
    make, said = torch_files()[form]
    torch.save({"b": torch.ones(2), "a": make(torch)}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=rf"w\.pth: {said}.*; accepted are dense tensors of float64"
    ):
        files.read(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
def test_a_program_of_torch_and_odd_names_are_refused(tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch", reason="writes a file of torch")
    torch.save({1: torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds 1 besides tensors"):
        files.read(tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:  # as torch.jit.save does
        archive.writestr("w/constants.pkl", b"\x80\x02).")
        archive.writestr("w/data.pkl", b"\x80\x02).")
        archive.writestr("w/version", b"3\n")
    with pytest.raises(ValueError, match=r"TorchScript program.*jit\.load\(path\)\.state_dict"):
        files.read(tmp_path / "w.pth")


def safe(header, data: bytes = b"", size: int | None = None) -> bytes:
    """The content of a .safetensors file; `size` is what it says of its header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensor(dtype: str, *shape: int, end: int):
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    "content, said",
    [
        (safe({"a": tensor("F8_E4M3", 4, end=4)}, b"8888"), "a is F8_E4M3; accepted are"),
        (safe({"a": tensor("F8_E5M2", 4, end=4)}, b"8888"), "a is F8_E5M2; accepted are"),
        (safe({"a": tensor("F4", 4, end=2)}, b"88"), "a is F4; accepted are"),
        (safe({"a": tensor("C64", 1, end=8)}, b"8" * 8), "a is C64; accepted are"),
        (safe({}, size=2**62), "header too large"),
        (safe({}, size=2**64 - 1), "header too large"),
        (safe({"a": tensor("F32", 2**40, 2**40, end=4)}, b"8888"), "not a whole .safetensors"),
        (safe({"a": tensor("F32", 2, end=8)}, b"8888"), "not a whole .safetensors"),
        (safe([1, 2]), "not a whole .safetensors"),
    ],
)
def test_a_hostile_safetensors_is_refused(content: bytes, said: str, tmp_path: pathlib.Path):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        files.read(tmp_path / "w.safetensors")
    assert "w.safetensors" in str(error.value)
    if "C64" in said:
        return  # what segjax wrote itself comes back as it was
    config = {"weights_sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / files.WEIGHTS).write_bytes(content)
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=files.WEIGHTS):
        pretrained.load_weights(tmp_path)


def test_bfloat16_of_a_safetensors_becomes_float32(tmp_path: pathlib.Path):
    (tmp_path / "w.safetensors").write_bytes(safe({"a": tensor("BF16", 2, end=4)}, b"\x80?\0@"))
    array = files.read(tmp_path / "w.safetensors")["a"]
    assert array.dtype == np.float32 and array.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "array, said",
    [
        (np.array(["x"]), "a is <U1"),
        (np.array([1j]), "a is complex128"),
        (np.array(["2020-01-01"], "M8[D]"), "a is datetime64"),
        (np.zeros(2, [("x", "f4")]), "a is "),
        (np.array([1e300]), "a has values that are not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_arrays_that_are_no_weights_are_named(array, said: str, tmp_path: pathlib.Path):
    np.savez(tmp_path / "w.npz", a=array)
    with pytest.raises(ValueError, match=rf"w\.npz: {said}"):
        files.read(tmp_path / "w.npz")


def test_an_npz_that_says_it_is_huge_is_refused(tmp_path: pathlib.Path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive, archive.open("a.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**45,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(100))
    with pytest.raises(ValueError, match=r"w\.npz.*(larger than the memory|plain arrays)"):
        files.read(tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", b"text")
    with pytest.raises(ValueError, match=r"w\.npz: a is no array"):
        files.read(tmp_path / "w.npz")
