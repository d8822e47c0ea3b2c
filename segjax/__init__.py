"""SegNet, DeepLab v1, v2, v3 and PSPNet with DenseCRF in JAX and Flax Linen."""

__version__ = "0.1.0"
