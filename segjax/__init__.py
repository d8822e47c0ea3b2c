"""SegNet, DeepLab v1, v2, v3 and PSPNet with DenseCRF in JAX and Flax Linen."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports `segjax.load` when it is asked for: the package itself stays light."""
    if name == "load":
        from segjax.predict.segmenter import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
