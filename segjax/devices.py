"""What the makers promise of an accelerator: operations, memory and bandwidths of one chip.

Sources, read in 2026: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e; NVIDIA's data sheets of
the A100, the H100 and the H200 (SXM, without sparsity). Google states what the links of a chip
carry in both directions together; here it is one direction, which is what the documents of v5e and
v6e promise an all-reduce too (51.2 and 102.4 TB/s for 256 chips). The links of a v4 are in Jouppi
et al., "TPU v4", ISCA 2023: six of 50 GB/s.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, which is one device of JAX (of a v4 and v5p both cores together)."""

    name: str  # as people say it
    flops: float  # bfloat16 operations per second; a multiply-add counts as two
    memory: int  # bytes of HBM
    bandwidth: float  # bytes per second between chip and HBM
    links: float  # bytes per second to other chips in one direction, over all links


PEAKS = {  # by jax.Device.device_kind
    "TPU v4": Chip("TPU v4", 275e12, 32 * GIB, 1200e9, 300e9),
    "TPU v5 lite": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 200e9),
    "TPU v5": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 600e9),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 32 * GIB, 1638e9, 400e9),
    "NVIDIA A100-SXM4-40GB": Chip("A100 40 GB", 312e12, 40 * GIB, 1555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip("A100 80 GB", 312e12, 80 * GIB, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80 * GIB, 3350e9, 450e9),
    "NVIDIA H200": Chip("H200", 989e12, 141 * GIB, 4800e9, 450e9),
}
