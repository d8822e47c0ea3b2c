"""The command for an accelerator: its parts, what is missing, and its summary."""

import argparse
import json
import pathlib

import pytest

from experiments import accelerator
from segjax import config as config_lib


def arguments(tmp_path, **changes):
    values = {"minutes": 1.5, "out": tmp_path, "data": tmp_path, "scale": "small"}
    return argparse.Namespace(**{**values, **changes})


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_parts_exist_and_networks_can_be_trained(tmp_path, scale):
    found = accelerator.parts(arguments(tmp_path, scale=scale))
    assert [part.name for part in found[4:]] == list(accelerator.NETWORKS)
    assert all((accelerator.ROOT / part.words[0]).exists() for part in found[:4])
    for name in accelerator.NETWORKS:
        config_lib.check(accelerator.network(name, scale).config)
    assert len(accelerator.parts(arguments(tmp_path, data=None))) == 4


def test_missing_packages_are_named():
    assert accelerator.missing(("json", "no_such_package", "no.such")) == [
        "no_such_package",
        "no.such",
    ]


def test_the_summary_is_written_after_each_part(tmp_path, monkeypatch):
    words = {"good": "print(1)", "bad": "raise ValueError('a reason')"}
    found = [accelerator.Part(n, ("-c", w), 0.1) for n, w in words.items()]
    monkeypatch.setattr(accelerator, "parts", lambda args: found)
    accelerator.run(arguments(tmp_path, minutes=10))
    summary = (pathlib.Path(tmp_path) / "summary.md").read_text()
    assert "| good | done" in summary and "failed (ValueError: a reason)" in summary
    values = {"origins": [{"devices": ["one"]}], "step": 3, "steps": 4, "scores": {"mean_iou": 0.5}}
    values |= {"images_per_second": 2.0, "peak_bytes": None}
    (tmp_path / "segnet.json").write_text(json.dumps(values))
    accelerator.run(arguments(tmp_path, minutes=0))
    summary = (pathlib.Path(tmp_path) / "summary.md").read_text()
    assert "not started" in summary and "| segnet | one | 3 of 4 | 50.00 | 2.0 |" in summary


def test_a_part_that_takes_too_long_is_stopped(tmp_path):
    part = accelerator.Part("slow", ("-c", "import time; time.sleep(60)"), 1.0)
    assert accelerator._outcome(part, 0.5, tmp_path) == "stopped at its time"
