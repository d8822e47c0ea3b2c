"""Resizing of label maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import ops


def test_label_decimation():
    label = jnp.arange(33 * 41).reshape(33, 41)
    got = ops.resize_labels(label, (5, 6), align_corners=True)
    np.testing.assert_array_equal(got, label[::8, ::8])
    assert got.dtype == label.dtype
    other = ops.resize_labels(label, (5, 6), align_corners=False)
    assert np.any(other != label[::8, ::8])


@pytest.mark.parametrize(
    ("align_corners", "out", "expected"),
    [
        (True, 3, [0, 2, 3]),  # 1.5 goes up
        (True, 7, [0, 1, 1, 2, 2, 3, 3]),
        (True, 1, [0]),
        (False, 2, [1, 3]),
        (False, 3, [0, 2, 3]),
        (False, 6, [0, 1, 1, 2, 3, 3]),
    ],
)
def test_label_literal(align_corners, out, expected):
    label = jnp.arange(4, dtype=jnp.uint8).reshape(1, 4)
    got = ops.resize_labels(label, (1, out), align_corners=align_corners)
    np.testing.assert_array_equal(got[0], expected)


def test_labels_keep_leading_axes_and_255():
    label = jnp.full((2, 3, 4, 5), 255, jnp.int32)
    assert np.all(ops.resize_labels(label, (7, 3), align_corners=False) == 255)
    assert ops.resize_labels(label, (7, 3), align_corners=False).shape == (2, 3, 7, 3)


def test_export_of_labels_with_a_symbolic_batch():
    run = jax.jit(lambda label: ops.resize_labels(label, (9, 4), align_corners=True))
    shape = jax.export.symbolic_shape("b, 5, 7")
    exported = jax.export.export(run)(jax.ShapeDtypeStruct(shape, jnp.int32))
    label = jnp.arange(105).reshape(3, 5, 7)
    np.testing.assert_array_equal(exported.call(label), run(label))


@pytest.mark.parametrize(
    ("label", "size", "message"),
    [
        (jnp.zeros((4, 4)), (2, 2), r"float32\[4, 4\], needs integer .*resize interpolates floats"),
        (jnp.zeros(4, jnp.int32), (2, 2), r"\[\.\.\., height, width\]"),
        (jnp.zeros((4, 4), jnp.int32), (2, 0), r"size=\(2, 0\).*at least 1"),
    ],
)
def test_mistakes_are_named(label, size, message):
    with pytest.raises(ValueError, match=message):
        ops.resize_labels(label, size, align_corners=True)


@pytest.mark.parametrize("size", [(5, 5), (14, 20), (33, 7), (1, 1)])
def test_as_torch_does(size):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    label = np.random.default_rng(0).integers(0, 256, (2, 9, 21))
    expected = torch.nn.functional.interpolate(
        torch.tensor(label)[:, None].float(), size, mode="nearest-exact"
    )
    got = ops.resize_labels(jnp.asarray(label, jnp.int32), size, align_corners=False)
    np.testing.assert_array_equal(got, expected[:, 0])
