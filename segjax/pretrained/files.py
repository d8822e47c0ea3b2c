"""Files of weights: published ones, and segjax's own, `weights.safetensors` beside `config.json`.

Nothing here can run code of a file: no pickle but torch's restricted reader of tensors.
"""

import hashlib
import json
import os
import pathlib
import pickle
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from segjax import files, paths
from segjax.files import write_bytes, write_text
from segjax.pretrained import caffe

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training programs put weights
# Numbers that are weights as they are, in the words of .safetensors; those of float8 and smaller
# types need a scale that is kept elsewhere.
PLAIN = {"F64", "F32", "F16", "BF16", "BOOL"}
PLAIN |= {f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)}


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by name: floats as float32, axes in the order of the file.

    Args:
      path: of a .pth or .pt (torch, tensors only), .safetensors, .npz, .caffemodel, or the folder
        of `save_weights`.

    Raises:
      ValueError: the file is missing, of another kind, damaged, or holds something else than dense
        arrays of ordinary numbers.
    """
    path = paths.of(path)
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix not in READERS:
        raise ValueError(f"{path} ends in {path.suffix!r}; accepted are {', '.join(READERS)}")
    path = files.fetch(path)
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    try:
        arrays = READERS[path.suffix](path)
        tensors = {name: _float32(path, name, array) for name, array in arrays.items()}
    except MemoryError as error:
        raise ValueError(f"{path} holds arrays that are larger than the memory: {error}") from error
    wrong = [name for name, array in tensors.items() if not np.isfinite(array).all()]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]} has values that are not finite")
    return tensors


def save_weights(
    path: str | os.PathLike[str],
    variables: dict[str, Any],
    metadata: dict[str, Any],
    *,
    dtype: str = "float32",
) -> None:
    """Writes variables and what is to be known about them into a folder.

    `weights.safetensors` has one array per variable, named by its path, "params/stage3/block2/
    conv1/kernel", "batch_stats/..."; `config.json` is the metadata. Both appear whole or not at
    all, and a folder whose two files do not belong together is refused by `load_weights`.

    Args:
      path: of the folder; made when missing.
      variables: pytree of nested dictionaries.
      metadata: JSON values.
      dtype: in which kernels are written; "bfloat16" halves the file. Vectors, statistics of
        BatchNorm among them, are few and stay float32.
    """
    folder = paths.of(path)
    arrays = {
        name: np.ascontiguousarray(jax.device_get(leaf))
        for name, leaf in flatten(variables).items()
    }
    arrays = {
        name: array.astype(dtype if array.ndim > 1 else np.float32)
        if jax.dtypes.issubdtype(array.dtype, np.floating)
        else array
        for name, array in arrays.items()
    }
    weights = safetensors.numpy.save(arrays)
    text = json.dumps({**metadata, "weights_sha256": hashlib.sha256(weights).hexdigest()}, indent=2)
    write_bytes(folder / WEIGHTS, weights)
    write_text(folder / CONFIG, text)


def load_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the variables, nested dictionaries of numpy arrays, and the metadata of a folder.

    Floats are float32, whatever they were written in.

    Raises:
      ValueError: the folder was not written by `save_weights`, or not completely.
    """
    folder = paths.of(path)
    if folder.name == WEIGHTS:
        folder = folder.parent
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; give a folder of segjax weights")
    with files.fetch(folder / WEIGHTS).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        metadata = json.loads((folder / CONFIG).read_text())
        expected = metadata["weights_sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / CONFIG} does not describe segjax weights: {error}") from error
    if found != expected:
        raise ValueError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} describes: one of them was damaged "
            "or replaced; write the folder again"
        )
    return unflatten(read(folder)), metadata


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves of nested dictionaries by path, "params/fc6/kernel"."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {name_of(path): leaf for path, leaf in leaves}


def name_of(key_path: Any) -> str:
    """Returns the name of a leaf of nested dictionaries, "params/fc6/kernel"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns the nested dictionaries of which `flatten` gives `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} needs torch to be read: pip install '.[parity]', or convert it to "
            ".safetensors where torch is installed"
        ) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, which is not read because it can run code. Where "
            "you trust it: torch.save(torch.load(path, weights_only=False).state_dict(), new)"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make torch raise any error
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} is a TorchScript program. Where you trust it: "
                "torch.save(torch.jit.load(path).state_dict(), new)"
            ) from error
        raise ValueError(f"{path} is damaged or not a file of torch: {error}") from error
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} holds a {type(found).__name__}, not a state_dict of tensors")
    strange = [
        name
        for name, value in found.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]
    if strange:
        raise ValueError(
            f"{path} holds {', '.join(map(str, strange[:8]))} besides tensors; give the state_dict"
        )
    for name, value in found.items():
        forms = {
            "nested": value.is_nested,
            "quantised": value.is_quantized,
            "sparse": not value.is_nested and value.layout != torch.strided,
            "without values, on the device meta,": value.is_meta,
            str(value.dtype): value.is_complex() or "float8" in str(value.dtype),
        }
        for form in (form for form, is_it in forms.items() if is_it):
            raise _no_weight(path, name, form)
    return {
        name: (value.float() if value.is_floating_point() else value).detach().resolve_neg().numpy()
        for name, value in found.items()
    }


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118, the file is no dictionary
                dtype = file.get_slice(name).get_dtype()
                if dtype not in PLAIN:
                    raise _no_weight(path, name, dtype)
            return file.get_tensors()
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole .safetensors file: {error}") from error


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive can make NumPy and zipfile raise any error
        raise ValueError(f"{path} is not an .npz of plain arrays: {error}") from error


def _float32(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise _no_weight(path, name, "no array")
    if array.dtype.kind in "iub":
        return array
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise _no_weight(path, name, str(array.dtype))
    return array.astype(np.float32)


def _no_weight(path: pathlib.Path, name: str, form: str) -> ValueError:
    return ValueError(
        f"{path}: {name} is {form}; accepted are dense tensors of float64, float32, float16, "
        "bfloat16 and integers. Write the file again with such tensors; torch has "
        "tensor.dequantize(), tensor.to_dense() and tensor.float()"
    )


READERS = {
    ".pth": _torch,
    ".pt": _torch,
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".caffemodel": caffe.read,
}
