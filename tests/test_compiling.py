import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import compiling


@pytest.fixture(autouse=True)
def probed_anew():
    compiling.options.cache_clear()
    yield
    compiling.options.cache_clear()


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
    compiling.options.cache_clear()
    monkeypatch.setenv("XLA_FLAGS", f"--{compiling.YNNPACK}= --{compiling.ONEDNN}=false")
    assert compiling.options() == {}


def test_other_backends_have_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiling.options() == {}
