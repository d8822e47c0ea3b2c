import csv
import json

import numpy as np

from segjax import log


def rows(path):
    return [
        {k: v for k, v in row.items() if v} for row in csv.DictReader(path.read_text().splitlines())
    ]


def test_rows_after_the_step_gone_on_from_are_dropped(tmp_path):
    with log.Log(tmp_path, step=0) as writer:
        for step in (2, 4, 6):
            writer.write(step, {"loss": step / 2})
        writer.write(6, {"mean_iou": 0.5, "unknown": 1.0})
        writer.picture(6, "val", np.zeros((4, 4, 3), np.uint8))
    with log.Log(tmp_path, step=4) as writer:
        writer.write(6, {"loss": 9.0})
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "2", "loss": "1.0"},
        {"step": "4", "loss": "2.0"},
        {"step": "6", "loss": "9.0"},
    ]
    assert list((tmp_path / "tb").glob("events.out.tfevents*"))


def test_environment_names_versions_and_devices():
    found = log.environment()
    assert found["packages"]["jax"] and found["devices"] and found["processes"] == 1
    json.dumps(found)
