"""Preparing: checked, cached, atomic, quiet, and off the network."""

import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np
import pytest

from segjax.config import Data
from segjax.data import datasets
from segjax.data.builders.base import SegmentationBuilder
from segjax.data.builders.voc_segmentation import VocSegmentation
from segjax.data.images import DataError, read_image, read_mask, turn
from segjax.predict import images as inputs
from tests.data.files import blocks, folder, jpeg, picture, write

SMALL = "train=6,val=3,height=24,width=32"


@pytest.fixture
def shapes(tmp_path):
    return Data(name="shapes", cache=str(tmp_path / "cache"), options=SMALL)


@pytest.fixture
def own(tmp_path):
    """Ten good pairs."""
    root = folder(tmp_path / "raw")
    return Data(name="folder", dir=str(root), cache=str(tmp_path / "cache"))


def raw(data, name):
    return pathlib.Path(data.dir) / name


def test_records_hold_the_files_and_the_train_ids(own):
    prepared = datasets.prepare(own, show=False)
    source = prepared.source("train")
    assert len(source) == 9 and len(prepared.source("val")) == 1
    assert [record["id"] for record in source] == [f"{i:03d}".encode() for i in range(9)]
    assert source[4]["image"] == raw(own, "images/004.jpg").read_bytes()
    assert read_image(source[4]["image"]).shape == (24, 32, 3)
    np.testing.assert_array_equal(read_mask(source[4]["label"]), blocks(seed=4))
    with pytest.raises(ValueError, match=r"split 'test' is not prepared; there are"):
        prepared.source("test")


def test_the_folder_fills_in_what_only_it_tells(own):
    dataset = datasets.prepare(own, show=False).dataset
    assert dataset.classes == ("class 0", "class 1", "class 2")
    assert dataset.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    pixels = np.concatenate(
        [read_image(raw(own, f"images/{i:03d}.jpg").read_bytes()).reshape(-1, 3) for i in range(9)]
    )
    np.testing.assert_allclose(dataset.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std(0), rtol=1e-6)
    # The entry itself is as it was.
    assert datasets.DATASETS["folder"].classes == ()


def test_a_folder_may_be_called_like_a_home(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").rename("~no one")
    checked = datasets.check(dataclasses.replace(own, dir="~no one"), ["train"])
    assert checked.dataset.num_classes == 3
    voc = VocSegmentation("~no one", data_dir=str(tmp_path / "tfds"))
    assert voc.root == pathlib.Path("~no one")


def test_a_split_that_lacks_a_class_has_the_classes_of_the_training_split(own):
    write(raw(own, "masks/009.png"), blocks(ids=(0, 1)))  # the only one of the validation split
    for read in (datasets.check, datasets.prepare):
        checked = read(own, ["val"])
        assert checked.summaries["val"].ids() == [0, 1]
        assert checked.dataset.classes == ("class 0", "class 1", "class 2")
    write(raw(own, "classes.txt"), b"a\nb\nc\n")
    named = datasets.check(own, ["val"])
    assert named.dataset.classes == ("a", "b", "c") and list(named.summaries) == ["val"]


def test_counts_and_weights_are_stored_beside_the_records(own):
    prepared = datasets.prepare(own, show=False)
    label = np.stack([blocks(seed=i) for i in range(9)])
    summary = json.loads((prepared.folders["train"] / "summary.json").read_text())
    assert summary["pixels"][:3] == [int((label == c).sum()) for c in range(3)]
    frequency = np.array([(label == c).sum() for c in range(3)]) / label.size
    weights = np.median(frequency) / frequency
    np.testing.assert_allclose(summary["class_weights"][:3], weights, rtol=1e-6)
    np.testing.assert_allclose(prepared.class_weights, weights, rtol=1e-6)
    assert prepared.class_weights.dtype == np.float32


def test_the_second_time_reads_no_file(own, monkeypatch):
    first = datasets.prepare(own, show=False)
    monkeypatch.setattr(SegmentationBuilder, "examples", lambda self: pytest.fail("read again"))
    again = datasets.prepare(own, show=False)
    assert again == first


def test_a_changed_file_or_option_is_prepared_again(own):
    first = datasets.prepare(own, show=False).folders["train"]
    mask = blocks(seed=2)
    mask[0, 0] = 255
    write(raw(own, "masks/002.png"), mask)
    second = datasets.prepare(own, show=False)
    mapped = dataclasses.replace(own, label_map="{2:255}")
    third = datasets.prepare(mapped, show=False)
    assert len({first, second.folders["train"], third.folders["train"]}) == 3
    assert second.summaries["train"].pixels[255] == 1
    assert third.dataset.num_classes == 2 and third.summaries["train"].pixels[2] == 0
    write(raw(own, "classes.txt"), b"a\nb\nc\n")
    assert datasets.prepare(own, show=False).dataset.classes == ("a", "b", "c")


def test_a_moved_folder_is_not_prepared_again(own, tmp_path):
    first = datasets.prepare(own, show=False)
    moved = pathlib.Path(own.dir).rename(tmp_path / "elsewhere")
    assert datasets.prepare(dataclasses.replace(own, dir=str(moved)), show=False) == first


@pytest.mark.parametrize("split", ["val.v2", "val[:9]", "a/b", "all", ""])
def test_a_split_name_that_tfds_would_parse_is_refused(own, split):
    with pytest.raises(ValueError, match="a split cannot be called"):
        datasets.prepare(dataclasses.replace(own, val_split=split))


@pytest.mark.parametrize("split", ["my-val", "val_2"])
def test_other_split_names(own, split):
    write(raw(own, f"{split}.txt"), b"003\n004\n")
    write(raw(own, "train.txt"), b"001\n")
    data = dataclasses.replace(own, val_split=split)
    assert [r["id"] for r in datasets.prepare(data, show=False).source(split)] == [b"003", b"004"]


def test_only_the_table_is_printed_and_only_the_first_time(shapes, capfd):
    datasets.prepare(shapes)
    first = capfd.readouterr()
    assert "shapes: share of pixels" in first.out and "train (6)" in first.out
    assert "tent" in first.out and "ignored" in first.out and first.err == ""
    datasets.prepare(shapes)
    assert capfd.readouterr() == ("", "")


def test_nothing_asks_the_network_or_leaves_folders_elsewhere(shapes, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    start = time.perf_counter()
    assert len(datasets.prepare(shapes, show=False).source("val")) == 3
    assert time.perf_counter() - start < 20
    assert not list((tmp_path / "temporary").iterdir())


def test_a_failed_preparation_leaves_nothing_behind(own):
    raw(own, "masks/003.png").write_bytes(b"broken")
    with pytest.raises(DataError):
        datasets.prepare(own, show=False)
    left = [p for p in pathlib.Path(own.cache).rglob("*") if p.is_file()]
    assert [p.suffix for p in left] == [".lock"]
    write(raw(own, "masks/003.png"), blocks())
    datasets.prepare(own, show=False)


def cut(folder):
    [record] = [p for p in folder.iterdir() if "array_record" in p.name]
    record.write_bytes(record.read_bytes()[:-1])


DAMAGES = {
    "a record file cut off": cut,
    "summary gone": lambda folder: (folder / "summary.json").unlink(),
    "summary cut off": lambda folder: (folder / "summary.json").write_bytes(b'{"num_images": 9'),
    "summary of another version": lambda folder: (folder / "summary.json").write_bytes(b'{"x": 1}'),
    "a file gone": lambda folder: (folder / "features.json").unlink(),
    "an empty folder": lambda folder: [p.unlink() for p in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_named_and_prepared_anew(own, capsys, damage):
    first = datasets.prepare(own, show=False)
    DAMAGES[damage](first.folders["train"])
    again = datasets.prepare(own, show=False)
    said = "".join(capsys.readouterr().err.split())
    assert str(first.folders["train"]) in said and "itispreparedagain" in said
    assert again == first and len(list(again.source("train"))) == 9


def test_flipped_bytes_of_a_record_are_named_with_the_folder(own):
    prepared = datasets.prepare(own, show=False)
    folder = prepared.folders["train"]
    [file] = [p for p in folder.iterdir() if "array_record" in p.name]
    data = bytearray(file.read_bytes())
    middle = data.index(b"\xff\xd8\xff") + 200  # in the first image; the file ends in padding
    data[middle] ^= 255
    file.write_bytes(data)
    with pytest.raises(DataError, match=rf"\(000\).*{folder} is damaged .*delete this folder to"):
        list(prepared.source("train"))


def test_a_file_system_without_locks(own, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert len(datasets.prepare(own, show=False).source("train")) == 9
    assert not list(pathlib.Path(own.cache).rglob("*.tmp"))


def test_a_disk_without_room_for_the_records_is_named(shapes):
    """ArrayRecord raises an error of its own; files may not grow here, in place of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(DataError, match="cannot be written: File too large; make room"):
            datasets.prepare(shapes, show=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(pathlib.Path(shapes.cache).rglob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_named(own, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    data = dataclasses.replace(own, cache=str(tmp_path / "file"))
    with pytest.raises(
        DataError, match=r"cannot be written: Not a directory; .*--config.data.cache"
    ):
        datasets.prepare(data, show=False)


def test_images_of_two_splits_are_told(own):
    write(raw(own, "train.txt"), b"001\n002\n003\n")
    write(raw(own, "val.txt"), b"003\n004\n")
    [line] = datasets.check(own).skipped
    assert line.startswith("1 images are in the splits train and val (003)")


PREPARE = (
    "import sys; from segjax.config import Data; from segjax.data import datasets;"
    "p = datasets.prepare(Data(cache=sys.argv[1], options=sys.argv[2]), ['train'], show=False);"
    "print(len(p.source('train')), p.folders['train'])"
)


def test_killed_preparations_and_two_at_once(tmp_path):
    """Kill -9 in the middle; then two processes want the same, one writes and one waits."""
    options = "train=600,height=48,width=64"
    command = [sys.executable, "-c", PREPARE, str(tmp_path), options]
    killed = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("shapes/*.tmp/**/*array_record*")):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not list(tmp_path.rglob("summary.json"))
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert outputs[0] == outputs[1] and outputs[0].startswith("600 ")
    assert not list(tmp_path.rglob("*.tmp"))


def check_raises(data, *parts):
    """Both ways of reading find it, and say the same."""
    messages = []
    for read in (datasets.check, datasets.prepare):
        with pytest.raises(DataError) as caught:
            read(data)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    for part in parts:
        assert part in messages[0]


def test_rgb_masks(own):
    write(raw(own, "masks/003.png"), picture())
    check_raises(
        own, "masks/003.png is an RGB picture (3 channels, ", "Colours found: ", "one class id per"
    )


def test_masks_of_0_and_255(own):
    for i in range(10):
        write(raw(own, f"masks/{i:03d}.png"), blocks(ids=(0, 255), seed=i))
    check_raises(
        own,
        f"the masks of {own.dir}, split 'train', masks/000.png first, hold only {{0, 255}} and 255 "
        "is the ignore label, so every object pixel would be ignored. Fix: "
        '--config.data.label_map="{0:0,255:1}"',
    )
    mended = dataclasses.replace(own, label_map="{0:0,255:1}")
    assert datasets.prepare(mended, show=False).dataset.num_classes == 2


def test_masks_of_255_alone(own):
    for i in range(10):
        write(raw(own, f"masks/{i:03d}.png"), np.full((24, 32), 255, np.uint8))
    check_raises(own, "hold only 255", "nothing to learn")


def test_ids_out_of_range(own):
    write(raw(own, "classes.txt"), b"a\nb\nc\n")
    mask = blocks()
    mask[13, 17:20] = 19
    write(raw(own, "masks/004.png"), mask)
    check_raises(
        own,
        "masks/004.png has id 19 at row 13, column 17 (3 pixels) but num_classes=3 allows 0..2 "
        "(and 255).",
    )


def test_negative_ids(own):
    mask = blocks().astype(np.int16)
    mask[2, 3] = -1
    raw(own, "masks/004.png").unlink()
    write(raw(own, "masks/004.tiff"), mask)
    check_raises(own, "masks/004.tiff has id -1 at row 2, column 3 (1 pixels)", "{-1:255}")
    mended = dataclasses.replace(own, label_map="{-1:255}")
    assert datasets.prepare(mended, show=False).summaries["train"].pixels[255] == 1


def test_sizes_that_differ(own):
    write(raw(own, "masks/004.png"), blocks(12, 16))
    check_raises(own, "images/004.jpg is 24x32 but masks/004.png is 12x16 (height x width).")


def record(data, name):
    """The image and the label of a training record."""
    source = datasets.prepare(data, show=False).source("train")
    [found] = [r for r in source if r["id"] == name.encode()]
    return read_image(found["image"]), read_mask(found["label"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_mask_are_upright_whatever_the_mask_was_drawn_on(own, orientation):
    """Prediction turns a picture as EXIF says, so training sees it turned; its mask fits."""
    plain, mask = picture(), blocks()
    upright, mask_upright = turn(plain, orientation), turn(mask, orientation)
    write(raw(own, "images/004.jpg"), jpeg(plain, orientation=orientation))
    decoded = turn(read_image(jpeg(plain)), orientation)
    for drawn, drawn_on in ((mask_upright, "upright"), (mask, "stored")):
        write(raw(own, "masks/004.png"), drawn)
        data = dataclasses.replace(own, options=f"drawn='{drawn_on}'")
        image, label = record(data, "004")
        np.testing.assert_array_equal(image, decoded)
        np.testing.assert_array_equal(image, inputs.read(raw(own, "images/004.jpg")))
        np.testing.assert_array_equal(label, mask_upright)
        summary = datasets.check(data).summaries["train"]
        assert summary.turned == ["004"] * (orientation != 1)
        assert summary.mask_turned == ["004"] * (orientation != 1 and drawn_on == "stored")
        if orientation > 4:  # the sides change places: the size of the mask tells, not the option
            np.testing.assert_array_equal(record(own, "004")[1], mask_upright)
    assert upright.shape[:2] == mask_upright.shape


def test_the_table_tells_of_turned_images(own, capsys):
    """The name is no markup of the table, though rich would read it so."""
    raw(own, "images/004.jpg").unlink()
    raw(own, "masks/004.png").rename(raw(own, "masks/004[b].png"))
    write(raw(own, "images/004[b].jpg"), jpeg(picture(), orientation=3))
    datasets.prepare(own)
    text = " ".join(capsys.readouterr().out.split())
    assert "1 images are turned upright by their EXIF orientation, 004[b] first" in text


def test_the_table_tells_of_16_bits_and_of_those_that_hold_fewer(own, capsys):
    deep = np.random.default_rng(0).integers(0, 4096, (24, 32)).astype(np.uint16)
    raw(own, "images/004.jpg").unlink()
    write(raw(own, "images/004.png"), deep)
    datasets.prepare(own)
    text = " ".join(capsys.readouterr().out.split())
    assert "1 images have 16 bits per channel, 004 first, of which the upper 8 are kept." in text
    assert "nearly black: all values are below 4096 of 65536" in text
    write(raw(own, "images/004.png"), deep * 16)
    datasets.prepare(own)
    assert "nearly black" not in capsys.readouterr().out


def test_a_missing_partner(own):
    raw(own, "masks/004.png").unlink()
    check_raises(own, "images/004.jpg has no mask: masks/004.png is expected")


@pytest.mark.parametrize("name", ["images/004.jpg", "masks/004.png"])
@pytest.mark.parametrize("keep", [0, 40, 0.5, -2])
def test_truncated_files(own, name, keep):
    data = raw(own, name).read_bytes()
    end = int(keep * len(data)) if isinstance(keep, float) else keep
    raw(own, name).write_bytes(data[:end])
    says = "is empty (0 bytes)" if not end else "it is truncated"
    check_raises(own, f"{name} {'' if not end else 'cannot be decoded ('}", says)


def test_damaged_pictures_are_left_out_up_to_a_number(own, capsys):
    last = sorted(path.name for path in raw(own, "images").iterdir())[-1]  # in the split val
    for name in ("000.jpg", "004.jpg"):
        raw(own, f"images/{name}").write_bytes(raw(own, f"images/{name}").read_bytes()[:40])
    check_raises(dataclasses.replace(own, max_decode_errors=1), "2 problems", "images/000.jpg")
    two = dataclasses.replace(own, max_decode_errors=2)
    for _ in range(2):  # the second time they are prepared
        prepared = datasets.prepare(two, show=False)
        assert [r["id"] for r in prepared.source("train")][:3] == [b"001", b"002", b"003"]
        assert prepared.summaries["train"].num_images == 7
        said = capsys.readouterr().err
        assert "left out of the split train: images/000.jpg cannot be decoded (40 bytes" in said
        assert "left out of the split train: images/004.jpg cannot be decoded (40 bytes" in said
    with pytest.raises(
        DataError, match=r"000\.jpg cannot.*\n.*004\.jpg.*\n.*max_decode_errors=2 to"
    ):
        datasets.prepare(own)
    raw(own, f"images/{last}").write_bytes(b"")
    check_raises(two, f"images/{last} is empty")  # an evaluation counts every image


@pytest.mark.parametrize("name", ["images/004.jpg", "masks/004.png"])
def test_an_unreadable_file(own, name, monkeypatch):
    read_bytes = pathlib.Path.read_bytes

    def refuse(path):
        if path == raw(own, name):
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    check_raises(own, f"{name} cannot be read: Permission denied")


def test_an_empty_folder(own, tmp_path):
    for file in raw(own, "images").iterdir():
        file.unlink()
    check_raises(own, f"{own.dir}/images has no images", "laid out like this")
    nowhere = dataclasses.replace(own, dir=str(tmp_path / "nowhere"))
    check_raises(nowhere, "nowhere does not exist")


def test_a_folder_of_too_few_images_for_validation(own):
    few = folder(pathlib.Path(own.dir) / "few", 4)
    check_raises(dataclasses.replace(own, dir=str(few)), "has 4 images", '"val_every=4"')


def test_all_bad_files_come_in_one_error_up_to_ten(own):
    for i in (2, 5):
        write(raw(own, f"masks/{i:03d}.png"), picture())
    raw(own, "masks/007.png").write_bytes(b"")
    check_raises(own, "3 problems:\n", "- masks/002.png is", "- masks/005.png", "- masks/007.png")
    root = folder(pathlib.Path(own.dir) / "many", 30)
    for i in range(30):
        write(root / f"masks/{i:03d}.png", picture())
    check_raises(dataclasses.replace(own, dir=str(root)), "10 problems (the first ones")


def test_a_deep_gray_or_transparent_image_is_read_as_rgb(own):
    deep = cv2.imencode(".png", picture().astype(np.uint16) * 257)[1].tobytes()
    write(raw(own, "images/010.png"), deep)
    write(raw(own, "images/011.png"), picture()[..., 0])
    write(raw(own, "images/012.png"), np.dstack([picture(), picture()[..., 0]]))
    for i in (10, 11, 12):
        write(raw(own, f"masks/{i:03d}.png"), blocks())
    prepared = datasets.prepare(own, show=False)
    for record in prepared.source("train"):
        assert read_image(record["image"]).shape == (24, 32, 3)
    assert len(prepared.source("train")) == 12


def test_check_suggests_and_writes_nothing(own):
    write(raw(own, "images/004.jpg"), jpeg(picture(40, 60)))
    write(raw(own, "masks/004.png"), blocks(40, 60))
    checked = datasets.check(own)
    assert checked.crop(256) == (40, 64) and checked.crop(50) == (40, 50)  # of 40 x 60
    assert checked.canvas("train") == checked.filled_up("train", (0, 0)) == (40, 60)
    aligned = dataclasses.replace(checked, aligned=16)
    assert aligned.canvas("train") == (40, 60)
    assert aligned.filled_up("train", (0, 0)) == (49, 65)
    assert aligned.filled_up("train", (0, 64)) == (49, 64)
    assert aligned.crop(256) == (49, 65) and aligned.crop(50) == (49, 49)
    assert len(checked.class_weights) == checked.dataset.num_classes == 3
    assert not pathlib.Path(own.cache).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "voc"}, "no data set 'voc'.*shapes, camvid, voc_segmentation"),
        ({"name": "camvid"}, "'camvid' is read from a folder: write --config.data.dir=FOLDER"),
        ({"options": "hight=3"}, "options of 'shapes' are: train, val, height, width, seed"),
        ({"options": "3"}, "write name=value,name=value"),
        ({"options": "height="}, "write name=value,name=value"),
        ({"options": "height=3"}, "option height=3 of 'shapes': a whole number from 16"),
        ({"options": "train='a'"}, "option train='a' of 'shapes'"),
        ({"label_map": "0"}, "is not a map of ids"),
        ({"label_map": "{0:1}"}, "'shapes' is generated: --config.data.label_map has no effect"),
        ({"dir": "x"}, "data.dir is x, but 'shapes' is generated and .* --config.data.name=folder"),
        ({"train_split": "all"}, "'shapes' has no split 'all'; it has train, val"),
    ],
)
def test_wrong_fields(shapes, change, message):
    with pytest.raises(ValueError, match=message):
        datasets.prepare(dataclasses.replace(shapes, **change))
