import os
import shutil
import threading
import types

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
    checkpoints.save(step, a_state(value), position={"at": step}, metadata={"classes": ["a"]})
    if scores:
        checkpoints.score(step, scores)
    checkpoints.wait()


def flip(path):
    """Flips a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


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


@pytest.mark.parametrize(
    "fields", [{"momentum": 0.0}, {"ema_decay": 0.9}, {"accumulate": 1}, {"freeze": ("conv1",)}]
)
def test_another_optimiser_is_no_damage(tmp_path, fields):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        other = a_state().params
        tx = optim.make(config.Optim(**{"accumulate": 2} | fields), other, steps=10)
        now = state.create({"params": other, "batch_stats": a_state().batch_stats}, tx)
        with pytest.raises(checkpoint.AnotherStateError, match=r"other parts, .*optim: opt_state/"):
            checkpoints.restore(1, now)
        assert all(path.startswith("opt_state/") for path in checkpoints.differing(1, now))
        assert checkpoints.differing(1, a_state()) == {}


def test_another_network_is_no_damage(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        params = {"conv2": {"kernel": jnp.zeros((4, 4))}}
        with pytest.raises(checkpoint.AnotherStateError, match="params/conv1/kernel is"):
            checkpoints.restore(1, a_state().replace(params=params))
        opt_state = a_state().opt_state
        more = (*opt_state.inner_opt_state, optax.EmptyState())  # has no arrays
        with pytest.raises(checkpoint.AnotherStateError, match="holds a state with other parts: "):
            checkpoints.restore(
                1, a_state().replace(opt_state=opt_state._replace(inner_opt_state=more))
            )


def test_the_newest_and_the_best_are_kept(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, iou in enumerate([0.1, 0.9, None, float("nan"), 0.2, None], start=1):
            save(checkpoints, step, scores=None if iou is None else {"mean_iou": iou})
        checkpoints.wait()
        assert (checkpoints.best(), checkpoints.latest()) == (2, 6)
    with checkpoint.Checkpoints(tmp_path, read_only=True) as checkpoints:
        folders = sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir())
        assert folders == ["2", "5", "6"]
        assert [checkpoints.find(n) for n in ("best", "latest", "5")] == [2, 6, 5]
        with pytest.raises(ValueError, match="no checkpoint '4'; accepted are best, latest, 2, 5"):
            checkpoints.find("4")
    for damaged in ("\0", '{"2": {"mean_iou": null}}', '{"2": "a"}', '{"2": [1]}', '{"2": 7}'):
        (tmp_path / "checkpoints/scores.json").write_text(damaged)
        with checkpoint.Checkpoints(tmp_path, read_only=True) as checkpoints:
            assert checkpoints.best() == 6


def test_the_score_of_network_and_crf_counts_where_the_two_were_trained(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, scores={"mean_iou": 0.9, "crf_mean_iou": 0.1})
        save(checkpoints, 2, scores={"mean_iou": 0.1, "crf_mean_iou": 0.9})
        assert checkpoints.best() == 2


def test_what_is_not_finite_is_not_saved(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        with pytest.raises(FloatingPointError, match=r"bn1/mean is not finite after step 2"):
            save(checkpoints, 2, value=float("nan"))
        assert checkpoints.steps() == [1]


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


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint.Checkpoints(tmp_path / "nowhere", read_only=True)


def arrays(folder):
    """The files that hold arrays, the largest first."""
    files = [p for p in (folder / "state").rglob("d/*") if p.is_file()]
    return sorted(files, key=lambda p: -p.stat().st_size)


DAMAGES = {
    "cut": lambda folder: [p.write_bytes(p.read_bytes()[:-9]) for p in arrays(folder)],
    "flipped": lambda folder: flip(arrays(folder)[0]),
    "emptied": lambda folder: arrays(folder)[0].write_bytes(b""),
    "zeroed": lambda folder: arrays(folder)[0].write_bytes(bytes(arrays(folder)[0].stat().st_size)),
    "deleted": lambda folder: arrays(folder)[0].unlink(),
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no metadata": lambda folder: shutil.rmtree(folder / "metadata"),
    "no position": lambda folder: shutil.rmtree(folder / "position"),
    "nothing": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(tmp_path, damage):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, value=0.1)
    DAMAGES[damage](tmp_path / "checkpoints/1")
    named = pytest.raises(checkpoint.DamagedError, match=r"checkpoint .*checkpoints/1 is damaged: ")
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        with named:
            checkpoints.restore(1, a_state())
        with named:
            checkpoints.variables(1)


def test_a_checkpoint_of_an_older_version_is_read_with_a_warning(tmp_path, capsys):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, value=0.1)
    (tmp_path / "checkpoints/1/checksums.json").unlink()
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        found, _ = checkpoints.restore(1, a_state())
        checkpoints.metadata(1)
    jax.tree.map(np.testing.assert_array_equal, found, a_state(0.1))
    assert capsys.readouterr().err.count("checkpoints/1 has no checksums.json") == 1


def test_any_flipped_bit_is_found(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, value=0.1)
        checkpoints.wait()
    file = arrays(tmp_path / "checkpoints/1")[0]
    whole = file.read_bytes()
    for place in range(0, len(whole), max(len(whole) // 8, 1)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = pytest.raises(checkpoint.DamagedError, match="is not the file that was written")
        with checkpoint.Checkpoints(tmp_path, read_only=True) as checkpoints, found:
            checkpoints.variables(1)


def test_a_damaged_checkpoint_is_set_aside_and_its_step_saved_again(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            save(checkpoints, step, value=step, scores={"mean_iou": step / 10})
    flip(arrays(tmp_path / "checkpoints/2")[0])
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.set_aside(2) == tmp_path / "checkpoints/2.damaged"
        assert (checkpoints.steps(), checkpoints.best()) == ([1], 1)
        assert list(checkpoints.scores()) == [1], "the score is that of another state"
        save(checkpoints, 2, value=2)
    with checkpoint.Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.variables(2)["params"]["conv1"]["kernel"][0, 0] > 1


def test_another_process_waits_until_a_damaged_checkpoint_is_set_aside(tmp_path, monkeypatch):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step)
        monkeypatch.setattr(jax, "process_index", lambda *_: 1)
        folder = tmp_path / "checkpoints"
        first = threading.Timer(0.3, (folder / "3").rename, [folder / "3.damaged"])
        first.start()
        checkpoints.set_aside(3)
        assert checkpoints.steps() == [1, 2], "it would not save step 3 again with the others"
        first.join()
        monkeypatch.setattr(checkpoint, "ASIDE", 0.2)
        with pytest.raises(ValueError, match="2 is damaged on this process alone"):
            checkpoints.set_aside(2)
        monkeypatch.undo()


def disk(monkeypatch, **changes):
    """Makes the disk tell other numbers."""
    real = os.statvfs
    names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree")

    def statvfs(path):
        found = {name: getattr(real(path), name) for name in (*names, "f_favail")}
        return types.SimpleNamespace(**(found | changes))

    monkeypatch.setattr("os.statvfs", statvfs)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"f_bavail": 0}, r"takes up to 0 MB, 0 are free"),
        ({"f_files": 100, "f_favail": 3}, r"is 40 files, of which 3 are free"),
    ],
)
def test_a_full_disk_is_one_error_and_costs_no_checkpoint(tmp_path, monkeypatch, changes, named):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, value=0.1)
        with monkeypatch.context() as patch:
            disk(patch, **changes)
            full = rf"cannot be written: a checkpoint {named}; the last good checkpoint is 1$"
            with pytest.raises(ValueError, match=full):
                save(checkpoints, 2)
        save(checkpoints, 3)
        assert checkpoints.steps() == [1, 3]
