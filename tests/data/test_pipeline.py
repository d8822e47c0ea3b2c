"""Batches: every image as often as it should, in an order that can be picked up anywhere."""

import collections
import dataclasses
import gc
import json
import math
import multiprocessing
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from segjax import rows
from segjax.config import Data
from segjax.data import datasets, pipeline
from segjax.data.images import DataError
from tests.data.files import blocks, folder, jpeg, picture, write

FILL = (123.675, 116.28, 103.53)
SIZES = [(24, 32), (17, 40), (30, 9), (1, 1), (24, 33)]  # of ten pairs, by turns


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten images of five sizes; nine to train on and one to validate."""
    root = tmp_path_factory.mktemp("pipeline")
    for i in range(10):
        height, width = SIZES[i % 5]
        write(root / f"images/{i:03d}.jpg", jpeg(picture(height, width, seed=i)))
        write(root / f"masks/{i:03d}.png", blocks(height, width, ids=(0, 1, 2)[: height // 8 + 1]))
    write(root / "classes.txt", b"a\nb\nc\n")
    write(root / "all10.txt", "\n".join(f"{i:03d}" for i in range(10)).encode())
    write(root / "train.txt", "\n".join(f"{i:03d}" for i in range(9)).encode())
    return Data(
        name="folder", dir=str(root), cache=str(root / "cache"), val_split="all10", prefetch=1
    )


@pytest.fixture(scope="module")
def prepared(data):
    return datasets.prepare(data, show=False)


def train(prepared, data, *, batch_size=4, devices=1, seed=0):
    return pipeline.train_batches(
        prepared,
        data,
        batch_size=batch_size,
        mesh=rows.mesh(jax.local_devices()[:devices]),
        seed=seed,
        fill=FILL,
    )


def evaluate(prepared, data, *, batch_size, devices=1):
    return pipeline.eval_batches(
        prepared,
        data,
        "all10",
        batch_size=batch_size,
        mesh=rows.mesh(jax.local_devices()[:devices]),
        fill=FILL,
    )


def same(a, b):
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.label, b.label)
    np.testing.assert_array_equal(a.sizes, b.sizes)
    assert a.ids == b.ids


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_batch_lies_on_the_devices(prepared, data, devices):
    with train(prepared, data, batch_size=4, devices=devices) as batches:
        batch = next(batches)
    assert batch.image.shape == (devices, 4 // devices, 30, 40, 3)
    assert batch.label.shape == (devices, 4 // devices, 30, 40)
    assert (batch.image.dtype, batch.label.dtype) == (np.uint8, np.uint8)
    assert [shard.device for shard in batch.image.addressable_shards] == jax.local_devices()[
        :devices
    ]
    assert len(batch.ids) == len(batch.sizes) == 4
    total = jax.pmap(lambda x: jax.lax.psum(x.sum(), "batch"), axis_name="batch")(batch.label)
    assert total[0] == np.asarray(batch.label).sum()


def test_images_come_padded_right_and_below(prepared, data):
    with evaluate(prepared, data, batch_size=10) as batches:
        batch = next(batches)
    assert batch.ids == [f"{i:03d}" for i in range(10)]
    for i in range(10):
        height, width = SIZES[i % 5]
        assert tuple(batch.sizes[i]) == (height, width)
        image, label = np.asarray(batch.image[0, i]), np.asarray(batch.label[0, i])
        expected = pipeline.images.read_image(jpeg(picture(height, width, seed=i)))
        np.testing.assert_array_equal(image[:height, :width], expected)
        outside = np.ones(label.shape, bool)
        outside[:height, :width] = False
        assert (label[outside] == 255).all() and (label[~outside] < 3).all()
        assert (image[outside] == (124, 116, 104)).all()


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_every_epoch_holds_every_image_once_and_differs(prepared, data, batch_size):
    """Nine images, 36 of them in batches: four epochs, and nothing is dropped."""
    with train(prepared, data, batch_size=batch_size) as batches:
        ids = [i for _ in range(36 // batch_size) for i in next(batches).ids]
    epochs = [ids[start : start + 9] for start in range(0, 36, 9)]
    assert all(sorted(epoch) == [f"{i:03d}" for i in range(9)] for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_the_seed_decides_the_order(prepared, data):
    orders = []
    for seed in (0, 0, 1):
        with train(prepared, data, seed=seed) as batches:
            orders.append([i for _ in range(5) for i in next(batches).ids])
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("position", [0, 1, 5])
def test_it_resumes_behind_the_last_batch_handed_out(prepared, data, position, threads):
    data = dataclasses.replace(data, prefetch=3, threads=threads)
    with train(prepared, data) as batches:
        for _ in range(position):
            next(batches)
        time.sleep(0.05)  # batches that are only ready do not count
        state = json.loads(json.dumps(batches.get_state()))
        expected = [next(batches) for _ in range(4)]
        batches.set_state(state)  # back, in the same object
        same(next(batches), expected[0])
    with train(prepared, data) as fresh:
        fresh.set_state(state)
        for batch in expected:
            same(next(fresh), batch)
        assert fresh.get_state() == {"images": 4 * (position + 4), "damaged": []}


def test_worker_processes_give_the_same_batches(prepared, data):
    with train(prepared, data) as batches:
        expected = [next(batches) for _ in range(6)]
    with train(prepared, dataclasses.replace(data, workers=2)) as batches:
        for batch in expected[:2]:  # one of each worker, so both have begun
            same(next(batches), batch)
        workers = multiprocessing.active_children()
        for worker in workers:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # as to a whole group
                os.kill(worker.pid, number)
        for batch in expected[2:]:
            same(next(batches), batch)
        assert len(workers) == 2 and all(worker.is_alive() for worker in workers)


def as_process(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


def test_processes_share_the_global_batch(prepared, data, monkeypatch):
    with train(prepared, data, batch_size=6) as batches:
        whole = [next(batches).ids for _ in range(5)]
    parts = []
    for index in range(3):
        as_process(monkeypatch, index, 3)
        with train(prepared, data, batch_size=6) as batches:
            parts.append([next(batches).ids for _ in range(5)])
            assert batches.get_state() == {"images": 30, "damaged": []}
    for step in range(5):
        assert [i for part in parts for i in part[step]] == whole[step]  # each in its place


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
@pytest.mark.parametrize(("devices", "processes"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 2)])
def test_evaluation_counts_every_image_once(
    prepared, data, monkeypatch, batch_size, devices, processes
):
    ids, pixels, steps = [], collections.Counter(), set()
    for index in range(processes):
        as_process(monkeypatch, index, processes)
        batches = list(evaluate(prepared, data, batch_size=batch_size, devices=devices))
        steps.add(len(batches))
        for batch in batches:
            label = np.asarray(batch.label).reshape(-1, 30, 40)
            for name, size, one in zip(batch.ids, batch.sizes, label):
                if name:
                    ids.append(name)
                else:
                    assert tuple(size) == (0, 0) and (one == 255).all()
            pixels.update(label[label != 255].tolist())
    assert sorted(ids) == [f"{i:03d}" for i in range(10)]
    everywhere = devices * processes
    assert steps == {math.ceil(10 / (math.ceil(batch_size / everywhere) * everywhere))}
    assert sum(pixels.values()) == 2 * sum(height * width for height, width in SIZES)


def test_limits_spread_over_the_split(prepared, data):
    few = dataclasses.replace(data, num_train=3, num_val=5)
    with train(prepared, few, batch_size=3) as batches:
        assert sorted(next(batches).ids) == sorted(next(batches).ids) == ["000", "003", "006"]
    ids = [i for batch in evaluate(prepared, few, batch_size=5) for i in batch.ids]
    assert ids == ["000", "002", "004", "006", "008"]


def test_a_larger_canvas_is_padded(prepared, data):
    wide = dataclasses.replace(data, canvas=(32, 64))
    with train(prepared, wide) as batches:
        batch = next(batches)
    assert batch.image.shape == (1, 4, 32, 64, 3)
    assert (np.asarray(batch.label)[:, :, 30:] == 255).all()


@pytest.mark.parametrize(
    ("change", "batch_size", "message"),
    [
        ({"canvas": (20, 40)}, 4, r'too small for 002.*go up to 30x40.*data.canvas="\(30,40\)"'),
        ({"canvas": (30, 39)}, 4, "too small for 001"),
        ({"num_train": 99}, 4, "data.num_train=99, but the split has 9 images"),
        ({"num_train": -1}, 4, "data.num_train=-1"),
        ({"prefetch": 0}, 4, "data.prefetch=0"),
        ({"threads": 0}, 4, "data.threads=0"),
        ({}, 3, r"batch_size=3 cannot be divided among 2 devices.*batch_size=4"),
        ({}, 0, r"batch_size=0"),
    ],
)
def test_mistakes_are_told_before_anything_runs(prepared, data, change, batch_size, message):
    with pytest.raises(ValueError, match=message):
        train(prepared, dataclasses.replace(data, **change), batch_size=batch_size, devices=2)


def test_an_empty_evaluation_batch_is_refused(prepared, data):
    with pytest.raises(ValueError, match=r"eval.batch_size=0"):
        evaluate(prepared, data, batch_size=0)


def loaders():
    return [t for t in threading.enumerate() if t.name == "segjax-prefetch"]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_loader_reach_the_consumer(prepared, data, workers):
    class Broken:
        def __len__(self):
            return 9

        def __getitem__(self, index):
            return {"image": b"\xff\xd8\xff", "label": b"", "id": b"the_name"}

    broken = dataclasses.replace(prepared)
    object.__setattr__(broken, "source", lambda split: Broken())
    batches = train(broken, dataclasses.replace(data, workers=workers))
    for _ in range(2):  # again: it does not hang after the first
        with pytest.raises(
            Exception, match=r"record the_name cannot be decoded.*delete .*train"
        ) as e:
            next(batches)
        assert workers or e.type is DataError
    assert not loaders()


def test_the_next_record_stands_in_for_a_damaged_one(data, tmp_path, capsys):
    data = dataclasses.replace(data, cache=str(tmp_path))
    prepared = datasets.prepare(data, show=False)
    [file] = [p for p in prepared.folders["train"].iterdir() if "array_record" in p.name]
    records = bytearray(file.read_bytes())
    records[records.index(b"\xff\xd8\xff") + 200] ^= 255  # in image 000
    file.write_bytes(records)
    with train(prepared, data, batch_size=9) as strict, pytest.raises(Exception, match=r"\(000\)"):
        next(strict)  # an epoch
    allowing = dataclasses.replace(data, max_decode_errors=1)
    with train(prepared, allowing) as batches:
        before, position, *after = (
            next(batches),
            batches.get_state(),
            *(next(batches), next(batches)),
        )
    names = [name for batch in (before, *after) for name in batch.ids]
    assert len(names) == 12 and "000" not in names and names[:9].count("001") == 2
    assert "left out, the next record stands in: record 0 (000)" in capsys.readouterr().err
    with train(prepared, allowing) as again:
        again.set_state(position)
        for expected in after:
            same(next(again), expected)


def test_more_damaged_records_than_allowed_end_the_run(prepared, data):
    class Broken:
        def __len__(self):
            return 9

        def __getitem__(self, index):
            record = prepared.source("train")[index]
            return record | {"image": b""} if index in (2, 6) else record

    broken = dataclasses.replace(prepared)
    object.__setattr__(broken, "source", lambda split: Broken())
    allowing = dataclasses.replace(data, max_decode_errors=1)
    told = r"record 00[26] is empty.*one damaged record more than .*errors, 1"
    with train(broken, allowing, batch_size=1) as batches, pytest.raises(DataError, match=told):
        for _ in range(9):
            next(batches)
            if batches.get_state()["damaged"]:
                position = json.loads(json.dumps(batches.get_state()))
    with train(broken, allowing, batch_size=1) as again, pytest.raises(DataError, match=told):
        again.set_state(position)  # a run that goes on counts the one of before
        for _ in range(9 - position["images"]):
            next(again)


def test_of_several_processes_each_counts_its_own_damaged_records(prepared, data, monkeypatch):
    as_process(monkeypatch, 1, 2)
    with train(prepared, data) as batches:
        batches.set_state({"images": 8, "damaged": [3]})  # the first process met it
        assert batches.get_state() == {"images": 8, "damaged": []}


def test_damaged_neighbours_are_all_named_with_the_limit(prepared):
    def load(*broken, spare):
        source = [prepared.source("train")[i] for i in range(9)]
        for i in broken:
            source[i] = source[i] | {"image": b""}
        pipeline.load([3], source=source, canvas=(30, 40), fill=(0, 0, 0), where="x", spare=spare)

    load(3, spare=1)
    with pytest.raises(DataError, match=r"(?s)record 003 .*record 004 .*are 2 .*errors, 1, allows"):
        load(3, 4, spare=1)
    with pytest.raises(DataError, match=r"(?s)record 003 (?!.*record 004)(?!.*errors)"):
        load(3, 4, spare=0)


def test_no_thread_survives(prepared, data):
    before = threading.active_count()
    batches = train(prepared, data)
    assert not loaders()  # nothing starts before the first batch is wanted
    next(batches)
    assert len(loaders()) == 1
    batches.close()
    assert not loaders()
    next(batches)  # a closed one goes on where it was
    assert batches.get_state() == {"images": 8, "damaged": []}
    del batches  # nobody closes this one
    gc.collect()
    deadline = time.monotonic() + 10
    while loaders() or threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    list(evaluate(prepared, data, batch_size=4))
    assert not loaders()


def test_an_exhausted_evaluation_stays_so(prepared, data):
    batches = evaluate(prepared, data, batch_size=10)
    next(batches)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(batches)


def test_wait_counts_the_seconds_without_a_batch(prepared, data, monkeypatch):
    load = pipeline.load

    def slow(records, **kwargs):
        time.sleep(0.2)
        return load(records, **kwargs)

    monkeypatch.setattr(pipeline, "load", slow)
    with train(prepared, dataclasses.replace(data, threads=1)) as batches:
        assert batches.wait == 0
        for _ in range(3):
            next(batches)
        assert 0.5 < batches.wait < 5
    monkeypatch.setattr(pipeline, "load", load)
    with train(prepared, data) as batches:
        next(batches)
        first = batches.wait
        for _ in range(3):
            time.sleep(0.2)  # a long step: the batch is ready when it ends
            next(batches)
        assert batches.wait - first < 0.2


def test_batches_are_ready_ahead(prepared, data):
    with train(prepared, dataclasses.replace(data, prefetch=3)) as batches:
        next(batches)
        deadline = time.monotonic() + 10
        while batches._ready.qsize() < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_default_data_set_flows(tmp_path):
    data = Data(cache=str(tmp_path), options="train=8,val=4,height=24,width=32")
    prepared = datasets.prepare(data, show=False)
    with train(prepared, data, batch_size=8, devices=4) as batches:
        batch = next(batches)
    assert batch.image.shape == (4, 2, 24, 32, 3)
    assert sorted(batch.ids) == [f"train_{i:04d}" for i in range(8)]


def test_a_small_folder_needs_no_classes_file(tmp_path):
    data = Data(name="folder", dir=str(folder(tmp_path / "raw")), cache=str(tmp_path / "cache"))
    prepared = datasets.prepare(data, show=False)
    with train(prepared, data, batch_size=2) as batches:
        assert np.asarray(next(batches).label).max() == 2
