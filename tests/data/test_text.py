import codecs

import pytest

from segjax.data import text
from segjax.data.images import DataError


def write(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_are_no_part_of_a_line(tmp_path, encoding, end):
    content = end.join(["# a comment", "straße ", "", "sky"]) + end
    lines = text.read_lines(write(tmp_path / "a.txt", content, encoding))
    assert lines == [(2, "straße"), (4, "sky")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("road\nstraße".encode("latin-1"), r"a\.txt, line 2: byte 0xdf is no UTF-8; .*Latin-1"),
        ("road".encode("utf-16-le"), r"a\.txt holds zero bytes: .*UTF-16 without a mark"),
        (codecs.BOM_UTF16_LE + b"r", r"a\.txt, line 1: .* no UTF-8"),
    ],
)
def test_other_encodings_are_named_with_file_and_line(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        text.read_lines(write(tmp_path / "a.txt", content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"b\.txt cannot be read: No such file"):
        text.read_text(tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.png", ["a.png"]),
        ("images/a.png masks/a.png", ["images/a.png", "masks/a.png"]),
        ("images/a b.png\tmasks/a b.png", ["images/a b.png", "masks/a b.png"]),
        ("images/a b.png,masks/a b.png", ["images/a b.png", "masks/a b.png"]),
        ('"images/a b.png" "masks/a b.png"', ["images/a b.png", "masks/a b.png"]),
    ],
)
def test_columns_of_a_list(line, words):
    assert text.columns(line) == words


ROAD, SKY = ("road", (128, 64, 128)), ("blue sky", (70, 130, 180))


@pytest.mark.parametrize(
    "content",
    [
        "road 128 64 128\nblue sky 70 130 180\n",
        "128 64 128\troad\n70 130 180\tblue sky\n",
        "road,128,64,128\nblue sky,70,130,180",
        "name,r,g,b\nroad,128,64,128\nblue sky,70,130,180\n",
        "# label:color_rgb:parts:actions\nroad:128,64,128::\nblue sky:70,130,180::\n",
        '[{"name": "road", "color": [128, 64, 128]},'
        ' {"name": "blue sky", "color": [70, 130, 180]}]',
    ],
)
def test_the_class_lists_that_people_have(tmp_path, content):
    found = text.read_class_list(write(tmp_path / "classes.txt", content))
    assert [(line.name, line.colour) for line in found] == [ROAD, SKY]


def test_names_alone(tmp_path):
    found = text.read_class_list(write(tmp_path / "classes.txt", "road\nblue sky\nlevel 2\n"))
    assert [line.name for line in found] == ["road", "blue sky", "level 2"]
    assert {line.colour for line in found} == {None}
    found = text.read_class_list(write(tmp_path / "classes.json", '["road", "sky"]'))
    assert [line.name for line in found] == ["road", "sky"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("road 128 64 300", "line 1: .* a colour of 0..255"),
        ("road\n128 64 128", "line 2: '128 64 128' is no class"),
        ("road, sky", "line 1: 'road, sky' is no class"),
        ('{"road": 1}', "is no class"),
        ("[1, 2]", "entry 1: 1 is no class"),
    ],
)
def test_what_is_no_class_is_named_by_line(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        text.read_class_list(write(tmp_path / "classes.txt", content))
