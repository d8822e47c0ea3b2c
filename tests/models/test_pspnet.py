"""PSPNet: the pyramid against pooling by hand, the auxiliary head, parameter counts."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import PSPNet, PyramidPooling, pspnet


@pytest.mark.parametrize(
    ("net", "main", "total", "size", "rows"),
    [
        # Computed from the layers' shapes, deep stem; without and with the auxiliary head.
        (PSPNet(num_classes=150, depth=50), 46_782_550, 49_180_908, 473, 60),
        (PSPNet(num_classes=150), 65_774_678, 68_173_036, 473, 60),
        (PSPNet(num_classes=21, depth=50), 46_716_373, 49_081_578, 473, 60),
        (PSPNet(num_classes=21), 65_708_501, 68_073_706, 473, 60),
        (PSPNet(num_classes=19, depth=50), 46_715_347, 49_080_038, 713, 90),
        (PSPNet(num_classes=19), 65_707_475, 68_072_166, 713, 90),
        (PSPNet(num_classes=19, stem="plain"), 65_707_475 - 123_776, None, 713, 90),
    ],
)
def test_parameter_counts_and_sizes(net, main, total, size, rows):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    counts = {
        name: sum(x.size for x in jax.tree.leaves(part))
        for name, part in variables["params"].items()
    }
    assert sum(counts.values()) - counts["aux"] == main
    assert total is None or sum(counts.values()) == total
    outputs = jax.eval_shape(net.apply, variables, image)
    assert {name: x.shape for name, x in outputs.items()} == dict.fromkeys(
        ("logits", "aux"), (1, rows, rows, net.num_classes)
    )


def pooled_by_hand(x, bins, reduce):
    """Windows from floor(i * size / bins) to ceil((i + 1) * size / bins)."""
    edges = [[(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)] for n in x.shape[:2]]
    return np.array([[reduce(x[a:b, c:d]) for c, d in edges[1]] for a, b in edges[0]])


def stretched_by_hand(x, size):
    """Linear interpolation between aligned corners, one axis after the other."""
    columns = np.linspace(0, x.shape[1] - 1, size[1])
    rows = np.linspace(0, x.shape[0] - 1, size[0])
    x = np.array([np.interp(columns, np.arange(len(line)), line) for line in x])
    return np.array([np.interp(rows, np.arange(len(line)), line) for line in x.T]).T


@pytest.mark.parametrize(("pool", "reduce"), [("average", np.mean), ("max", np.max)])
@pytest.mark.parametrize("size", [(12, 6), (7, 10)])
def test_bins_by_hand(pool, reduce, size):
    """Kernels that pick one channel each show the pyramid as it is; the input is positive."""
    bins = (1, 2, 3, 6)
    x = np.random.default_rng(0).random((1, *size, 4)).astype(np.float32)
    ppm = PyramidPooling(bins, pool)
    shapes = jax.eval_shape(ppm.init, jax.random.key(0), x)
    fresh = {"mean": 0.0, "var": 1.0, "scale": 1.0, "bias": 0.0, "kernel": 0.0}
    variables = jax.tree.map_with_path(
        lambda path, s: jnp.full(s.shape, fresh[path[-1].key]), shapes
    )
    for i in range(4):
        pick = np.zeros((1, 1, 4, 1), np.float32)
        pick[0, 0, i, 0] = np.sqrt(1 + 1e-5)
        variables["params"][f"conv{i + 1}"]["kernel"] = pick
    y = jax.jit(ppm.apply)(variables, x)
    np.testing.assert_array_equal(y[..., :4], x)
    for i, count in enumerate(bins):
        expected = stretched_by_hand(pooled_by_hand(x[0, :, :, i], count, reduce), size)
        np.testing.assert_allclose(y[0, :, :, 4 + i], expected, rtol=1e-4, atol=1e-5)


def test_prediction_does_not_compute_the_auxiliary_head():
    net = PSPNet(num_classes=3, depth=14, width=8)
    image = jnp.zeros((1, 33, 33, 3))
    variables = jax.eval_shape(net.init, jax.random.key(0), image)

    def flops(*names):
        f = lambda variables, image: [net.apply(variables, image)[name] for name in names]
        return jax.jit(f).lower(variables, image).compile().cost_analysis()["flops"]

    head = 2 * 5 * 5 * 9 * 128 * 32  # of its 3x3 convolution, zeros at the border included
    assert flops("logits", "aux") - flops("logits") > 0.6 * head


def test_refuses_another_pool():
    with pytest.raises(ValueError, match="pool='mean': use one of"):
        PyramidPooling(pool="mean").init(jax.random.key(0), jnp.zeros((1, 6, 6, 4)))


def test_example():
    result = doctest.testmod(pspnet)
    assert result.attempted and not result.failed
