import concurrent.futures
import json
import pathlib
import re

import pytest

from segjax import files, paths


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    files.write_json(tmp_path / "a" / "b.json", {"x": [1, None]})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": [1, None]}
    with pytest.raises(ValueError, match=r"b.json/c.json cannot be written"):
        files.write_json(tmp_path / "a" / "b.json" / "c.json", {})
    with pytest.raises(KeyError), files.whole_file(tmp_path / "a" / "b.json") as file:
        file.write(b"half")
        raise KeyError
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": [1, None]}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]


def test_several_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    texts = [str(i) * 100_000 for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: files.write_text(path, text), texts * 4))
    assert path.read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match="file cannot be written: No space left on device"):
        files.write_text(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())


def test_a_name_with_a_tilde_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_text("~no one", "text")
    assert (tmp_path / "~no one").read_text() == paths.of("~no one").read_text() == "text"
    assert paths.of("~/a") == pathlib.Path.home() / "a"


def test_a_file_that_must_be_here_is_no_address():
    named = r"^a picture is http://a/b\.jpg: it must be on a disk of this machine$"
    with pytest.raises(ValueError, match=named):
        paths.local("http://a/b.jpg", "a picture")


@pytest.mark.parametrize("part", ["..", ".", "", "../../.."])
def test_no_address_in_a_bucket_leads_out_of_its_copies(part, monkeypatch):
    monkeypatch.setattr(paths, "_reached", {"bucket"})
    with pytest.raises(ValueError, match=r"^gs://bucket/.*: no part of an address in a bucket"):
        paths.of(f"gs://bucket/{part}/other")
    about = paths.Object(1, 0, "")
    monkeypatch.setattr(paths, "objects", lambda folder: {f"{part}/file": about})
    with pytest.raises(ValueError, match=f"^gs://bucket/other holds '{re.escape(part)}/file', wh"):
        files.mirror(paths.of("gs://bucket/other"))


@pytest.mark.parametrize("name", ["n" * 255, "字" * 85], ids=["ASCII", "CJK"])
def test_the_longest_name_that_a_file_may_have(tmp_path, name):
    files.write_text(tmp_path / name, "text")
    assert [p.name for p in tmp_path.iterdir()] == [name]
