import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from segjax import evaluate, metrics


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
    return {"all": metrics.confusion_matrix(label, jnp.asarray(prediction), 3)}, prediction


def test_every_image_counts_once_whatever_the_batch():
    confusions = []
    for size in (1, 2, 3):
        result = evaluate.evaluate(
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


def test_pictures_are_spread_over_the_split():
    result = evaluate.evaluate(step, {}, split(), num_classes=3, pictures=5, every=2)
    assert [row[0] for row in result.rows] == ["image0", "image2"]


def test_table_and_json_name_every_class():
    classes = ("road", "sky", "car")
    result = evaluate.evaluate(step, {}, split(), num_classes=3, boundary=True)
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
