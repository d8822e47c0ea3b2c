"""How programs that hold a network are compiled for a CPU.

XLA hands parts of a CPU program to libraries. Its own choice gives convolutions to YNNPACK, whose
gradients are slow; without YNNPACK sums are slow. So YNNPACK keeps sums, and oneDNN gets the rest
where this JAX has it, else convolutions go to Eigen and matrix products to YNNPACK. Training uses
oneDNN only on a processor with AVX-512: on others its gradients of kernels are slow. Results differ
by rounding only. Other backends are left alone. docs/performance_cpu.md has the measurements.

An option that this JAX does not know is left out, and so is one that XLA_FLAGS sets. JAX cannot
store programs that use oneDNN: with a compilation cache they do not use it.
"""

import contextvars
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
# Of what `jit` traces: whether it computes gradients, and whether oneDNN has its convolutions.
_TRACED = contextvars.ContextVar("traced", default=(False, False))


def options(*, training: bool = False) -> Options:
    """Returns the options for `jax.jit(..., compiler_options=)`; none where the backend is no CPU.

    They are found once per process, by compiling a convolution of a few pixels.

    Args:
      training: whether the program computes gradients.
    """
    cache = jax.config.jax_compilation_cache_dir and jax.config.jax_enable_compilation_cache
    return _found(not cache and not (training and narrow()))


@functools.cache
def _found(with_onednn: bool) -> Options:
    """Returns the options for programs that may use oneDNN, or may not."""
    if jax.default_backend() != "cpu":
        return {}
    chosen = _free({YNNPACK: SUMS, ONEDNN: True})
    if with_onednn and "onednn" in _compiled(chosen):
        return chosen
    chosen = _free({YNNPACK: SUMS_AND_PRODUCTS})
    return chosen if _compiled(chosen) else {}


def onednn() -> bool:
    """Returns whether oneDNN computes the convolutions of what is traced now by `jit`."""
    return ONEDNN in options(training=training())


def training() -> bool:
    """Returns whether what is traced now by `jit` computes gradients."""
    return _TRACED.get()[0]


def predicts_by_onednn() -> bool:
    """Returns whether `jit` traces a program without gradients that is compiled with oneDNN.

    In `jax.jit`, which does not know `options`, it is false.
    """
    gradients, by_onednn = _TRACED.get()
    return by_onednn and not gradients


def prefer_onednn() -> None:
    """Turns JAX's compilation cache off for this process where it keeps oneDNN from training.

    A program that runs for hours, as a training step does, is compiled anew for its speed.
    """
    if narrow():
        return
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    if ONEDNN not in _found(with_onednn=True):
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()  # JAX asks once whether it is on


def matrix_units() -> bool:
    """Returns whether the processor has instructions for bfloat16 matrices (AMX)."""
    return "amx_bf16" in _processor()


def narrow() -> bool:
    """Returns whether the processor's widest instructions are AVX2, as far as Linux tells."""
    return "avx2" in _processor() and "avx512f" not in _processor()


@functools.cache
def _processor() -> str:
    """Returns what Linux says of the processor, "" on other systems."""
    file = pathlib.Path("/proc/cpuinfo")
    return file.read_text() if file.exists() else ""


def jit(
    function: Callable[..., Any], *, libraries: bool = True, training: bool = False, **how: Any
) -> Any:
    """Returns `jax.jit(function, **how)`, compiled with `options` if `libraries`.

    Args:
      function: what is compiled.
      libraries: use the options.
      training: whether it computes gradients.
      **how: arguments of `jax.jit`.
    """

    @functools.wraps(function)
    def traced(*arguments: Any, **keywords: Any) -> Any:
        before = _TRACED.set((training, ONEDNN in chosen))
        try:
            return function(*arguments, **keywords)
        finally:
            _TRACED.reset(before)

    chosen = options(training=training) if libraries else {}
    return jax.jit(traced, compiler_options=chosen or None, **how)


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
