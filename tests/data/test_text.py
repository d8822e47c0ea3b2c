"""Text files as Windows, editors and programs write them."""

import pytest

from segjax.data import text
from segjax.data.images import DataError

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    file = tmp_path / "a.txt"
    file.write_bytes(end.join(["road", "", "  Stra\xdfe \t", "last"]).encode(encoding))
    assert text.read_lines(file) == [(1, "road"), (3, "Stra\xdfe"), (4, "last")]


def test_marks_between_joined_files_and_the_end_of_dos(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"a\n" + b"\xef\xbb\xbf" + b"b\nc\xc2\xa0\x0bd\n\x1a")
    assert text.read_lines(file) == [(1, "a"), (2, "b"), (3, "c\xa0\x0bd")]


@pytest.mark.parametrize("encoding", ["latin-1", "shift-jis"])
def test_another_encoding_is_refused_with_file_and_line(tmp_path, encoding):
    file = tmp_path / "classes.txt"
    file.write_bytes(b"road\n" + {"latin-1": b"Stra\xdfe", "shift-jis": b"\x8e\xd4"}[encoding])
    with pytest.raises(DataError, match=r"classes.txt, line 2: '.*\\\\x.*' is not UTF-8; save"):
        text.read_lines(file)
    # Names of files may be any bytes.
    assert len(text.read_lines(file, file_names=True)) == 2


def test_what_is_no_text_is_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc\0\0\0")
    with pytest.raises(DataError, match=r"a.txt is no text: it holds the character 0"):
        text.read_lines(file)
    with pytest.raises(DataError, match=r"none.txt cannot be read: No such file"):
        text.read_lines(tmp_path / "none.txt")
