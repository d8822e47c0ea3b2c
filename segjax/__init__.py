"""SegNet, DeepLab v1, v2, v3 and PSPNet with DenseCRF in JAX and Flax Linen.

    import segjax

    seg = segjax.load("runs/segnet")
    seg("street.jpg", crf="auto").save("street.png")

The parts are imported when they are asked for: `segjax.crf`, `segjax.models`, `segjax.ops` and
`segjax.pretrained` need no import of their own.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segjax import crf, models, ops, pretrained
    from segjax.predict.segmenter import load

__all__ = ["crf", "load", "models", "ops", "pretrained"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports a part of the package: `import segjax` alone takes milliseconds."""
    if name == "load":
        from segjax.predict.segmenter import load

        return load
    if name in __all__:
        return importlib.import_module(f"segjax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
