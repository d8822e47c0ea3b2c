import pytest

from segjax import workdir


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    refused = pytest.raises(ValueError, match=r"a is in use: another train\.py")
    with workdir.only_one(tmp_path / "a"), refused, workdir.only_one(tmp_path / "a"):
        pass
    with workdir.only_one(tmp_path / "a"), workdir.only_one(tmp_path / "b"):
        pass
