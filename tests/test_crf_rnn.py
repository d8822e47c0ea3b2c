"""A CRF after a network: trained with it, scored after it, found by who predicts."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import config as config_lib
from segjax import crf, crf_rnn, state, steps
from segjax.evaluate import step
from segjax.predict import crf_choice, program
from segjax.predict.protocols import Protocol
from segjax.workdir import own_crfs
from tests.crf.test_capacity import Programs
from tests.test_steps import Net

CRF = config_lib.CRF(learn=True, w1=2.0, alpha=10.0, beta=20.0, w2=1.0, gamma=2.0)


def settings():
    config = config_lib.Config(model=Net(), crf=CRF)
    config.augment = config_lib.Augment(flip=0.5)
    config.optim.lr = 0.05
    config.optim.weight_decay = 0.0
    return config


def batch(devices):
    """Four pictures of two halves under noise that a single pixel does not tell apart."""
    rng = np.random.default_rng(0)
    label = np.zeros((4, 16, 20), np.int32)
    label[:, :, 9:] = np.arange(4)[:, None, None] % 2 + 1
    image = 60 + 60 * label[..., None] + rng.normal(0, 25, (4, 16, 20, 3))
    label[:, :2] = 255
    split = lambda x: x.reshape(devices, 4 // devices, *x.shape[1:])
    image = np.clip(image, 0, 255).astype(np.uint8)
    return {"image": split(image), "label": split(label)}


@pytest.fixture(scope="module")
def trained():
    """Losses and states, at the start and after 30 steps."""
    config = settings()
    variables = state.init_variables(config.model, jax.random.key(1), (16, 20), config.crf)
    tx = state.transformation(config, variables["params"])
    devices = jax.devices()[:2]
    start = steps.replicated(jax.device_get(state.create(variables, tx)), devices)
    step = steps.parallel(steps.train_step, config=config, tx=tx, devices=devices)
    now, losses = start, []
    for _ in range(30):
        now, numbers = step(now, batch(2), jax.random.key(7))
        losses.append(float(numbers["loss"]))
    return config, losses, start, now


def test_network_and_crf_learn_together(trained):
    _, losses, start, now = trained
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    before, after = (np.asarray(s.params["crf"]["compatibility"]) for s in (start, now))
    np.testing.assert_array_equal(before, 1 - np.eye(3))
    assert np.abs(after - before).max() > 0.02
    assert np.abs(after - after.T).max() > 1e-4  # pairs of classes are not symmetric any more
    for name, weight in (("bilateral", 2.0), ("spatial", 1.0)):
        assert np.ptp(now.params["crf"][name]) > 1e-3  # classes differ
        assert np.abs(np.asarray(now.params["crf"][name]) - weight).max() > 1e-2
    moved = np.asarray(now.params["conv1"]["kernel"]) - np.asarray(start.params["conv1"]["kernel"])
    assert np.abs(moved).max() > 1e-3  # the gradient goes through the CRF


def test_evaluation_has_network_and_crf(trained):
    config, _, _, now = trained
    variables = jax.device_get({"params": now.params, "batch_stats": now.batch_stats})
    run = steps.parallel(
        step.eval_step,
        config=config,
        protocol=Protocol(),
        in_axes=(None, 0),
        out_axes=step.out_axes(refined=True),
        devices=jax.devices()[:1],
    )
    given = batch(1)
    size = np.tile(np.int32([16, 14]), (1, 4, 1))  # the rest is filling
    found = run(variables, {**given, "size": size})
    network, refined = found.network.labels, found.crf.labels
    counts, refined_counts = found.network.counts, found.crf.counts
    outputs, _ = state.forward(config.model, variables, given["image"][0], config.input)
    scores = jax.image.resize(outputs["logits"], (4, 16, 20, 3), "bilinear")
    np.testing.assert_array_equal(network[0], scores.argmax(-1))
    kernels = crf_rnn.kernels(now.params["crf"], config.crf)
    expected = crf.mean_field(scores[:, :, :14], given["image"][0][:, :, :14], kernels)
    inside = np.asarray(refined)[0, :, :, :14]
    assert (inside == np.asarray(expected).argmax(-1)).mean() > 0.99
    assert (inside != np.asarray(network)[0, :, :, :14]).mean() > 0.01
    assert np.trace(refined_counts["all"]) > np.trace(counts["all"])
    assert refined_counts["all"].sum() == counts["all"].sum() == (given["label"] != 255).sum()

    own = own_crfs(config, variables, pathlib.Path("/none"))
    found_kernels = crf_choice.choose(None, Protocol(), config.model, own)
    labels, _ = program.segment(
        variables,
        jnp.asarray(given["image"][0]),
        jnp.asarray(size[0]),
        config=config,
        protocol=Protocol(),
        kernels=found_kernels,
        capacity=program.capacity_of(given["image"][0], size[0], found_kernels),
    )
    np.testing.assert_array_equal(np.asarray(labels)[:, :, :14], inside)


def test_learnt_kernels_start_as_the_authors_do():
    """Potts with ones off the diagonal equals minus the identity on it."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(12, 16, 3)), jnp.float32)
    image = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    learnt = crf_rnn.kernels(crf_rnn.init(CRF, 3), CRF)
    fixed = crf.deeplab_kernels(CRF.w1, CRF.alpha, CRF.beta, CRF.w2, CRF.gamma)
    assert dataclasses.replace(learnt[0], weight=CRF.w1) == fixed[0]
    # The spatial kernels alone: the weights of the other are made alike.
    found, expected = (crf.mean_field(logits, image, k[1:]) for k in (learnt, fixed))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_hundred_pictures_of_many_sizes_share_few_programs():
    """As eval.py has them: on one canvas, with the size of each."""
    rng = np.random.default_rng(0)
    refine = jax.jit(
        functools.partial(crf_rnn.refine, kernels=crf.PRESETS["deeplab_v1"], config=CRF)
    )
    scores = rng.normal(size=(1, 16, 20, 3)).astype(np.float32)
    with Programs() as programs:
        for spread in (1, 4, 16, 64, 256) * 20:
            image = rng.integers(0, spread, (1, 16, 20, 3)).astype(np.uint8)
            refine(scores, image, rng.integers(4, (16, 20), (1, 2)).astype(np.int32))
    assert programs.number <= 6
