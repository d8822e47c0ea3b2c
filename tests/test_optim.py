import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax import config, optim

PARAMS = {
    "conv1": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "bn1": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
    "head": {"kernel": jnp.ones(3), "bias": jnp.ones(1)},
}
ONES = jax.tree.map(jnp.ones_like, PARAMS)


def run(settings, updates=1, steps=100, frozen=(), grads=ONES):
    tx = optim.make(settings, PARAMS, steps=steps, frozen=frozen)
    params, opt_state = PARAMS, tx.init(PARAMS)
    for _ in range(updates):
        change, opt_state = jax.jit(tx.update)(grads, opt_state, params)
        params = optax.apply_updates(params, change)
    return params, opt_state


def test_poly_schedule_has_the_values_of_the_papers():
    rate = optim.schedule(config.Optim(lr=0.01), 1000)
    # lr(0) = base, lr(T/2) = 0.536 base, lr(T-1) = base T^-0.9.
    np.testing.assert_allclose(rate(0), 0.01, rtol=1e-6)
    np.testing.assert_allclose(rate(500), 0.01 * 0.5358867, rtol=1e-5)
    np.testing.assert_allclose(rate(999), 0.01 * 1000**-0.9, rtol=1e-3)
    floor = optim.schedule(config.Optim(lr=0.01, end_lr=1e-4), 1000)
    np.testing.assert_allclose(floor(999), 1e-4, rtol=1e-6)


def test_step_schedule_drops_every_2000():
    rate = optim.schedule(config.Optim(lr=1e-3, schedule="step"), 6000)
    found = [float(rate(t)) for t in (0, 1999, 2000, 3999, 4000, 5999)]
    np.testing.assert_allclose(found, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-5)


def test_warm_up_scales_the_schedule():
    plain = optim.schedule(config.Optim(lr=0.1), 100)
    warm = optim.schedule(config.Optim(lr=0.1, warmup=4), 100)
    np.testing.assert_allclose([warm(t) / plain(t) for t in (0, 1, 3, 9)], [0.25, 0.5, 1, 1])


def test_schedule_counts_updates_not_batches():
    rate = optim.schedule(config.Optim(lr=1.0, accumulate=10), 1000)
    np.testing.assert_allclose(rate(50), 0.5**0.9, rtol=1e-6)


def test_momentum_and_decay_are_torchs():
    torch = pytest.importorskip("torch", reason="parity with torch needs the parity extra")
    settings = config.Optim(lr=0.1, schedule="fixed", momentum=0.9, weight_decay=0.01)
    params, _ = run(settings, updates=5)
    weight = torch.nn.Parameter(torch.ones(3))
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(5):
        weight.grad = torch.ones(3)
        sgd.step()
    np.testing.assert_allclose(params["head"]["kernel"], weight.detach().numpy(), rtol=1e-5)


def test_multipliers_by_path_first_match_wins():
    settings = config.Optim(
        lr=0.01,
        weight_decay=0.0,
        lr_multipliers={"head/kernel": 10.0, "head/bias": 20.0, "conv.*/bias": 2.0, "bias": 7.0},
    )
    params, _ = run(settings)
    moved = jax.tree.map(lambda a, b: float(jnp.mean(a - b)) / 0.01, PARAMS, params)
    assert moved["head"] == pytest.approx({"kernel": 10, "bias": 20}, rel=1e-4)
    assert moved["conv1"] == pytest.approx({"kernel": 1, "bias": 2}, rel=1e-4)
    assert moved["bn1"] == pytest.approx({"scale": 1, "bias": 7}, rel=1e-4)


def test_no_decay_spares_what_it_names():
    settings = config.Optim(lr=0.1, weight_decay=0.5, no_decay=("bias", "bn"))
    params, _ = run(settings, grads=jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(params["conv1"]["kernel"], 1 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(params["conv1"]["bias"], 1.0)
    np.testing.assert_array_equal(params["bn1"]["scale"], 1.0)


def test_frozen_parameters_do_not_move_nor_count_for_clipping():
    settings = config.Optim(lr=1.0, schedule="fixed", weight_decay=0.1, momentum=0, clip_norm=1.0)
    params, _ = run(settings, updates=1, frozen=("^bn1/", "^conv1/"))
    np.testing.assert_array_equal(params["bn1"]["scale"], PARAMS["bn1"]["scale"])
    np.testing.assert_array_equal(params["conv1"]["kernel"], PARAMS["conv1"]["kernel"])
    # Four gradients of 1 remain: clipped to a norm of 1 they are 0.5 each, and the decay adds 0.1.
    np.testing.assert_allclose(params["head"]["kernel"], 1 - 0.6, rtol=1e-6)


def test_accumulation_averages_gradients():
    settings = config.Optim(lr=0.1, schedule="fixed", momentum=0, weight_decay=0, accumulate=2)
    tx = optim.make(settings, PARAMS, steps=100)
    opt_state = tx.init(PARAMS)
    first, opt_state = tx.update(ONES, opt_state, PARAMS)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(first))
    threes = jax.tree.map(lambda x: 3 * x, ONES)
    second, _ = tx.update(threes, opt_state, PARAMS)
    np.testing.assert_allclose(second["head"]["kernel"], -0.2, rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_of_parameters_follows_the_updates(accumulate):
    settings = config.Optim(
        lr=0.1, schedule="fixed", momentum=0, weight_decay=0, ema_decay=0.5, accumulate=accumulate
    )
    params, opt_state = run(settings, updates=2 * accumulate)
    np.testing.assert_allclose(params["head"]["kernel"], 0.8, rtol=1e-6)
    # 0.5 * (0.5 * 1 + 0.5 * 0.9) + 0.5 * 0.8
    averaged = optim.averaged_params(opt_state)
    np.testing.assert_allclose(averaged["head"]["kernel"], 0.875, rtol=1e-6)
    assert optim.averaged_params(run(config.Optim())[1]) is None


@pytest.mark.parametrize(
    "settings, named",
    [
        (config.Optim(freeze=("nothing",)), "optim.freeze: 'nothing'"),
        (config.Optim(lr_multipliers={"fc8": 10.0}), "optim.lr_multipliers: 'fc8'"),
        (config.Optim(no_decay=("beta",)), "optim.no_decay: 'beta'"),
        (config.Optim(schedule="cosine"), "'poly', 'fixed', 'step'"),
        (config.Optim(lr=-1.0), "optim.lr"),
        (config.Optim(momentum=1.0), "optim.momentum"),
        (config.Optim(accumulate=0), "optim.accumulate is 0; it is 1 or more"),
        (config.Optim(schedule="step", step_every=0), "optim.step_every is 0"),
        (config.Optim(warmup=-1), "optim.warmup is -1"),
    ],
)
def test_mistakes_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        optim.make(settings, PARAMS, steps=10)
