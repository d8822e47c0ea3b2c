import json
import re

import jax
import numpy as np
import pytest

from segjax import checkpoint, pretrained, state, workdir
from segjax import config as config_lib
from segjax.config import Config
from segjax.models import SegNetBasic

CLASSES = ["sky", "[road]", "tree"]


def a_config(**fields):
    return Config(model=SegNetBasic(num_classes=3, width=4), **fields)


def a_run(folder, config, steps=(1,)):
    """The checkpoints of a run, with parameters that tell the step."""
    variables = state.init_variables(config.model, jax.random.key(0), (32, 32), config.crf)
    tx = state.transformation(config, variables["params"])
    metadata = {
        "config": config_lib.to_dict(config),
        "classes": CLASSES,
        "palette": [[0, 0, 0], [9, 9, 9], [255, 0, 0]],
        "class_weights": [1.0, 0.5, 2.0],
    }
    with checkpoint.Checkpoints(folder) as checkpoints:
        for step in steps:
            new = jax.tree.map(lambda leaf: leaf + step, variables)  # noqa: B023
            now = state.create(new, tx)
            checkpoints.save(step, now, position={}, metadata=metadata)
            checkpoints.score(step, {"mean_iou": 1 / step})
            checkpoints.wait()
    return variables


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    refused = pytest.raises(ValueError, match=r"a is in use: another segjax train")
    with workdir.only_one(tmp_path / "a"), refused, workdir.only_one(tmp_path / "a"):
        pass
    with workdir.only_one(tmp_path / "a"), workdir.only_one(tmp_path / "b"):
        pass


def test_classes_of_the_data_are_those_of_the_checkpoint(capsys):
    workdir.compare_classes(CLASSES, tuple(CLASSES))
    assert not capsys.readouterr().err
    workdir.compare_classes(CLASSES, ("sky", "street", "tree"))
    said = " ".join(capsys.readouterr().err.split())
    assert "class 1 is '[road]' in the checkpoint and 'street' in the data; 1 of 3 c" in said
    first = r"class 1 is '\[road\]' in the checkpoint and 'tree' in the data"
    with pytest.raises(ValueError, match=rf"in another order: {first}; .* sky, \[road\], tree"):
        workdir.compare_classes(CLASSES, ("sky", "tree", "[road]"))
    with pytest.raises(ValueError, match=r"3 classes .* have 2: class 2 is 'tree' .*None"):
        workdir.compare_classes(CLASSES, ("sky", "[road]"))


def test_a_run_is_what_its_checkpoint_says_whatever_config_json_says(tmp_path):
    config = a_config()
    config.input.mean = (1.0, 2.0, 3.0)
    variables = a_run(tmp_path, config, steps=(1, 2))
    other = a_config()
    workdir.begin(other, tmp_path)
    run = workdir.open_run(tmp_path)
    assert (run.step, run.folder) == (1, tmp_path)  # the best
    assert run.config.input.mean == (1.0, 2.0, 3.0)
    assert (run.classes, run.palette[2]) == (tuple(CLASSES), (255, 0, 0))
    assert run.crfs == {} and run.class_weights.tolist() == [1.0, 0.5, 2.0]
    expected = jax.tree.map(lambda leaf: leaf + 1, variables)
    jax.tree.map(np.testing.assert_array_equal, run.variables, expected)
    for step, path in (("latest", tmp_path), ("best", tmp_path / "checkpoints/2")):
        assert workdir.open_run(path, step).step == 2
    with pytest.raises(ValueError, match="--step=1 is none of it; leave --step out"):
        workdir.open_run(tmp_path / "checkpoints/2", "1")
    (tmp_path / "config.json").write_text("no JSON")
    assert workdir.open_run(tmp_path, "2").config.input == config.input


def test_the_crf_that_was_learnt_and_the_tuned_one_belong_to_the_run(tmp_path):
    config = a_config()
    config.crf.learn = True
    a_run(tmp_path, config)
    tuned = dict(zip(workdir.LETTERS, (4.0, 80.0, 13.0, 3.0, 3.0), strict=True))
    (tmp_path / workdir.TUNED).write_text(json.dumps(tuned))
    assert sorted(workdir.open_run(tmp_path).crfs) == ["learnt", "tuned"]
    (tmp_path / workdir.TUNED).write_text("{}")
    with pytest.raises(ValueError, match=r"crf\.json is no result of segjax tune-crf"):
        workdir.open_run(tmp_path)


def test_a_damaged_checkpoint_is_named_with_the_others(tmp_path):
    a_run(tmp_path, a_config(), steps=(1, 2))
    (tmp_path / "checkpoints/2/metadata/metadata").write_text("{}")
    with pytest.raises(ValueError, match=r"checkpoints/2 is damaged: .*; take another step of 1$"):
        workdir.open_run(tmp_path, "2")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of converted weights, and its description."""
    folder = tmp_path_factory.mktemp("weights")
    config = a_config()
    variables = state.init_variables(config.model, jax.random.key(0), (32, 32))
    metadata = {"config": config_lib.to_dict(config), "classes": CLASSES}
    pretrained.save_weights(folder, variables, metadata)
    return folder, json.loads((folder / "config.json").read_text())


def test_weights_are_opened_like_a_run(weights):
    run = workdir.open_run(weights[0])
    assert run.step is None and run.classes == tuple(CLASSES)
    assert run.palette == workdir.open_run(weights[0] / "weights.safetensors").palette
    assert len(run.palette) == 3
    with pytest.raises(ValueError, match="no steps to choose from; leave --step out"):
        workdir.open_run(weights[0], "3")


@pytest.mark.parametrize(
    "part, changes, named",
    [
        ("model", {"width": "4"}, r"model\.width is '4'; write a whole number"),
        ("model", {"width": 0}, "this network cannot be built"),
        ("model", {"width": -4}, "this network cannot be built"),
        ("model", {"width": 10**30}, "this network cannot be built"),
        ("model", {"width": 6}, "does not fit the network it describes"),
        ("model", {"class": "Norm"}, r"model\.dropout is unknown; .* of Norm"),
        ("optim", {"lr": None}, r"optim\.lr is None; write a finite number"),
        ("crf", {"alpha": 0}, r"crf\.alpha is 0"),
        (None, {"classes": "sky"}, "classes is 'sky'; it must be a list of names"),
        (None, {"classes": ["sky", 1, 2]}, "it must be a list of names"),
        (None, {"classes": ["sky"]}, "classes has 1 entries, but model.num_classes is 3"),
        (None, {"palette": [[0, 0, 0]]}, "palette has 1 entries"),
        (None, {"palette": 3}, r"palette is 3; it must be a list of \[red, green, blue\]"),
        (None, {"palette": [[0, 0, 256]] * 3}, "palette is"),
        (None, {"palette": [[0, 0], [0], [0]]}, "palette is"),
        (None, {"class_weights": [1, 2]}, r"class_weights is \[1, 2\]; it must be 3 numbers"),
        (None, {"class_weights": "abc"}, "class_weights is 'abc'"),
        (None, {"config": 3}, "is no network of segjax"),
    ],
)
def test_a_description_that_is_wrong_is_named(weights, tmp_path, part, changes, named):
    folder, described = weights
    described = json.loads(json.dumps(described))
    (described["config"][part] if part else described).update(changes)
    (tmp_path / "weights.safetensors").symlink_to(folder / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))} .*{named}"):
        workdir.open_run(tmp_path)


def test_what_is_no_network_is_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        workdir.open_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        workdir.open_run(tmp_path)
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.pth is a file; .*segjax convert"):
        workdir.open_run(tmp_path / "a.pth")
