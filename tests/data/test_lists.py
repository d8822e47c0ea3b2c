"""Lists of images in every form, and what is said where a name has no file."""

import pytest

from segjax.data.folders import Walk
from segjax.data.images import DataError
from segjax.data.lists import Index, read_list


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    for name in ("a", "my b", "deep/c", "#d"):
        for path in (root / f"images/{name}.jpg", root / f"masks/{name}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    return root


def read(root, content):
    file = root / "train.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    images, masks = Walk(root / "images"), Walk(root / "masks")
    return read_list(
        file,
        Index(images.files, images.folder, root, ".jpg"),
        Index(masks.files, masks.folder, root, ".png"),
        masks.by_stem(),
    )


@pytest.mark.parametrize(
    "line",
    [
        *("my b", "my b.jpg", "images/my b.jpg", "./images/my b", "/images/my b.jpg"),
        *("images\\my b.jpg", '"my b.jpg"', "images/../images/my b.jpg"),
        *("images/my b.jpg masks/my b.png", "/images/my b.jpg /masks/my b.png"),
        *("images/my b.jpg\tmasks/my b.png", "images/my b.jpg, masks/my b.png"),
        *('"images/my b.jpg" "masks/my b.png"', "my b.jpg;my b.png", "my b my b"),
        "{root}/images/my b.jpg {root}/masks/my b.png",
    ],
)
def test_forms_of_a_line(root, line):
    content = "\ufeff# a comment\r\n\r\n" + line.format(root=root) + "  \r\n"
    [pair] = read(root, content)
    assert (pair.id, pair.image, pair.mask) == (
        "my b",
        root / "images/my b.jpg",
        root / "masks/my b.png",
    )
    assert pair.listed == "train.txt, line 3"


def test_the_order_is_that_of_the_list(root):
    assert [p.id for p in read(root, "image,mask\ndeep/c\n#d\na\n")] == ["deep/c", "#d", "a"]


def test_another_mask_than_that_of_the_name(root):
    [pair] = read(root, "a.jpg masks/deep/c.png")
    assert pair.mask == root / "masks/deep/c.png"


@pytest.mark.parametrize(
    ("line", "image", "mask"),
    [
        ("z", "images/z.jpg", "masks/z.png"),
        ("images/z.png", "images/z.png", "masks/z.png"),
        ("images/a.jpg masks/z.png", "images/a.jpg", "masks/z.png"),
        ("images/z.jpg masks/a.png", "images/z.jpg", "masks/a.png"),
        ("z.jpg z.png", "images/z.jpg", "masks/z.png"),
    ],
)
def test_missing_files_are_expected_where_they_would_be(root, line, image, mask):
    [pair] = read(root, line)
    assert (pair.image, pair.mask) == (root / image, root / mask)


@pytest.mark.parametrize("line", ["../other/a.jpg", "a.jpg ../masks/a.png", "images/../../a.jpg"])
def test_lists_do_not_leave_the_folder(root, line):
    (root.parent / "a.jpg").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"train.txt, line 1: .* leaves .*root; paths of a list are"
    ):
        read(root, line)


def test_a_name_longer_than_systems_allow_is_no_file(root):
    [pair] = read(root, f"{'x' * 5000}.jpg")
    assert pair.image == root / "images" / f"{'x' * 5000}.jpg"


def test_an_image_stands_there_once(root):
    with pytest.raises(DataError, match=r"train.txt, line 3: .*a.jpg is there already, in line 1"):
        read(root, "a\nmy b\nimages/a.jpg\n")
    with pytest.raises(DataError, match=r"train.txt is empty"):
        read(root, "# nothing\n")
