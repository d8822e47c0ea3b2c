"""How programs that hold a network are compiled for a CPU.

XLA hands parts of a CPU program to libraries. Its own choice gives convolutions to YNNPACK, whose
gradients are slow; without YNNPACK sums are slow. So YNNPACK keeps sums, and oneDNN gets the rest
where this JAX has it, else convolutions go to Eigen and matrix products to YNNPACK. Results differ
by rounding only. Other backends are left alone. docs/performance_cpu.md has the measurements.

An option that this JAX does not know is left out, and so is one that XLA_FLAGS sets. JAX cannot
store programs that use oneDNN: with a compilation cache they do not use it.
"""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

Options = dict[str, str | bool]

YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
ONEDNN = "xla_cpu_experimental_onednn_custom_call"
SUMS = "LIBRARY_FUSION_TYPE_REDUCE"
SUMS_AND_PRODUCTS = f"{SUMS},LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


def options() -> Options:
    """Returns the options for `jax.jit(..., compiler_options=)`; none where the backend is no CPU.

    They are found once per process, by compiling a convolution of a few pixels.
    """
    return _found(
        bool(jax.config.jax_compilation_cache_dir and jax.config.jax_enable_compilation_cache)
    )


@functools.cache
def _found(stored: bool) -> Options:
    """Returns the options for programs that are stored in JAX's compilation cache, or are not."""
    if jax.default_backend() != "cpu":
        return {}
    with_onednn = _free({YNNPACK: SUMS, ONEDNN: True})
    if not stored and "onednn" in _compiled(with_onednn):
        return with_onednn
    without = _free({YNNPACK: SUMS_AND_PRODUCTS})
    return without if _compiled(without) else {}


def onednn() -> bool:
    """Returns whether oneDNN computes the convolutions of programs compiled with `options`."""
    return ONEDNN in options()


def prefer_onednn() -> None:
    """Turns JAX's compilation cache off for this process where it would keep oneDNN away.

    A program that runs for hours, as a training step does, is compiled anew for its speed.
    """
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    if ONEDNN not in _found(stored=False):
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()  # JAX asks once whether it is on


@functools.cache
def matrix_units() -> bool:
    """Returns whether the processor has instructions for bfloat16 matrices (AMX)."""
    processor = pathlib.Path("/proc/cpuinfo")
    return processor.exists() and "amx_bf16" in processor.read_text()


def jit(function: Callable[..., Any], *, libraries: bool = True, **how: Any) -> Any:
    """Returns `jax.jit(function, **how)`, compiled with `options` if `libraries`."""
    return jax.jit(function, compiler_options=(options() if libraries else None) or None, **how)


def _free(wanted: Options) -> Options:
    """Returns the options that the user has not set."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in wanted.items() if name not in flags}


def _compiled(chosen: Options) -> str:
    """Returns a convolution as compiled with the options, "" if one is unknown to this JAX."""
    image = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 16, 16), jnp.float32)
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    try:
        return jax.jit(conv).lower(image, kernel).compile(compiler_options=chosen).as_text()
    except jax.errors.JaxRuntimeError:
        return ""
