import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from segjax import config as config_lib
from segjax import crf, metrics, state, steps, training
from segjax.evaluate import scoring
from segjax.evaluate.step import Outcome, Scored, eval_step, out_axes
from segjax.predict.protocols import Protocol
from tests.test_steps import Net


@dataclasses.dataclass
class Batch:
    image: np.ndarray
    label: np.ndarray
    ids: list
    sizes: list


def split(sizes=((6, 8), (5, 8), (6, 7)), batch_size=2, seed=0):
    """Three images on a canvas of 6x8, the last batch filled up with void."""
    rng = np.random.default_rng(seed)
    count = -(-len(sizes) // batch_size) * batch_size
    image = rng.integers(0, 256, (count, 6, 8, 3)).astype(np.uint8)
    label = np.full((count, 6, 8), 255, np.int32)
    names = [""] * count
    for i, (height, width) in enumerate(sizes):
        label[i, :height, :width] = rng.integers(0, 3, (height, width))
        names[i] = f"image{i}"
    sizes = [*sizes, *[(6, 8)] * (count - len(sizes))]
    for i in range(0, count, batch_size):
        part = slice(i, i + batch_size)
        yield Batch(image[part][None], label[part][None], names[part], sizes[part])


def step(_, batch):
    """A network that looks at the red channel."""
    prediction = batch["image"][..., 0].astype(np.int32) // 86
    label = jnp.asarray(batch["label"])
    counts = {"all": metrics.confusion_matrix(label, jnp.asarray(prediction), 3)}
    loss = np.array([0.5, 1.0]) * (np.asarray(label) < 3).sum()
    return Outcome(Scored(counts, loss, prediction))


def test_every_image_counts_once_whatever_the_batch():
    confusions = []
    for size in (1, 2, 3):
        result = scoring.evaluate(
            step, {}, split(batch_size=size), num_classes=3, boundary=True, pictures=9
        )
        assert result.images == 3
        assert result.scores.confusion.sum() == 6 * 8 + 5 * 8 + 6 * 7
        assert [row[0] for row in result.rows] == ["image0", "image1", "image2"]
        assert [row[1].shape for row in result.rows] == [(6, 8, 3), (5, 8, 3), (6, 7, 3)]
        expected_f1 = np.mean([metrics.boundary_f1(r[2], r[3], 3)[0] for r in result.rows])
        assert result.boundary_f1 == pytest.approx(expected_f1)
        confusions.append(result.scores.confusion)
    # The generator draws images in another order for another batch size, but not for these two.
    np.testing.assert_array_equal(confusions[0], confusions[2])


def test_no_image_is_both_the_worst_and_the_best():
    kinds = lambda sizes: [
        (e.kind, e.id)
        for e in scoring.evaluate(step, {}, split(sizes), num_classes=3, pictures=8).examples
        if e.kind != "random"
    ]
    assert kinds([(6, 8)]) == []  # one image is neither
    three = kinds([(6, 8)] * 3)
    assert [kind for kind, _ in three] == ["worst", "best"]
    assert len({name for _, name in three}) == 2
    # All are as good: every score is the same.
    constant = lambda _, batch: step(_, {**batch, "image": 0 * batch["image"]})
    batches = [dataclasses.replace(b, label=np.zeros_like(b.label)) for b in split([(6, 8)] * 4)]
    result = scoring.evaluate(constant, {}, batches, num_classes=3, pictures=8)
    ranked = [e.id for e in result.examples if e.kind != "random"]
    assert sorted(ranked) == [f"image{i}" for i in range(4)]


def test_only_the_batch_goes_to_the_devices(tmp_path):
    """The parameters are placed once, and not copied to every device with every batch."""
    config = config_lib.Config(
        model=Net(num_classes=7),
        data=config_lib.Data(cache=str(tmp_path), options="train=1,val=9,height=16,width=20"),
    )
    config.eval.batch_size = jax.device_count()
    config, prepared = training.prepare(config, ["train", "val"])
    variables = state.init_variables(config.model, jax.random.key(1), (16, 20))
    evaluate = scoring.evaluator(config, prepared)
    first = evaluate(variables, "val")  # compiles
    with jax.transfer_guard("disallow"), jax.transfer_guard_device_to_host("allow"):
        second = evaluate(jax.device_get(variables), "val")
    assert first.summary() == second.summary()


def test_names_of_classes_are_no_markup():
    result = scoring.evaluate(step, {}, split(), num_classes=3)
    screen = rich.console.Console(file=io.StringIO(), width=100)
    screen.print(result.table(("[unlabelled]", "[/bold]", "a\\"), "runs/[old], step 3"))
    text = screen.file.getvalue()
    assert all(name in text for name in ("[unlabelled]", "[/bold]", "a\\", "runs/[old], step 3"))


def test_pictures_are_spread_over_the_split():
    result = scoring.evaluate(step, {}, split(), num_classes=3, pictures=5, every=2)
    assert [row[0] for row in result.rows] == ["image0", "image2"]


def test_table_and_json_name_every_class():
    classes = ("road", "sky", "car")
    result = scoring.evaluate(step, {}, split(), num_classes=3, boundary=True)
    values = result.to_dict(classes)
    assert values["images"] == 3 and list(values["per_class"]) == list(classes)
    assert values["mean_iou"] == pytest.approx(
        np.mean([c["iou"] for c in values["per_class"].values()])
    )
    screen = rich.console.Console(file=io.StringIO(), width=100)
    screen.print(result.table(classes, "a title"))
    text = screen.file.getvalue()
    assert all(word in text for word in ("a title", "road", "boundary F1", "mean"))
    assert f"{100 * result.scores.mean_iou:.2f}" in text


def test_network_and_crf_score_the_same_on_any_devices_and_batches():
    """Five images of different sizes: all numbers, the changes and the trimap's too."""
    config = config_lib.Config(model=Net())
    config.eval.trimap_widths = (1, 3)
    variables = state.init_variables(config.model, jax.random.key(1), (16, 20))
    rng = np.random.default_rng(0)
    sizes = [(16, 20), (12, 20), (16, 15), (16, 20), (9, 11)]
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    labels = [np.where(image[..., 1] < 40, 255, image[..., 0] // 86) for image in images]

    def batches(devices, size):
        for start in range(0, len(images), size):
            image = np.full((size, 16, 20, 3), 124, np.uint8)
            label = np.full((size, 16, 20), 255, np.int32)
            for i, (height, width) in enumerate(sizes[start : start + size]):
                image[i, :height, :width] = images[start + i]
                label[i, :height, :width] = labels[start + i]
            own = sizes[start : start + size]
            split = lambda x: x.reshape(devices, -1, *x.shape[1:])
            missing = size - len(own)
            ids = [f"image{start + i}" for i in range(len(own))] + [""] * missing
            found = np.int32([*own, *[(0, 0)] * missing])
            yield Batch(split(image), split(label), ids, found)

    found = []
    for devices, size in ((1, 1), (2, 4)):
        step = steps.parallel(
            eval_step,
            in_axes=(None, 0),
            out_axes=out_axes(refined=True),
            devices=jax.devices()[:devices],
            config=config,
            protocol=Protocol(flip=True),
            kernels=(crf.Spatial(1.5, 4.0),),
        )
        found.append(
            scoring.evaluate(
                step, variables, batches(devices, size), num_classes=3, boundary=True, pictures=5
            )
        )
    one, four = (result.to_dict("abc") for result in found)
    for version in (one, one["crf"]):
        loss = (four if version is one else four["crf"])["val_loss"]
        assert version["val_loss"] == pytest.approx(loss, rel=1e-5)  # sums in another order
        version["val_loss"] = loss
    assert one == four
    assert one["val_loss"] > 0
    assert one["images"] == 5 and np.sum(one["confusion"]) == sum((x < 3).sum() for x in labels)
    assert np.sum(one["crf"]["confusion"]) == np.sum(one["confusion"])
    change = one["crf"]["mean_iou"] - one["mean_iou"]
    assert change != 0 and one["crf"]["mean_iou_change"] == pytest.approx(change)
    assert found[0].summary()["crf_trimap_3_mean_iou"] == one["crf"]["trimap_3_mean_iou"]
    rows = found[0].trimap_csv().splitlines()
    assert rows[0] == "width,mean_iou,crf_mean_iou" and len(rows) == 3
    assert float(rows[2].split(",")[2]) == one["crf"]["trimap_3_mean_iou"]
    columns = found[0].to_csv("abc").splitlines()[0].split(",")
    assert columns[-1] == "crf_iou_change" and "crf_boundary_f1" in columns
    for a, b in zip(found[0].examples, found[1].examples, strict=True):
        for x, y in zip(a.predictions, b.predictions, strict=True):
            np.testing.assert_array_equal(x, y)
