import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax import checkpoint, config, optim, state


def a_state(value=0.0, ema=0.0):
    variables = {
        "params": {"conv1": {"kernel": jnp.full((2, 3), value)}},
        "batch_stats": {"bn1": {"mean": jnp.full(3, value + 1)}},
    }
    tx = optim.make(config.Optim(ema_decay=ema, accumulate=2), variables["params"], steps=10)
    now = state.create(variables, tx)
    updates, opt_state = tx.update(now.params, now.opt_state, now.params)
    params = optax.apply_updates(now.params, updates)
    return now.replace(step=now.step + 5, params=params, opt_state=opt_state)


def save(checkpoints, step, value=0.0, scores=None):
    checkpoints.save(
        step, a_state(value), position={"at": step}, metadata={"classes": ["a"]}, scores=scores
    )


def test_state_position_and_metadata_come_back_bit_for_bit(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 5, value=0.1)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        now, position = checkpoints.restore(5, a_state())
        assert position == {"at": 5}
        assert checkpoints.metadata(5) == {"classes": ["a"]}
    expected = a_state(0.1)
    assert jax.tree.structure(now) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, now, expected)


def test_the_newest_and_the_best_are_kept(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, iou in enumerate([0.1, 0.9, None, 0.3, 0.2, None], start=1):
            save(checkpoints, step, scores=None if iou is None else {"mean_iou": iou})
        checkpoints.wait()
        assert (checkpoints.best(), checkpoints.latest()) == (2, 6)
    with checkpoint.Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]
        assert [checkpoints.find(n) for n in ("best", "latest", "5")] == [2, 6, 5]
        with pytest.raises(ValueError, match="no checkpoint '4'; accepted are best, latest, 2, 5"):
            checkpoints.find("4")


def test_variables_are_the_moving_average_where_there_is_one(tmp_path):
    for name, ema in (("plain", 0.0), ("averaged", 0.5)):
        now = a_state(2.0, ema)
        now = now.replace(params=jax.tree.map(lambda p: p + 1, now.params))
        with checkpoint.Checkpoints(tmp_path / name) as checkpoints:
            checkpoints.save(1, now, position={}, metadata={})
            checkpoints.wait()
            variables = checkpoints.variables(1)
        expected = 2.0 if ema else 3.0
        np.testing.assert_array_equal(variables["params"]["conv1"]["kernel"], expected)
        np.testing.assert_array_equal(variables["batch_stats"]["bn1"]["mean"], 3.0)
        jax.tree.map(np.testing.assert_array_equal, variables["params"], now.eval_params)


def test_an_unfinished_checkpoint_is_not_seen_and_is_cleared_away(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()
    leftover = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-17"
    leftover.mkdir()
    (leftover / "state").write_bytes(b"half")
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        save(checkpoints, 3)  # before it writes, Orbax waits for its clearing away
    assert not leftover.exists()


def test_missing_and_damaged_checkpoints_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint.Checkpoints(tmp_path / "nowhere", read_only=True)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    files = [p for p in (tmp_path / "checkpoints/1/state").rglob("*") if p.is_file()]
    for part in files:
        part.write_bytes(part.read_bytes()[:-9])
    with (
        checkpoint.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="checkpoints/1 cannot be read"),
    ):
        checkpoints.restore(1, a_state())
    files[0].write_bytes(b"")
    for read_only in (False, True):
        with pytest.raises(
            ValueError, match=r"checkpoints/1 is damaged: state/.* is empty; remove"
        ):
            checkpoint.Checkpoints(tmp_path, read_only=read_only)


def test_another_network_is_refused(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()
        other = a_state().replace(params={"conv2": {"kernel": jnp.zeros((4, 4))}})
        with pytest.raises(ValueError, match="holds another network"):
            checkpoints.restore(1, other)
