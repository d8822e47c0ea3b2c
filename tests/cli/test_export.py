"""segjax export."""

import jax
import numpy as np
import pytest

from segjax.cli import main as cli
from tests.cli.runs import said


def test_export_writes_a_program_that_predicts_the_same(run, seg, tmp_path, capsys):
    pytest.importorskip("flatbuffers", reason="needed to serialise a program")
    file = tmp_path / "model.stablehlo"
    assert cli.main(["export", str(run), str(file), "--size=32x64", "--platforms=cpu"]) == 0
    assert f"{file} " in said(capsys)[0]
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 64, 3)).astype(np.uint8)
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    expected = seg(image[0], canvas=(32, 64)).labels
    np.testing.assert_array_equal(program.call(image)["labels"][0], expected)
    assert cli.main(["export", str(run), str(file), "--crf"]) == 2
    assert "the lattice of a CRF is of a fixed size" in said(capsys)[1]
