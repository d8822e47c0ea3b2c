import jax
import numpy as np
import pytest

from segjax import state, steps
from segjax.evaluate import step
from segjax.predict.protocols import Protocol
from tests.test_steps import batch, settings, start


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_evaluation_counts_every_pixel_once_on_any_number_of_devices(devices):
    config = settings()
    now, _ = start(config)
    run = steps.parallel(
        step.eval_step,
        in_axes=(None, 0),
        out_axes=step.out_axes(refined=False),
        protocol=Protocol(),
        config=config,
        devices=jax.devices()[:devices],
    )
    given = batch(devices)
    variables = {"params": now.params, "batch_stats": now.batch_stats}
    size = np.tile(np.int32([20, 24]), (devices, 8 // devices, 1))
    found = run(variables, {**given, "size": size}).network
    counts, prediction = found.counts, found.labels
    assert prediction.dtype == np.uint8
    label = given["label"].reshape(8, 20, 24)
    expected = np.zeros((3, 3), int)
    valid = label != 255
    np.add.at(expected, (label[valid], np.asarray(prediction).reshape(label.shape)[valid]), 1)
    np.testing.assert_array_equal(counts["all"], expected)
    # The void is a block of rows at the top: two rows below it are in the band.
    assert counts["trimap_2"].sum() == 7 * 2 * 24
    logits, _ = state.forward(
        config.model, variables, given["image"].reshape(8, 20, 24, 3), config.input
    )
    scores = jax.nn.log_softmax(jax.image.resize(logits["logits"], (8, 20, 24, 3), "bilinear"))
    expected = -np.take_along_axis(np.asarray(scores), np.where(valid, label, 0)[..., None], -1)
    total, count = np.asarray(found.loss)
    assert count == valid.sum()
    np.testing.assert_allclose(total, expected[..., 0][valid].sum(), rtol=1e-5)


def test_what_fills_up_a_canvas_is_no_boundary():
    label = np.zeros((1, 20, 24), np.int32)
    label[:, :3] = label[:, 16:] = label[..., 18:] = 255  # a void, and around 16x18 the canvas
    config = settings()
    counts = step._counts(label, np.zeros_like(label), np.array([[16, 18]], np.int32), config)
    assert counts["trimap_2"].sum() == 2 * 18
    counts = step._counts(label, np.zeros_like(label), np.array([[20, 24]], np.int32), config)
    assert counts["trimap_2"].sum() == 4 * 18 + 9 * 2
