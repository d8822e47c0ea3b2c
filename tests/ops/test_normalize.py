"""Local response normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segjax import ops


def test_literal():
    x = jnp.array([1.0, 2.0, 3.0])
    whole = ops.local_response_norm(x, size=5, alpha=5.0, beta=1.0, k=1.0)
    np.testing.assert_allclose(whole, np.array([1, 2, 3]) / (1 + 14), rtol=1e-6)
    one = ops.local_response_norm(x, size=1, alpha=1.0, beta=0.5, k=0.0)
    np.testing.assert_allclose(one, [1, 1, 1], rtol=1e-6)
    three = ops.local_response_norm(x, size=3, alpha=3.0, beta=1.0, k=0.0)
    np.testing.assert_allclose(three, [1 / 5, 2 / 14, 3 / 13], rtol=1e-6)


def test_types_vmap_and_gradient():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 7))
    run = jax.jit(lambda x: ops.local_response_norm(x, size=5, alpha=0.5, beta=0.75, k=1.0))
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(x), run(x), rtol=1e-6)
    assert run(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    check_grads(run, (x,), order=1, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("size", [0, 4])
def test_an_even_window_is_refused(size):
    with pytest.raises(ValueError, match="odd"):
        ops.local_response_norm(jnp.ones(3), size=size, alpha=1.0, beta=0.75, k=1.0)


@pytest.mark.parametrize(("channels", "size"), [(3, 5), (8, 5), (8, 3), (1, 1)])
def test_torch(channels, size):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    x = np.random.default_rng(0).uniform(0, 255, (2, 4, 5, channels)).astype("f")
    theirs = torch.tensor(x).permute(0, 3, 1, 2)
    expected = torch.nn.functional.local_response_norm(theirs, size, 1e-4, 0.75, 1.0)
    got = ops.local_response_norm(jnp.asarray(x), size=size, alpha=1e-4, beta=0.75, k=1.0)
    np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), rtol=1e-5)
