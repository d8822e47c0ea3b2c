"""COCO's annotations as masks: overlaps, crowds, run lengths, and damage."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from segjax import config
from segjax.data import coco, datasets
from segjax.data.builders.folder import Folder
from segjax.data.images import DataError, read_mask
from tests.data.files import jpeg, picture, write

SIZE = (24, 32)


def box(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotation(category, segmentation, **more):
    return {"image_id": 7, "category_id": category, "segmentation": segmentation, **more}


def values(*annotations, **more):
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 30, "name": "car"}, {"id": 4, "name": "road"}],
        "annotations": [{"id": i, **a} for i, a in enumerate(annotations)],
        **more,
    }


def draw(tmp_path, *annotations, **more):
    write(tmp_path / "images/a.jpg", jpeg(picture()))
    write(tmp_path / "annotations.json", json.dumps(values(*annotations, **more)).encode())
    builder = Folder(str(tmp_path), "train")
    [example] = builder.summarize()
    return builder, read_mask(example.label)


def test_categories_follow_the_background_by_id(tmp_path):
    builder, label = draw(
        tmp_path, annotation(30, box(2, 3, 10, 8)), annotation(4, box(20, 3, 5, 5))
    )
    assert builder.describe([])[0] == ("background", "road", "car")
    expected = np.zeros(SIZE, np.uint8)
    expected[3:11, 2:12], expected[3:8, 20:25] = 2, 1
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("order", [1, -1])
def test_the_smaller_lies_on_top_and_of_equal_ones_the_later(tmp_path, order):
    large, small = annotation(4, box(2, 2, 20, 20)), annotation(30, box(4, 4, 5, 5))
    _, label = draw(tmp_path, *[large, small][::order])
    assert label[6, 6] == 2 and label[15, 15] == 1 and label[0, 0] == 0
    same = [annotation(4, box(2, 2, 9, 9)), annotation(30, box(2, 2, 9, 9))][::order]
    assert draw(tmp_path, *same)[1][5, 5] == {1: 2, -1: 1}[order]


def test_crowds_are_ignored_below_all_others(tmp_path):
    crowd = annotation(4, box(2, 2, 4, 4), iscrowd=1)
    _, label = draw(tmp_path, annotation(30, box(0, 0, 5, 20)), crowd)
    assert label[3, 3] == 2 and label[3, 5] == 255


def test_run_lengths_are_those_of_pycocotools(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = (cv2.blur(rng.random(SIZE), (5, 5)) > rng.uniform(0.4, 0.6)).astype(np.uint8)
        packed = rle.encode(np.asfortranarray(mask))
        flat = mask.T.ravel()
        ends = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *ends, flat.size]).tolist()
        runs = [0, *runs] if flat[0] else runs
        for counts in (packed["counts"].decode(), runs):
            _, label = draw(tmp_path, annotation(4, {"size": list(SIZE), "counts": counts}))
            np.testing.assert_array_equal(label, mask)


def test_polygons_of_several_parts(tmp_path):
    parts = [*box(0, 0, 4, 4), *box(20, 10, 4, 4)]
    expected = np.zeros(SIZE, np.uint8)
    expected[:4, :4] = expected[10:14, 20:24] = 1
    np.testing.assert_array_equal(draw(tmp_path, annotation(4, parts))[1], expected)


def test_names_of_what_is_no_class(tmp_path):
    more = {"categories": [{"id": 1, "name": "Background"}, {"id": 2, "name": "void"}]}
    more["categories"].append({"id": 3, "name": "car"})
    every = [annotation(1, box(0, 0, 5, 5)), annotation(2, box(8, 0, 5, 5))]
    builder, label = draw(tmp_path, *every, annotation(3, box(16, 0, 5, 5)), **more)
    assert builder.describe([])[0] == ("background", "car")
    assert (label[2, 2], label[2, 10], label[2, 18]) == (0, 255, 1)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "polygon needs three corners or more"),
        ([[1, 2, 3, 4, 5]], "polygon needs three corners"),
        ([[1, 2, 3, 4, 1e300, 1]], "polygon lies far outside"),
        ({"size": [3, 3], "counts": [9]}, r"size \[3, 3\] is not that of the image"),
        ({"size": list(SIZE), "counts": [9]}, "run lengths do not add up"),
        ({"size": list(SIZE), "counts": "abc"}, "run lengths"),
        ({"size": list(SIZE), "counts": "\x01"}, "run lengths are damaged"),
        ({"size": list(SIZE)}, "counts"),
    ],
)
def test_damaged_annotations_are_named(tmp_path, segmentation, message):
    with pytest.raises(
        DataError, match=rf"annotations.json has the annotation 0 of a.jpg.*{message}"
    ):
        draw(tmp_path, annotation(4, segmentation))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"images": 3}, "'images' is no list of dictionaries"),
        ({"categories": [{"id": 4}]}, "lacks a part of COCO's annotations: 'name'"),
        ({"categories": [{"id": 4, "name": "a"}, {"id": 4, "name": "b"}]}, "category 4 'b' twice"),
        ({"categories": [{"id": float("inf"), "name": "a"}]}, "lacks a part of COCO's"),
        ({"categories": [{"id": 4, "name": "\ud800"}]}, "lacks a part of COCO's"),
        ({"images": [{"id": {}, "file_name": "a.jpg"}]}, "lacks a part of COCO's"),
        (
            {"images": [{"id": 7, "file_name": "../b.jpg"}]},
            r"names the image '\.\./b\.jpg', which is no path below",
        ),
        (
            {"images": [{"id": 7, "file_name": "a.jpg", "height": True, "width": 32}]},
            "gives the image a.jpg the height True",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, more, message):
    with pytest.raises(DataError, match=f"annotations.json.*{message}"):
        draw(tmp_path, annotation(4, box(0, 0, 5, 5)), **more)


def test_a_category_that_is_no_number_is_named(tmp_path):
    with pytest.raises(DataError, match=r"whose category \[4\] is none of its categories"):
        draw(tmp_path, annotation([4], box(0, 0, 5, 5)))


def test_another_json_is_no_annotations(tmp_path):
    file = write(tmp_path / "a.json", b'{"version": "5.0"}')
    assert coco.read(file) is None


@pytest.mark.parametrize(
    ("file", "pictures"),
    [
        ("annotations.json", "images"),
        ("annotations/instances_default.json", "images"),  # CVAT
        ("annotations/instances_{split}2017.json", "{split}2017"),  # COCO itself
        ("{split}/_annotations.coco.json", "{split}"),  # Roboflow
    ],
)
def test_where_annotations_lie(tmp_path, file, pictures):
    for split, offset in (("train", 0), ("val", 10)):
        images = []
        for i in range(offset, offset + 10):
            write(tmp_path / pictures.format(split=split) / f"{i}.jpg", jpeg(picture(seed=i)))
            images.append({"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]})
        both = (
            images
            if "{split}" in file
            else images * (split == "val")
            + [
                {"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]}
                for i in range(10 * (split == "val"))
            ]
        )
        drawn = [
            {"image_id": m["id"], "category_id": 4, "segmentation": box(2, 2, 9, 9)} for m in both
        ]
        content = json.dumps(values(images=both) | {"annotations": drawn}).encode()
        write(tmp_path / file.format(split=split), content)
    write(tmp_path / pictures.format(split="train") / "extra.jpg", jpeg(picture()))
    assert datasets.recognise(tmp_path) == "folder"
    found = datasets.check(config.Data(name="folder", dir=str(tmp_path)))
    assert [s.num_images for s in found.summaries.values()] == [10, 10] if "{" in file else [18, 2]
    assert found.dataset.classes == ("background", "road", "car")
    assert any("images are not in" in line and "extra" in line for line in found.skipped)


def two_splits(root, train, val):
    """Splits whose files have categories of their own; each picture shows the last one."""
    for split, names in (("train", train), ("val", val)):
        name = f"{split}.jpg"
        write(root / f"{split}2017" / name, jpeg(picture()))
        found = values(
            annotation(len(names), box(2, 3, 10, 8)),
            images=[{"id": 7, "file_name": name, "height": SIZE[0], "width": SIZE[1]}],
            categories=[{"id": i, "name": n} for i, n in enumerate(names, 1)],
        )
        write(root / f"annotations/instances_{split}2017.json", json.dumps(found).encode())
    return config.Data(name="folder", dir=str(root), cache=str(root / "cache"))


@pytest.mark.parametrize("splits", [(), ("val",)])
def test_the_training_split_numbers_the_classes_of_all(tmp_path, splits):
    data = two_splits(tmp_path, ["car", "person", "tree"], ["car", "tree"])
    for read in (datasets.check, datasets.prepare):
        found = read(data, splits)
        assert found.dataset.classes == ("background", "car", "person", "tree")
        assert found.summaries["val"].ids() == [0, 3]
    assert datasets.check(data, ["val", "train"]).dataset.classes[2] == "person"


def test_the_first_split_numbers_the_classes_where_none_is_for_training(tmp_path):
    data = two_splits(tmp_path, ["car", "person"], ["person"])
    (tmp_path / "annotations/instances_train2017.json").unlink()
    assert datasets.check(data, ["val"]).dataset.classes == ("background", "person")


def test_a_category_that_the_training_split_lacks_is_named(tmp_path):
    data = two_splits(tmp_path, ["car"], ["void", "background", "tree"])
    named = r"_val2017.json has the category 3 'tree', which \S+_train2017.json lacks, by which"
    with pytest.raises(DataError, match=named):
        datasets.check(data)
