"""Each layout: which files make a split, and what the numbers in its masks become."""

import functools
import pathlib

import numpy as np
import pytest
from PIL import Image

from segjax import config
from segjax.data import datasets, images
from segjax.data.builders.ade20k import Ade20k
from segjax.data.builders.camvid import Camvid
from segjax.data.builders.cityscapes import Cityscapes
from segjax.data.builders.folder import Folder
from segjax.data.builders.shapes import Shapes
from segjax.data.builders.voc_segmentation import VocSegmentation
from segjax.data.images import DataError
from segjax.data.labels import colour_map
from tests.data.files import blocks, folder, jpeg, picture, png, write

SHARED = pathlib.Path(__file__).parents[4] / "shared/data"


def labels(builder) -> dict[str, np.ndarray]:
    """Reads a split: id -> train ids."""
    return {e.id: images.read_mask(e.label) for e in builder.summarize()}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_camvid(tmp_path, suffix):
    mask = blocks(ids=(0, 10, 11))
    for split in ("train", "val"):
        write(tmp_path / split / f"0001TP_{split}{suffix}", picture())
        write(tmp_path / f"{split}annot" / f"0001TP_{split}.png", mask)
    got = labels(Camvid(tmp_path, "val"))
    assert list(got) == ["0001TP_val"]
    np.testing.assert_array_equal(got["0001TP_val"], np.where(mask == 11, 255, mask))
    with pytest.raises(DataError, match=r"test does not exist.*laid out like this"):
        labels(Camvid(tmp_path, "test"))
    with pytest.raises(ValueError, match="no split 'foo'; it has train, val, test"):
        labels(Camvid(tmp_path, "foo"))


@pytest.mark.parametrize("below", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_masks_are_palette_indices(tmp_path, below):
    root = tmp_path / below
    mask = blocks(ids=(0, 15, 255))
    for name in ("2007_000001", "2007_000002", "2007_000003"):
        write(root / f"JPEGImages/{name}.jpg", jpeg(picture()))
        write(root / f"SegmentationClass/{name}.png", png(mask))
    write(root / "ImageSets/Segmentation/train.txt", b"2007_000003\n2007_000001\n")
    got = labels(VocSegmentation(tmp_path, "train"))
    assert list(got) == ["2007_000003", "2007_000001"]  # the order of the list
    np.testing.assert_array_equal(got["2007_000001"], mask)
    with pytest.raises(DataError, match=r"val.txt does not exist; the lists there are: train"):
        labels(VocSegmentation(tmp_path, "val"))


@pytest.mark.parametrize(
    "lines", [b"a\nb\n", b"/JPEGImages/a.jpg /SegmentationClassAug/a.png\nb\n\n"]
)
def test_voc_trainaug_takes_the_merged_masks(tmp_path, lines):
    for name, cls in (("a", 3), ("b", 4)):
        write(tmp_path / f"JPEGImages/{name}.jpg", jpeg(picture()))
        write(tmp_path / f"SegmentationClass/{name}.png", png(blocks(ids=(0,))))
        write(tmp_path / f"SegmentationClassAug/{name}.png", blocks(ids=(0, cls)))
    write(tmp_path / "ImageSets/Segmentation/trainaug.txt", lines)
    got = labels(VocSegmentation(tmp_path, "trainaug"))
    assert set(np.unique(got["a"])) == {0, 3} and set(np.unique(got["b"])) == {0, 4}


def test_voc_names_listed_files_that_are_missing(tmp_path):
    write(tmp_path / "JPEGImages/a.jpg", jpeg(picture()))
    write(tmp_path / "SegmentationClass/b.png", png(blocks()))
    write(tmp_path / "ImageSets/Segmentation/train.txt", b"a\nb\n")
    with pytest.raises(DataError) as caught:
        labels(VocSegmentation(tmp_path, "train"))
    assert "JPEGImages/a.jpg has no mask: SegmentationClass/a.png is expected" in str(caught.value)
    assert "SegmentationClass/b.png has no image: JPEGImages/b.jpg" in str(caught.value)


def test_voc_colours():
    """The first colours of the VOC development kit."""
    assert colour_map(9)[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert colour_map(21)[15] == (192, 128, 128) and colour_map(21)[20] == (0, 64, 128)
    assert colour_map(256)[255] == (224, 224, 192)


def cityscapes(root, mask, kind, annotation="gtFine"):
    for city in ("aachen", "bochum"):
        stem = f"{city}_000000_000019"
        write(root / f"leftImg8bit/train/{city}/{stem}_leftImg8bit.png", picture(32, 48))
        write(root / f"{annotation}/train/{city}/{stem}_{annotation}_{kind}.png", mask)


def test_cityscapes_label_ids_become_train_ids(tmp_path):
    """The table is that of the official labels.py, written out here as name: id."""
    official = {
        **{"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17},
        **{"traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23},
        **{"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31},
        **{"motorcycle": 32, "bicycle": 33},
    }
    mask = np.arange(32, dtype=np.uint8)[:, None].repeat(48, 1)
    mask[:2] = [[33], [32]]
    mask[2, :5] = 255  # licence plates are -1, which eight bits make 255
    cityscapes(tmp_path, mask, "labelIds")
    got = labels(Cityscapes(tmp_path, "train"))
    assert list(got) == ["aachen_000000_000019", "bochum_000000_000019"]
    classes = datasets.DATASETS["cityscapes"].classes
    expected = np.full((32, 48), 255)
    for name, label_id in official.items():
        expected[mask == label_id] = classes.index(name)
    np.testing.assert_array_equal(got["aachen_000000_000019"], expected)


def test_cityscapes_with_train_ids_or_coarse(tmp_path):
    mask = blocks(32, 48, ids=(0, 18, 255))
    cityscapes(tmp_path / "a", mask, "labelTrainIds")
    got = labels(Cityscapes(tmp_path / "a", "train"))
    np.testing.assert_array_equal(got["bochum_000000_000019"], mask)
    cityscapes(tmp_path / "b", blocks(32, 48, ids=(7, 33)), "labelIds", "gtCoarse")
    got = labels(Cityscapes(tmp_path / "b", "train", coarse=True))
    assert set(np.unique(got["bochum_000000_000019"])) == {0, 18}
    with pytest.raises(DataError, match=r"has no mask: gtFine/train/aachen"):
        labels(Cityscapes(tmp_path / "b", "train"))
    for folder_of in ("leftImg8bit", "gtCoarse"):
        (tmp_path / "b" / folder_of / "train").rename(tmp_path / "b" / folder_of / "train_extra")
    assert len(labels(Cityscapes(tmp_path / "b", "train_extra"))) == 2


@pytest.mark.parametrize("below", ["", "ADEChallengeData2016"])
def test_ade20k_counts_from_one(tmp_path, below):
    mask = blocks(ids=(0, 1, 150))
    write(tmp_path / below / "images/validation/ADE_val_1.jpg", jpeg(picture()))
    write(tmp_path / below / "annotations/validation/ADE_val_1.png", mask)
    got = labels(Ade20k(tmp_path, "val"))["ADE_val_1"]
    np.testing.assert_array_equal(got, np.select([mask == 0, mask == 1], [255, 0], 149))


def folder_splits(root, **options):
    return {split: list(labels(Folder(root, split, **options))) for split in ("train", "val")}


def test_folder_takes_every_tenth_image_for_validation(tmp_path):
    folder(tmp_path, 20)
    got = folder_splits(tmp_path)
    assert got["val"] == ["009", "019"] and len(got["train"]) == 18
    assert not set(got["train"]) & set(got["val"])
    assert folder_splits(tmp_path, val_every=4)["val"] == ["003", "007", "011", "015", "019"]
    with pytest.raises(ValueError, match="val_every=1"):
        Folder(tmp_path, "train", val_every=1)


def test_folder_with_subfolders(tmp_path):
    for split, name in (("train", "a"), ("train", "deep/b"), ("val", "a")):
        write(tmp_path / f"images/{split}/{name}.png", picture())
        write(tmp_path / f"masks/{split}/{name}.png", blocks())
    assert folder_splits(tmp_path) == {"train": ["a", "deep/b"], "val": ["a"]}
    with pytest.raises(DataError, match=r"no split 'test'; there are train, val"):
        labels(Folder(tmp_path, "test"))


def test_folder_with_lists(tmp_path):
    folder(tmp_path, 4)
    write(tmp_path / "train.txt", b"002\n000.jpg\n")
    write(tmp_path / "val.txt", b"003\n")
    assert folder_splits(tmp_path) == {"train": ["002", "000"], "val": ["003"]}
    write(tmp_path / "val.txt", b"nobody\n")
    with pytest.raises(DataError, match=r"images/nobody.jpg is listed \(val.txt, line 1\), but"):
        labels(Folder(tmp_path, "val"))


def test_folder_reports_files_without_partner(tmp_path):
    folder(tmp_path, 3)
    (tmp_path / "images/001.jpg").unlink()
    (tmp_path / "masks/002.png").unlink()
    with pytest.raises(DataError) as caught:
        labels(Folder(tmp_path, "train"))
    assert "masks/001.png has no image: images/001.jpg is expected" in str(caught.value)
    assert "images/002.jpg has no mask: masks/002.png is expected" in str(caught.value)


def test_folder_with_class_names(tmp_path):
    folder(tmp_path)
    write(tmp_path / "classes.txt", b"sky\ntraffic light\nroad\n")
    builder = Folder(tmp_path, "train")
    assert builder.describe([0])[0] == ("sky", "traffic light", "road")
    assert len(labels(builder)) == 9
    write(tmp_path / "classes.txt", b"sky\nroad\n")
    with pytest.raises(DataError, match=r"masks/000.png has id 2 at row.*allows 0..1 \(and 255\)"):
        labels(Folder(tmp_path, "train"))


def test_folder_with_colours(tmp_path):
    mask, colours = blocks(), np.array([(128, 64, 128), (0, 0, 0), (70, 70, 70)], np.uint8)
    write(tmp_path / "images/a.jpg", jpeg(picture()))
    write(tmp_path / "masks/a.png", colours[mask])
    write(tmp_path / "classes.txt", b"road 128 64 128\nhouse  70 70 70\n\nvoid 0 0 0\n")
    builder = Folder(tmp_path, "train")
    assert builder.describe([]) == (("road", "house"), ((128, 64, 128), (70, 70, 70)))
    expected = np.array([0, 255, 1])[mask]
    np.testing.assert_array_equal(labels(builder)["a"], expected)


RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)


def indexed(path, ids, colours):
    """Writes a pair whose mask has a palette."""
    mask = Image.fromarray(blocks(ids=ids), "P")
    mask.putpalette(np.array(colours, np.uint8).tobytes())
    (path / "masks").mkdir(parents=True, exist_ok=True)
    number = len(list((path / "masks").iterdir()))
    mask.save(path / f"masks/{number}.png")
    write(path / f"images/{number}.jpg", jpeg(picture()))


def both_ways(root, **options):
    """Yields a reader that checks, and one that prepares."""
    data = config.Data(name="folder", dir=str(root), cache=str(root / "cache"), **options)
    return functools.partial(datasets.check, data), functools.partial(datasets.prepare, data)


def test_palettes_that_differ_tell_no_classes(tmp_path):
    indexed(tmp_path, (0, 1), [BLACK, RED])
    indexed(tmp_path, (0, 1, 2), [BLACK, GREEN, RED])
    named = (
        r"masks/(0|1).png has the colour \(\d+, \d+, 0\) for the index 1 of its palette, but "
        r"masks/(1|0).png has \(\d+, \d+, 0\), .*classes.txt"
    )
    with pytest.raises(DataError, match=named):
        labels(Folder(tmp_path, "train"))
    write(tmp_path / "classes.txt", b"sky 0 0 0\nroad 255 0 0\ncar 0 255 0\n")
    got = labels(Folder(tmp_path, "train"))
    np.testing.assert_array_equal(got["0"], blocks(ids=(0, 1)))
    np.testing.assert_array_equal(got["1"], np.array([0, 2, 1])[blocks(ids=(0, 1, 2))])


def test_palettes_that_differ_between_splits(tmp_path):
    for split, colours in (("train", [BLACK, RED]), ("val", [RED, BLACK])):
        indexed(tmp_path / split, (0, 1), colours)
    for read in (*both_ways(tmp_path), *both_ways(tmp_path)):
        with pytest.raises(DataError, match=r"^val/masks/0.png has .* but train/masks/0.png has"):
            read()


@pytest.mark.parametrize(
    "palettes",
    [
        (colour_map(256), colour_map(256)),
        (colour_map(17), colour_map(21)),
        ([BLACK, RED, GREEN, *[BLUE] * 20], [BLACK, RED, GREEN, *[RED] * 30]),
        ([(i, i, i) for i in range(256)], colour_map(256)),  # greys that no one chose
        ([(i * 12,) * 3 for i in range(20)], [(i * 12,) * 3 for i in range(20)]),
    ],
)
def test_palettes_that_agree_are_read_by_index(tmp_path, palettes):
    ids = (0, 1, 2, 255)
    for split in ("train", "val"):
        for colours in palettes:
            indexed(tmp_path / split, ids, colours)
    for read in both_ways(tmp_path):
        found = read()
        assert all(s.ids() == [0, 1, 2] and s.pixels[255] for s in found.summaries.values())
    np.testing.assert_array_equal(labels(Folder(tmp_path, "val"))["1"], blocks(ids=ids))


def test_255_is_ignored_unless_its_colour_is_that_of_a_class(tmp_path):
    write(tmp_path / "classes.txt", b"sky 0 0 0\nroad 255 0 0\n")
    ids = (0, 255)
    indexed(tmp_path, ids, [BLACK] * 254 + [GREEN, RED])
    indexed(tmp_path, ids, [BLACK] * 254 + [RED, GREEN])
    indexed(tmp_path, ids, [BLACK, RED] + [BLACK] * 254)  # padded
    indexed(tmp_path, ids, [BLACK, RED, *[GREEN] * 20])  # ends before
    got = labels(Folder(tmp_path, "train"))
    for name, train_id in (("0", 1), ("1", 255), ("2", 255), ("3", 255)):
        np.testing.assert_array_equal(got[name], np.where(blocks(ids=ids) == 255, train_id, 0))


def test_an_index_beyond_its_palette(tmp_path):
    write(tmp_path / "classes.txt", b"sky 0 0 0\nroad 255 0 0\n")
    indexed(tmp_path, (0, 30), [BLACK, *[RED] * 20])
    named = r"masks/0.png has the index 30, but its palette ends at 20"
    with pytest.raises(DataError, match=named):
        labels(Folder(tmp_path, "train"))


def test_a_colour_of_a_palette_that_is_not_listed(tmp_path):
    write(tmp_path / "classes.txt", b"sky 0 0 255\nroad 255 0 0\n")
    indexed(tmp_path, (0, 1, 2), [BLACK, BLUE, RED])
    named = r"masks/0.png has the colours \(0, 0, 255\) and \(0, 0, 0\).*add .*'void 0 0 0'"
    with pytest.raises(DataError, match=named):
        labels(Folder(tmp_path, "train"))
    write(tmp_path / "classes.txt", b"sky 0 0 255\nroad 255 0 0\nvoid 0 0 0\n")
    got = labels(Folder(tmp_path, "train"))["0"]
    np.testing.assert_array_equal(got, np.array([255, 0, 1])[blocks()])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "names 0 classes"),
        (b"a 1 2 3\nb\n", "line 2: either every class has a colour or none"),
        (b"a 1 2 3\nb 1 2 3\n", "line 2: the colour .* taken"),
        (b"a 1 2 300\n", "line 1: the colour .* above 255"),
        (b"a 1 2\n", "line 1: 'a 1 2' is no class; written are a name a line; or"),
        (b"a\na\n", "line 2: the class 'a' is there twice"),
    ],
)
def test_a_wrong_classes_file_is_explained(tmp_path, text, message):
    write(tmp_path / "classes.txt", text)
    with pytest.raises(DataError, match=message):
        Folder(tmp_path, "train")


def test_folder_without_class_names_needs_ids_in_a_row(tmp_path):
    builder = Folder(folder(tmp_path, ids=(0, 7, 9)), "train")
    with pytest.raises(DataError, match=r'ids 0, 7, 9.*classes.txt.*label_map="{0:0,7:1,9:2}"'):
        builder.describe([0, 7, 9])
    with pytest.raises(DataError, match=r"255, 23.5% of the pixels, is ignored; .* add 255:3"):
        builder.describe([0, 85, 170], 0.235)
    assert builder.describe([0, 1])[0] == ("class 0", "class 1")


@pytest.mark.parametrize("ids", [range(255), range(0, 200, 5)])
def test_masks_that_were_interpolated_are_not_taken_for_many_classes(tmp_path, ids):
    builder = Folder(folder(tmp_path), "train")
    with pytest.raises(DataError, match=r"interpolation or JPEG.*nearest neighbour.*classes\.txt"):
        builder.describe(ids, 0.2)


def test_shapes_is_deterministic_and_differs_between_seeds_and_splits():
    def first(split="train", **options):
        builder = Shapes(split=split, train=2, val=2, height=32, width=48, **options)
        return next(builder.summarize())

    a, b = first(), first()
    assert (a.image, a.label, a.id) == (b.image, b.label, b.id)
    assert len({first().image, first(seed=1).image, first("val").image}) == 3


def test_shapes_scenes_hold_everything_they_promise():
    builder = Shapes(train=60)
    seen = labels(builder)
    label = np.stack(list(seen.values()))
    assert label.shape == (60, 64, 96)
    assert set(np.unique(label)) == {0, 1, 2, 3, 4, 5, 6, 255}
    share = np.bincount(label.ravel(), minlength=256) / label.size
    assert 0.04 < share[255] < 0.12 and 0.01 < share[6] < 0.05
    # Void is a rim: no pixel of it is further than two pixels from something else.
    void = label == 255
    inner = void[:, 2:-2, 2:-2].copy()
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            inner &= void[:, 2 + dy : void.shape[1] - 2 + dy, 2 + dx : void.shape[2] - 2 + dx]
    assert inner.mean() < 1e-3


@pytest.mark.parametrize("entry", datasets.DATASETS.values(), ids=lambda e: e.name)
def test_entries_are_consistent(entry):
    assert entry.name == entry.builder.name and datasets.DATASETS[entry.name] is entry
    assert len(entry.classes) == len(entry.palette) == len(set(entry.classes))
    assert entry.ignore and len(entry.mean) == len(entry.std) == 3
    if entry.classes:
        trained = sorted(set(entry.builder.IDS.values()) - {255})
        assert trained == list(range(entry.num_classes))
        assert len(entry.class_weights) in (0, entry.num_classes)


def test_class_counts_are_the_published_ones():
    counts = {name: entry.num_classes for name, entry in datasets.DATASETS.items()}
    assert counts == {
        **{"shapes": 7, "camvid": 11, "voc_segmentation": 21, "cityscapes": 19, "ade20k": 150},
        "folder": 0,
    }


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data here")
def test_the_real_voc_subset(tmp_path):
    data = config.Data(
        name="voc_segmentation", dir=str(SHARED / "voc2012_subset"), cache=str(tmp_path)
    )
    prepared = datasets.prepare(data, show=False)
    assert (prepared.summaries["train"].num_images, prepared.summaries["val"].num_images) == (
        60,
        20,
    )
    assert prepared.summaries["train"].ids() == list(range(21))
    assert prepared.summaries["train"].images[15] == 60  # all show a person
    assert prepared.canvas("train", "val") == (500, 500)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data here")
def test_the_real_camvid_counts(tmp_path):
    """Counts of the annotations, and the weights that follow by the formula of the paper."""
    data = config.Data(name="camvid", dir=str(SHARED / "camvid"), cache=str(tmp_path))
    prepared = datasets.prepare(data, ["train"], show=False)
    summary = prepared.summaries["train"]
    assert summary.num_images == 367 and prepared.canvas("train") == (360, 480)
    assert summary.pixels[:11] == [
        *(10682767, 14750079, 623349, 20076880, 2845085, 6166762),
        *(743859, 714595, 3719877, 405385, 184967),
    ]
    assert summary.pixels[255] == 2503995
    assert summary.images[:11] == [366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201]
    expected = [
        *(0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217),
        *(3.8467, 1.9736, 0.7889, 6.3747, 8.8587),
    ]
    np.testing.assert_allclose(prepared.class_weights, expected, atol=5.1e-5)
    np.testing.assert_allclose(summary.mean, prepared.dataset.mean, atol=0.06)
    np.testing.assert_allclose(summary.std, prepared.dataset.std, atol=0.06)
