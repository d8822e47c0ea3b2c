"""Label maps as test servers want them."""

import numpy as np
import pytest
from PIL import Image

from segjax.data import datasets
from segjax.predict import label_files


@pytest.mark.parametrize(("layout", "count"), [("voc", 21), ("cityscapes", 19)])
def test_submission_layouts(tmp_path, layout, count):
    name = {"voc": "voc_segmentation"}.get(layout, layout)
    dataset = datasets.DATASETS[name]
    write = label_files.writer(layout, tmp_path, dataset.classes, dataset.palette)
    labels = np.arange(count, dtype=np.uint8).reshape(1, -1)
    write("berlin/berlin_000000_000019", labels)
    [file] = [p for p in tmp_path.rglob("*") if p.is_file()]
    with Image.open(file) as picture:
        found = np.asarray(picture)
        if layout == "voc":
            folder = "results/VOC2012/Segmentation/comp6_test_cls"
            assert file == tmp_path / folder / "berlin_000000_000019.png"
            assert picture.mode == "P" and found.tolist() == labels.tolist()
            # The colours of VOC: 1 is dark red, 15 a light rose, 255 the cream of its void rim.
            palette = np.reshape(picture.getpalette(), (-1, 3))
            assert palette[[0, 1, 15, 255]].tolist() == [
                *([0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]),
            ]
        else:
            assert file == tmp_path / "berlin_000000_000019.png"
            assert picture.mode == "L"
            # Of cityscapesScripts/helpers/labels.py: road 7, sky 23, person 24, bicycle 33.
            assert found[0, [0, 10, 11, 18]].tolist() == [7, 23, 24, 33]


def test_submission_needs_the_classes_of_its_data_set(tmp_path):
    with pytest.raises(ValueError, match="takes 19 classes, this network predicts 2"):
        label_files.writer("cityscapes", tmp_path, ("a", "b"), ((0, 0, 0),) * 2)
    with pytest.raises(ValueError, match="accepted are voc, cityscapes"):
        label_files.writer("nope", tmp_path, ("a",), ((0, 0, 0),))
