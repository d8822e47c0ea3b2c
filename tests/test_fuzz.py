"""A few of the damaged inputs of benchmarks/fuzz.py."""

import pathlib

import pytest
from PIL import Image


def test_damaged_inputs_are_read_or_refused_in_our_words(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[1] / "benchmarks")
    import fuzz

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000_000)
    refused = 0
    for kind in fuzz.KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        row = fuzz.tried(kind, 12, 1, folder)
        assert not row["foreign"], row["examples"]
        refused += row["refused"]
    assert 40 < refused < 120


def test_an_error_of_another_library_is_foreign(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[1] / "benchmarks")
    import fuzz

    with pytest.raises(ValueError) as error:
        fuzz.config.Input(mean=int("x"))
    assert not fuzz.own(error.value)
    with pytest.raises(ValueError) as error:
        fuzz.labels.parse_label_map("x")
    assert fuzz.own(error.value)
