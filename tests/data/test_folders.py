import os

import pytest

from segjax.data import folders
from segjax.data.images import DataError


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def names(walk):
    return [path.relative_to(walk.folder).as_posix() for path in walk.files]


def test_links_are_followed_and_loops_are_not(tmp_path):
    touch(tmp_path / "disk/b.jpg")
    touch(tmp_path / "p/a.JPG")
    (tmp_path / "p/sub").symlink_to(tmp_path / "disk")
    (tmp_path / "p/again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/back").symlink_to(tmp_path / "p")
    (tmp_path / "p/gone.png").symlink_to(tmp_path / "nowhere.png")
    walk = folders.Walk(tmp_path / "p")
    assert names(walk) == ["a.JPG", "again/b.jpg", "sub/b.jpg"]
    said = " ".join(walk.skipped)
    assert "1 links to nothing (gone.png)" in said
    assert "2 links back to a folder that they lie in (again/back, sub/back)" in said


def test_hidden_and_system_files_are_skipped_and_said(tmp_path):
    for name in (".ipynb_checkpoints/a.png", "._a.png", "__MACOSX/a.png", "Thumbs.db", "a.png"):
        touch(tmp_path / name)
    touch(tmp_path / "README.txt")
    walk = folders.Walk(tmp_path)
    assert names(walk) == ["a.png"]
    [line] = walk.skipped
    assert "skipped 4 hidden or of the system (" in line and "README" not in line


def test_two_files_of_one_name_are_refused_by_both_names(tmp_path):
    touch(tmp_path / "a.png")
    touch(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png are both called a"):
        folders.Walk(tmp_path).by_stem()


def test_the_order_does_not_depend_on_the_system(tmp_path):
    for name in ("b/1.png", "a.png", "B.png", "b.png"):
        touch(tmp_path / name)
    assert names(folders.Walk(tmp_path)) == ["B.png", "a.png", "b.png", "b/1.png"]


@pytest.mark.parametrize(
    ("wanted", "there", "said"),
    [
        ("a.jpg", "a.JPG", "a.JPG is there"),
        ("a.jpg", "a.png", "a.png is there"),
        ("a.jpg.jpg", "a.jpg", "a.jpg is there"),
        ("image_01.png", "image-01.png", "image-01.png is there"),
        ("a.jpg", " a .jpg", " a .jpg is there"),
        ("a.jpg", "zebra.png", ""),
    ],
)
def test_the_file_that_almost_fits_is_named(tmp_path, wanted, there, said):
    touch(tmp_path / there)
    assert folders.near_miss(tmp_path / wanted) == said


def test_a_broken_link_is_told(tmp_path):
    (tmp_path / "a.png").symlink_to("/nowhere/b.png")
    assert "a link to /nowhere/b.png" in folders.near_miss(tmp_path / "a.png")


def test_names_that_are_no_utf8_can_be_printed(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    assert folders.printable(name) == "caf\\udce9.png" or folders.printable(name)
    folders.printable(name).encode()
