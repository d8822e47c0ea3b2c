"""Median frequency balancing, and the command that prints it."""

import numpy as np
import pytest

from segjax.data import class_weights
from segjax.data.examples import median_frequency
from tests.data.files import folder


def test_median_frequency_by_hand():
    """Frequencies 0.5, 0.1, 0.2: the median is 0.2."""
    weights = median_frequency([50, 10, 40], [100, 100, 200])
    np.testing.assert_allclose(weights, [0.4, 2.0, 1.0], rtol=1e-6)


def test_an_absent_class_weighs_nothing_and_does_not_count():
    weights = median_frequency([50, 0, 10, 40], [100, 0, 100, 200])
    np.testing.assert_allclose(weights, [0.4, 0.0, 2.0, 1.0], rtol=1e-6)
    assert weights.dtype == np.float32


def test_the_command_prints_the_option(tmp_path, capsys):
    root = folder(tmp_path / "raw")
    arguments = ["--name=folder", f"--dir={root}", f"--cache={tmp_path / 'cache'}"]
    for _ in range(2):  # whether or not it is prepared
        class_weights.main(arguments)
        out = capsys.readouterr().out
        assert "class 2" in out and 'median_frequency: --config.loss.class_weights="' in out
        assert "published" not in out  # nobody published any for this folder


def test_the_command_explains_mistakes(tmp_path, capsys):
    with pytest.raises(SystemExit):
        class_weights.main(["--name=folder", f"--dir={tmp_path}"])
    assert "images does not exist" in capsys.readouterr().err
