"""A run that the tests of a file share."""

import pytest

import segjax
from segjax.data import datasets
from tests.cli.runs import save_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    dataset = datasets.DATASETS["shapes"]
    return save_run(tmp_path_factory.mktemp("cli") / "run", dataset.classes, dataset.palette)


@pytest.fixture(scope="module")
def seg(run):
    return segjax.load(run)
