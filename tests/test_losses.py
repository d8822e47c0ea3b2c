import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import losses


def problem(shape=(2, 5, 7), classes=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, classes)).astype(np.float32)
    label = rng.integers(0, classes, shape).astype(np.int32)
    label[0, :2] = 255
    label[1, 3, 4] = -1
    return jnp.asarray(logits), jnp.asarray(label)


def by_hand(logits, label, weights=None):
    """The definition in float64, pixel by pixel."""
    total, count = 0.0, 0
    for z, y in zip(np.asarray(logits, np.float64).reshape(-1, 4), np.asarray(label).ravel()):
        if 0 <= y < 4:
            total += (np.log(np.exp(z).sum()) - z[y]) * (1 if weights is None else weights[y])
            count += 1
    return total, count


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.0, 3.0)])
def test_sum_and_count_are_those_of_the_definition(weights):
    logits, label = problem()
    given = None if weights is None else jnp.asarray(weights)
    loss, count = jax.jit(losses.cross_entropy)(logits, label, class_weights=given)
    expected = by_hand(logits, label, weights)
    np.testing.assert_allclose((loss, count), expected, rtol=1e-5)


def test_weighted_loss_is_divided_by_pixels_as_torch_with_a_sum_is():
    torch = pytest.importorskip("torch", reason="parity with torch needs the parity extra")
    logits, label = problem()
    label = jnp.where(label == -1, 255, label)
    weights = np.array([0.5, 2.0, 1.0, 3.0], np.float32)
    loss, count = losses.cross_entropy(logits, label, class_weights=jnp.asarray(weights))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(np.moveaxis(np.asarray(logits), -1, 1)),
        torch.tensor(np.asarray(label), dtype=torch.long),
        weight=torch.tensor(weights),
        ignore_index=255,
        reduction="sum",
    )
    np.testing.assert_allclose(loss / count, float(expected) / float(count), rtol=1e-5)


def test_ignored_pixels_have_zero_gradient_even_where_logits_are_not_finite():
    logits, label = problem()
    logits = jnp.where((label == 255)[..., None], jnp.nan, logits)
    logits = jnp.where((label == -1)[..., None], jnp.inf, logits)
    gradient = jax.grad(lambda z: losses.cross_entropy(z, label)[0])(logits)
    ignored = np.asarray((label < 0) | (label > 3))
    assert (np.asarray(gradient)[ignored] == 0).all()
    assert np.isfinite(np.asarray(gradient)).all()
    assert (np.abs(np.asarray(gradient)[~ignored]).sum(-1) > 0).all()


def test_only_ignored_pixels_give_zero_and_no_nan():
    logits, label = problem()
    loss, count = losses.cross_entropy(logits, jnp.full_like(label, 255))
    assert (float(loss), float(count)) == (0.0, 0.0)


def test_labels_are_decimated_to_the_logits_at_8k_plus_1():
    label = jnp.asarray(np.random.default_rng(0).integers(0, 21, (2, 33, 41)), jnp.int32)
    logits = jnp.zeros((2, 5, 6, 21))
    same, small = losses.match_resolution(logits, label, resolution="logits", align_corners=True)
    assert same is logits
    np.testing.assert_array_equal(small, label[:, ::8, ::8])


def test_logits_grow_to_the_labels():
    logits, label = jnp.ones((1, 3, 4, 2), jnp.bfloat16), jnp.zeros((1, 12, 16), jnp.int32)
    large, same = losses.match_resolution(logits, label, resolution="label", align_corners=False)
    assert same is label
    assert large.dtype == jnp.float32
    np.testing.assert_allclose(large, np.ones((1, 12, 16, 2)), rtol=1e-6)


def test_255_is_ignored_with_more_classes_than_that_too():
    logits = jnp.zeros((1, 1, 2, 300))
    total, count = losses.cross_entropy(logits, jnp.array([[[255, 256]]]))
    assert float(count) == 1 and float(total) == pytest.approx(np.log(300), rel=1e-6)
