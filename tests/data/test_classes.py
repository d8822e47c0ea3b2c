"""Lists of classes as people and annotation tools write them: read, or refused by line."""

import pytest

from segjax.data.classes import read_classes
from segjax.data.images import DataError

ROAD, SKY = (128, 64, 128), (70, 130, 180)


def read(tmp_path, content, name="classes.txt"):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_classes(file)


COLOURED = {
    "after": "road 128 64 128\nblue sky 70 130 180\n",
    "before": "128 64 128 road\n70 130 180 blue sky\n",
    "before a tab": "128 64 128\troad\n70 130 180\tblue sky\n",
    "commas": "road,128,64,128\nblue sky,70,130,180\n",
    "commas, blanks, quotes": '"road", 128, 64, 128\n"blue sky", 70, 130, 180\n',
    "semicolons": "road;128;64;128\nblue sky;70;130;180",
    "head line": "name,r,g,b\nroad,128,64,128\nblue sky,70,130,180\n",
    "head line in another order": "r,g,b,class\n128,64,128,road\n70,130,180,blue sky\n",
    "head line with ids": "id,name,r,g,b\n1,blue sky,70,130,180\n0,road,128,64,128\n",
    "id in front": "0 road 128 64 128\n1 blue sky 70 130 180\n",
    "id, colour, name": "0,128,64,128,road\n1,70,130,180,blue sky\n",
    "hexadecimal": "road #804080\nblue sky #4682B4\n",
    "CVAT": "# label:color_rgb:parts:actions\nroad:128,64,128::\nblue sky:70,130,180::\n",
    "JSON objects": '[{"name": "road", "color": [128, 64, 128]},'
    ' {"name": "blue sky", "color": "#4682b4"}]',
    "JSON by name": '{"road": [128, 64, 128], "blue sky": [70, 130, 180]}',
}


@pytest.mark.parametrize("form", COLOURED)
def test_names_with_colours(tmp_path, form):
    names, codes = read(tmp_path, COLOURED[form])
    assert names == ("road", "blue sky")
    assert codes == {0: 0, 1: 1, 255: 255, ROAD: 0, SKY: 1}


@pytest.mark.parametrize(
    "content",
    [
        *("road\nblue sky\n", "0: road\n1: blue sky", "0 road\n1 blue sky", "road,blue sky"),
        *(
            "0,road\n1,blue sky",
            "road\t0\nblue sky\t1",
            "0. road\n1. blue sky",
            "# a\nroad\nblue sky",
        ),
        *('["road", "blue sky"]', '{"0": "road", "1": "blue sky"}', '{"road": 0, "blue sky": 1}'),
        '{"classes": [{"title": "road"}, {"title": "blue sky"}]}',
    ],
)
def test_names_alone(tmp_path, content):
    assert read(tmp_path, content) == (("road", "blue sky"), {0: 0, 1: 1, 255: 255})


def test_numbers_of_names_are_no_ids(tmp_path):
    names, _ = read(tmp_path, "class 1\n2 wheeler\nlevel 2\n")
    assert names == ("class 1", "2 wheeler", "level 2")


def test_numbers_that_do_not_begin_at_0(tmp_path):
    names, codes = read(tmp_path, "7: road\n11: sky\n4: void\n")
    assert names == ("road", "sky") and codes == {4: 255, 7: 0, 11: 1, 255: 255}


def test_what_is_ignored_keeps_its_place(tmp_path):
    names, codes = read(tmp_path, "road 1 1 1\nVoid 0 0 0\nsky 2 2 2\n")
    assert names == ("road", "sky")
    assert codes == {0: 0, 1: 255, 2: 1, 255: 255, (1, 1, 1): 0, (0, 0, 0): 255, (2, 2, 2): 1}
    # labelme counts from its second line
    names, codes = read(tmp_path, "__ignore__\n_background_\ncar\n", "class_names.txt")
    assert names == ("_background_", "car") and codes == {0: 0, 1: 1, 255: 255}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names 0 classes; 1 to 255 are needed: a name a line"),
        ("void\n", "names 0 classes"),
        ("road 128 64 300", r"line 1: the colour \(128, 64, 300\) is above 255"),
        ("road\n128 64 128", "line 2: '128 64 128' is no class; written are a name a line"),
        ("road\n" + "9" * 5000 + ",1,2", "line 2: .* is no class"),
        ("road,1,2", "line 1: 'road,1,2' is no class"),
        ("road,1,2,3,4", "line 1: 'road,1,2,3,4' is no class"),
        ("road 1 1 1\nsky", "line 2: either every class has a colour or none"),
        ("0: road\nsky", "line 2: either every class has a number or none"),
        ("0: road\n0: sky", "line 2: the number 0 is taken by another line"),
        ("road 1 1 1\nsky 1 1 1", r"line 2: the colour \(1, 1, 1\) is above 255 or taken"),
        ("road\nroad", "line 2: the class 'road' is there twice"),
        ("name,r,g,b\nroad,1,2", "line 2: 'road,1,2' has 3 columns, the first line 4"),
        ('{"road": ', "is no JSON"),
        ('[{"color": [1, 2, 3]}]', "classes.txt, 0: .* is no class; it has no name"),
        ('{"road": [1, 2]}', r"classes.txt, road: \[1, 2\] is no colour"),
    ],
)
def test_what_cannot_be_understood_is_named_by_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)
