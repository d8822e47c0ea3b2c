"""The one walk: links, loops, what systems leave behind, ambiguity, and near misses."""

import os
import pathlib

import pytest

from segjax.data import folders
from segjax.data.images import DataError


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(root, **options):
    return [p.relative_to(root).as_posix() for p in folders.Walk(root, **options).files]


def test_files_come_sorted_from_all_folders_below(root):
    touch(root, "b.png", "a.JPG", "deep/er/c.TIF", "deep/d.webp", "a-b.png", "notes.txt")
    assert found(root) == ["a-b.png", "a.JPG", "b.png", "deep/d.webp", "deep/er/c.TIF"]
    assert found(root, deep=False) == ["a-b.png", "a.JPG", "b.png"]
    assert found(root, endings=(".txt",)) == ["notes.txt"]
    assert folders.Walk(root).skipped == []  # other files may lie there
    assert found(root / "none") == []


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints/a.png", "._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"),
        *("__MACOSX/a.png", "@eaDir/a.png", ".hidden/deep/a.png", "$RECYCLE.BIN/a.png"),
    ],
)
def test_what_systems_leave_behind_is_skipped_and_said(root, name):
    touch(root, "a.png", name)
    assert found(root) == ["a.png"]
    top = name.split("/")[0]
    assert folders.Walk(root).skipped == [f"{root}: skipped 1 hidden or of the system ({top})"]


def test_the_folder_itself_may_be_hidden(tmp_path):
    touch(tmp_path / ".cache", "a.png")
    assert found(tmp_path / ".cache") == ["a.png"]


def test_links_to_files_and_folders_are_followed(root, tmp_path):
    touch(tmp_path / "disk2", "b.png", "deep/c.png")
    touch(root, "a.png")
    (root / "part2").symlink_to(tmp_path / "disk2")
    (root / "again").symlink_to(tmp_path / "disk2")  # under two names: both are there
    (root / "d.png").symlink_to(tmp_path / "disk2" / "b.png")
    assert found(root) == [
        *("a.png", "again/b.png", "again/deep/c.png", "d.png", "part2/b.png", "part2/deep/c.png")
    ]


def test_loops_end(root):
    touch(root, "in/a.png", "in/deep/b.png")
    (root / "in" / "deep" / "self").symlink_to(".")
    (root / "in" / "deep" / "up").symlink_to("..")
    (root / "in" / "top").symlink_to(root)
    (root / "in" / "parent").symlink_to(root.parent)
    (root / "in" / "ring").symlink_to("ring")  # a link to itself exists for nobody
    with pytest.raises(DataError, match=r"in/ring is a link to ring, which is not there"):
        folders.Walk(root / "in")
    (root / "in" / "ring").unlink()
    assert found(root / "in") == ["a.png", "deep/b.png"]
    assert (
        "skipped 4 links back to a folder that they lie in" in folders.Walk(root / "in").skipped[0]
    )


def test_broken_links_are_never_lost(root):
    touch(root, "a.png")
    (root / "b.png").symlink_to("/nowhere/b.png")
    assert found(root) == ["a.png", "b.png"]  # reading it fails, with its name
    (root / "part2").symlink_to("/nowhere")
    with pytest.raises(DataError, match="part2 is a link to /nowhere, which is not there"):
        folders.Walk(root)


def test_what_is_no_ordinary_file_is_not_opened(root):
    touch(root, "a.png")
    os.mkfifo(root / "b.png")
    (root / "c.png").mkdir()
    assert found(root) == ["a.png"]
    assert folders.Walk(root).skipped == [f"{root}: skipped 1 that are no ordinary files (b.png)"]


def test_a_folder_that_cannot_be_read_is_named(root, monkeypatch):
    touch(root, "a.png", "locked/b.png")
    iterdir = pathlib.Path.iterdir

    def refuse(path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
    with pytest.raises(DataError, match="locked cannot be read: Permission denied"):
        folders.Walk(root)


def test_two_files_of_one_name_are_refused_with_both(root):
    touch(root, "sub/a.png", "sub/a.jpg")
    with pytest.raises(DataError, match=r"sub/a\.jpg and a\.png are both called sub/a"):
        folders.Walk(root).by_stem()


def test_keys_leave_out_suffixes_and_compose_letters(root):
    touch(root, "sub/cafe\u0301_mask.png", "x.y.png")
    assert list(folders.Walk(root).by_stem("_mask")) == ["sub/caf\xe9"]


@pytest.mark.parametrize(
    ("there", "wanted", "hint"),
    [
        ("a.JPG", "a.jpg", "a.JPG is there"),
        ("a.png", "a.jpg", "a.png is there"),
        ("A.png", "a.jpg", "A.png is there"),
        ("my a.jpg", "mya.jpg", "my a.jpg is there"),
        ("cafe\u0301.jpg", "caf\xe9.jpg", "cafe\u0301.jpg is there"),
        ("img_0012.jpg", "img_012.jpg", "img_0012.jpg is there"),
        ("a.jpg", "a.jpg.jpg", "a.jpg is there"),
        ("image-01.png", "image_01.png", "image-01.png is there"),
        ("zebra.jpg", "a.jpg", ""),
        ("zebra.jpg", f"{'a' * 5000}.jpg", ""),
        ("Images/a.jpg", "images/a.jpg", "Images is there"),
        ("a.jpg/b", "a.jpg", "a folder, or no ordinary file, has that name"),
    ],
)
def test_near_misses(root, there, wanted, hint):
    touch(root, there)
    assert folders.near_miss(root / wanted) == hint


def test_a_broken_link_is_a_near_miss(root):
    root.mkdir()
    (root / "a.png").symlink_to("/nowhere/a.png")
    assert folders.near_miss(root / "a.png") == "it is a link to /nowhere/a.png, which is not there"


def test_names_that_are_no_utf8_can_be_printed(root):
    root.mkdir()
    with open(os.fsencode(root) + b"/caf\xe9.png", "wb"):
        pass
    [path] = folders.Walk(root).files
    assert (
        folders.printable(path.name) == "caf\\xe9.png" and folders.printable("caf\xe9") == "caf\xe9"
    )
    assert folders.some(["a", "b", "c", "d"]) == "a, b, c, ..."
