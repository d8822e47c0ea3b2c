"""Imports torchvision also where its compiled operators do not load (installed with --no-deps).

Its classification and segmentation networks are plain Python; only the names of two operators are
looked for while importing.
"""

import functools
import importlib.util
import pathlib
import types

import torch


@functools.cache
def torchvision() -> types.ModuleType:
    """Returns the torchvision package with its models."""
    folder = pathlib.Path(importlib.util.find_spec("torchvision").origin).parent
    try:
        for library in folder.glob("_C*.so"):
            torch.ops.load_library(library)
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
            )
    return importlib.import_module("torchvision")
