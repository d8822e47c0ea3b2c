import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import compiling
from tests.conftest import cached


@pytest.fixture(autouse=True)
def probed_anew():
    compiling._found.cache_clear()
    yield
    compiling._found.cache_clear()


def network(x, kernel):
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(y - y.mean((0, 1, 2), keepdims=True)) @ kernel[0, 0]


def loss(x, kernel):
    return jnp.square(network(x, kernel)).mean()


def test_results_are_those_without_options():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 19, 23, 32)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 32, 32)) / 17, jnp.float32)
    for function in (network, jax.grad(loss, argnums=(0, 1))):
        chosen = compiling.jit(function)(x, kernel)
        plain = compiling.jit(function, libraries=False)(x, kernel)
        for a, b in zip(jax.tree.leaves(chosen), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_convolutions_leave_ynnpack():
    """XLA marks what it gives to YNNPACK; without options a convolution has the mark."""
    x, kernel = jnp.ones((1, 33, 33, 64)), jnp.ones((3, 3, 64, 64))
    text = lambda **how: compiling.jit(network, **how).lower(x, kernel).compile().as_text()
    libraries = [line for line in text(libraries=False).splitlines() if "ynn_fusion" in line]
    assert libraries
    assert len([line for line in text().splitlines() if "ynn_fusion" in line]) < len(libraries)


def test_unknown_options_are_left_out(monkeypatch):
    monkeypatch.setattr(compiling, "YNNPACK", "xla_cpu_of_another_release")
    assert compiling.options() == {}
    x = jnp.ones((1, 8, 8, 4))
    assert compiling.jit(network)(x, jnp.ones((3, 3, 4, 4))).shape == x.shape


def test_what_the_user_sets_stays(monkeypatch):
    assert compiling.YNNPACK in compiling.options()
    compiling._found.cache_clear()
    monkeypatch.setenv("XLA_FLAGS", f"--{compiling.YNNPACK}= --{compiling.ONEDNN}=false")
    assert compiling.options() == {}


@pytest.fixture
def cache_folder(tmp_path):
    with cached(tmp_path):
        yield tmp_path


def test_programs_can_be_stored(cache_folder):
    """JAX cannot store those of oneDNN, and warns, which is an error here."""
    x = jnp.ones((1, 8, 8, 4))
    compiling.jit(network)(x, jnp.ones((3, 3, 4, 4)))
    assert not compiling.onednn()
    assert [path for path in cache_folder.iterdir() if "jit_network" in path.name]


@pytest.mark.parametrize("flags", ["avx2 fma", "avx2 avx512f fma"])
def test_training_leaves_the_cache_where_onednn_is_faster(cache_folder, monkeypatch, flags):
    monkeypatch.setattr(compiling, "_processor", lambda: flags)
    before = jax.config.jax_enable_compilation_cache
    try:
        compiling.prefer_onednn()
        kept = jax.config.jax_enable_compilation_cache
        there = "avx512f" in flags and compiling.ONEDNN in compiling._found(with_onednn=True)
        assert (compiling.onednn(), kept) == (there, not there)
        compiling.jit(network)(jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4)))
        assert any("jit_network" in path.name for path in cache_folder.iterdir()) == kept
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@pytest.mark.parametrize("flags", ["avx2 fma", "avx2 avx512f fma", "asimd", ""])
def test_only_training_without_avx512_leaves_onednn(monkeypatch, flags):
    monkeypatch.setattr(compiling, "_processor", lambda: flags)
    monkeypatch.setattr(compiling, "_compiled", lambda chosen: "onednn" if chosen else "")
    assert compiling.ONEDNN in compiling.options()
    assert (compiling.ONEDNN in compiling.options(training=True)) == (flags != "avx2 fma")


def test_what_is_traced_knows_whether_it_trains():
    seen = []
    trace = lambda x: seen.append(compiling.training()) or x
    for training in (True, False):
        compiling.jit(trace, training=training)(jnp.ones(2))
    assert seen == [True, False]
    assert not compiling.training()


def test_only_a_program_that_predicts_with_onednn_knows_it(monkeypatch):
    monkeypatch.setattr(compiling, "_processor", lambda: "avx512f")
    monkeypatch.setattr(compiling, "_compiled", lambda chosen: "onednn" if chosen else "")
    seen = []
    trace = lambda x: seen.append(compiling.predicts_by_onednn()) or x
    for how in ({}, {"training": True}, {"libraries": False}):
        compiling.jit(trace, **how).lower(jnp.ones(2))
    jax.jit(trace).lower(jnp.ones(2))
    assert seen == [True, False, False, False]


def test_other_backends_have_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiling.options() == {}
