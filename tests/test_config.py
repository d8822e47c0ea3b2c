import contextlib
import dataclasses
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings, strategies

from segjax import config as config_lib
from segjax.cli import overrides
from segjax.config import Config, Optim
from segjax.models import DeepLabV2ResNet, Norm, SegNet
from segjax.workdir import model_classes


def test_json_round_trip_keeps_every_field():
    config = Config(model=SegNet(num_classes=5))
    config.model.norm.decay = 0.97
    config.augment.scales = (0.5, 1.5)
    config.optim.lr_multipliers = {"head/.*": 10.0}
    config.loss.heads = {"logits": 1.0, "aux": 0.4}
    text = json.dumps(config_lib.to_dict(config))
    again = config_lib.from_dict(json.loads(text), model_classes())
    assert again.model.norm == config.model.norm
    assert type(again.model) is SegNet and again.model.num_classes == 5
    for field in dataclasses.fields(Config):
        if field.name != "model":
            assert getattr(again, field.name) == getattr(config, field.name)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda d: d["model"].update({"class": "UNet"}), "UNet"),
        (lambda d: d["model"].update({"depth": 3}), r"model\.depth is unknown; fields of SegNet"),
        (lambda d: d["model"].update({"parent": 3}), r"model\.parent is unknown"),
        (lambda d: d["model"]["norm"].update({"class": "SegNet"}), r"model\.norm\.axis_name is u"),
        (lambda d: d["model"].update({"norm": 3}), r"model\.norm is 3; it is a Norm"),
        (lambda d: d["optim"].update({"adam": 1}), "optim.adam"),
        (lambda d: d.update({"gpu": {}}), "gpu"),
        (lambda d: d.pop("model"), "no part 'model'"),
    ],
)
def test_json_of_another_version_is_refused_by_name(change, named):
    values = config_lib.to_dict(Config(model=SegNet(num_classes=5)))
    change(values)
    with pytest.raises(ValueError, match=named):
        config_lib.from_dict(values, model_classes())


VALUES = (None, True, -1, 2.5, "x", "", [], [1], [[1, 2]], {}, {"class": "Norm"}, {"a": 1}, 10**400)


@settings(max_examples=500, derandomize=True, deadline=None)
@given(data=strategies.data())
def test_damaged_configurations_are_refused_in_our_words(data):
    """Whatever one of the values is, the configuration is built, or ValueError says why not."""
    values = json.loads(json.dumps(config_lib.to_dict(Config(model=SegNet(num_classes=5)))))
    holder = values
    while True:
        key = data.draw(strategies.sampled_from(sorted(holder)))
        if isinstance(holder[key], dict) and holder[key] and data.draw(strategies.booleans()):
            holder = holder[key]
            continue
        break
    holder[key] = data.draw(strategies.sampled_from(VALUES))
    with contextlib.suppress(ValueError):
        config_lib.check(config_lib.from_dict(values, model_classes()))


def test_differences_are_named_by_path():
    one = config_lib.to_dict(Config(model=SegNet(num_classes=5)))
    two = json.loads(json.dumps(one))
    two["optim"]["lr"] = 0.5
    two["model"]["num_classes"] = 6
    assert list(config_lib.differences(one, two)) == [
        "model.num_classes: 5 -> 6",
        "optim.lr: 0.01 -> 0.5",
    ]


@pytest.mark.parametrize(
    "field, value, named",
    [
        ("loss.resolution", "full", "loss.resolution is 'full'; accepted are 'label', 'logits'"),
        ("loss.heads", {}, "loss.heads"),
        ("optim.schedule", "cosine", "optim.schedule"),
        ("train.steps", 0, "train.steps is 0"),
        ("input.std", (1.0, 0.0, 1.0), "input.std"),
        ("data.canvas", (5,), 'data.canvas is .* write 2 whole numbers, --config.data.canvas="'),
        ("augment.crop", (32, -48), "augment.crop is .* each is 0 or more"),
        ("augment.crop", ("32x48",), "augment.crop is .* write 2 whole numbers"),
        ("augment.scale_range", (0.5,), "augment.scale_range is .* write 2 numbers"),
        ("augment.scales", ("nan",), "augment.scales is .* write numbers"),
        ("optim.lr", float("inf"), "optim.lr is inf"),
        (
            "loss.heads",
            {"logits": 1.0, "aux": -0.4},
            r"loss\.heads is .* each is 0 or more",
        ),
        ("eval.trimap_widths", (1, 0), "eval.trimap_widths is .* 1 or more"),
        ("train.recompute_batch_stats", -5, "train.recompute_batch_stats is -5; it is -1 or more"),
        ("data.workers", -1, "data.workers is -1"),
        ("optim.end_lr", 0.1, r"optim\.end_lr is 0\.1, above optim\.lr, 0\.01"),
        ("optim", Optim(schedule="step", step_factor=0), r"step_factor is 0; .* above 0"),
        ("optim.lr", "0.1", r"optim\.lr is '0\.1'; write a finite number"),
        ("optim.lr", 10**400, r"optim\.lr is 1000.* write a finite number"),
        ("optim.weight_decay", float("nan"), r"optim\.weight_decay is nan"),
        ("train.seed", 2**32, r"train\.seed is 4294967296; it is from 0 to 4294967295"),
        ("train.batch_size", 6, r"train\.batch_size is 6, .* 4 devices .* --config.*batch_size=8"),
        ("loss.class_weights", "1,2", r"loss\.class_weights is '1,2'; .* and 5 numbers"),
        ("optim", {"lr": 0.1}, r"optim is {'lr': 0\.1}; write a segjax\.config\.Optim"),
        ("model", None, "model is None; write a network of segjax.models"),
        ("model", Norm(), "model is Norm.*; write a network of segjax.models"),
        ("model", SegNet(num_classes="5"), r"model\.num_classes is '5'; write a whole number"),
        ("model", SegNet(num_classes=-1), r"model\.num_classes is -1; it is 1 or more, or 0"),
        ("model", SegNet(num_classes=5, norm=Norm(decay="1")), r"model\.norm\.decay is '1'"),
        (
            "model",
            SegNet(num_classes=5, widths=(4, 0.5)),
            r"model\.widths is .* whole numbers",
        ),
        ("optim.nesterov", 1, r"optim\.nesterov is 1; write True or False"),
        ("train.steps", 10.0, r"train\.steps is 10\.0; write a whole number"),
        ("train.steps", True, r"train\.steps is True; write a whole number"),
        ("optim.freeze", "conv1", r"optim\.freeze is 'conv1'; write texts"),
        ("loss.heads", {"logits": "1"}, r"loss\.heads is .* a dictionary of numbers by name"),
    ],
)
def test_wrong_values_are_named(field, value, named):
    config = Config(model=SegNet(num_classes=5))
    part, _, name = field.rpartition(".")
    setattr(getattr(config, part) if part else config, name, value)
    with pytest.raises(ValueError, match=named):
        config_lib.check(config, devices=4)


def test_a_wrong_dtype_is_named():
    with pytest.raises(ValueError, match=r"model\.dtype is 'bf16'; accepted are 'float32'"):
        config_lib.check(Config(model=SegNet(num_classes=5, dtype="bf16")))


def test_a_run_that_would_make_no_update_is_refused():
    config = Config(model=SegNet(num_classes=5))
    config.train.steps, config.optim.accumulate = 10, 10
    config_lib.check(config)
    config.train.steps = 5
    with pytest.raises(ValueError, match=r"steps is 5 and optim\.accumulate is 10.*accumulate=5"):
        config_lib.check(config)


def test_statistics_of_several_scales_are_refused():
    config = Config(model=DeepLabV2ResNet(num_classes=5))
    config.train.recompute_batch_stats = -1
    with pytest.raises(ValueError, match="whose statistics differ; write 0"):
        config_lib.check(config)


def test_statistics_that_are_frozen_are_not_measured():
    config = Config(model=SegNet(num_classes=5, norm=Norm(frozen=True)))
    config_lib.check(config)
    config.train.recompute_batch_stats = 20
    with pytest.raises(ValueError, match="keeps the statistics as they are"):
        config_lib.check(config)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--config.optim.lrr=1"], "no field 'lrr'. Did you mean 'lr'?"),
        (["--config.model.stride=1"], "SegNetBasic has no field 'stride'"),
        (["--config.optim.lr=fast"], "could not convert string to float: 'fast'"),
        (["--config.train.steps=0"], "train.steps is 0"),
        (["--config.augment.flip=1.5"], "augment.flip is 1.5; it is from 0 to 1"),
        (["--config.data.name=voc"], "voc"),
        (["--config.model.num_classes=3"], "--config.model.num_classes="),
        (["--config.model.width=0"], "this network cannot be built"),
        (["--config.train.batch_sise=3"], "batch_size"),
        (["--config.data.cache=/dev/null/x"], "/dev/null/x"),
        (["--workdir="], "--workdir is empty"),
    ],
)
def test_mistakes_on_the_command_line_end_with_one_message(tmp_path, arguments, named):
    command = [sys.executable, "train.py", "--config=configs/demo.py", f"--workdir={tmp_path}/w"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode != 0
    assert named in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w" / "config.json").exists()


def test_dictionaries_are_changed_whole():
    change = ["--config.loss.heads={'logits': 1, 'aux': 0.4}", "--config.optim.lr_multipliers={}"]
    config = overrides.read("deeplab_v1_voc", change)
    assert config.loss.heads == {"logits": 1.0, "aux": 0.4}
    assert config.optim.lr_multipliers == {}
    assert (
        overrides.changed(config, ["--config.loss.heads={'logits': 2}"]).loss.heads["logits"] == 2
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("loss.heads=3", 'write a dictionary of numbers, {"logits": 1.0, "aux": 0.4}'),
        ("loss.heads={1: 2}", "write a dictionary of numbers"),
        ("loss.heads={'logits': 'a'}", "write a dictionary of numbers"),
        ("loss.heads.aux=1", """whole, --config.loss.heads="{'logits': 1.0}"$"""),
        ("data.nam=voc", "no field 'nam'. Did you mean 'name'?"),
    ],
)
def test_wrong_dictionaries_and_names_are_explained(change, named):
    with pytest.raises(ValueError, match=named.replace("{", r"\{").replace("?", r"\?")):
        overrides.read("demo", [f"--config.{change}"])


FAULTS = {  # of a configuration's file, and what is said of them
    "no function": ("x = 1", r"mine\.py: has no function get_config\(\); the file must end in"),
    "no return": ("def get_config():\n    Config(model=None)", r"get_config\(\) returns no Config"),
    "no Python": ("def get_config(:", r"mine\.py: SyntaxError: .*line 2"),
    "no such name": (
        "def get_config():\n    return Config(model=Net())",
        "line 3, NameError: .*Net",
    ),
    "no such field": (
        "def get_config():\n    return Config(model=None, data=Data(naem='folder'))",
        r"mine\.py: line 3, Data has no field 'naem'\. Did you mean 'name'\? Its fields: name, dir",
    ),
    "no such field of a network": (
        "def get_config():\n    return Config(model=SegNet(5, wdith=8))",
        r"line 3, SegNet has no field 'wdith'\. Did you mean 'widths'\?",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("changes", [(), ("--config.optim.lr=0.1",)])
def test_a_faulty_file_is_explained(tmp_path, fault, changes):
    text, message = FAULTS[fault]
    path = tmp_path / "mine.py"
    path.write_text(f"from segjax.config import *; from segjax.models import SegNet\n{text}\n")
    with pytest.raises(ValueError, match=message):
        overrides.read(str(path), changes)


def test_of_a_field_that_is_given_twice_the_last_counts():
    twice = ("--config.augment.crop=(32, 48)", "--config.augment.crop=(64, 64)")
    assert overrides.read("demo", twice).augment.crop == (64, 64)
    assert overrides.changed(Config(model=None), twice).augment.crop == (64, 64)


@pytest.mark.parametrize("name", ["augment.crop[a+b]", "augment.crop["])
def test_a_name_that_cannot_be_parsed_is_shown(name):
    with pytest.raises(ValueError, match=re.escape(f"--config.{name}=3: Augment has no field")):
        overrides.read("demo", [f"--config.{name}=3"])
    with pytest.raises(ValueError):
        overrides.changed(Config(model=SegNet(num_classes=5)), [f"--config.{name}=3"])


def test_the_name_of_the_data_set_survives():
    config = config_lib.Config(model=None, data=config_lib.Data(name="camvid"))
    assert config_lib.from_dict(config_lib.to_dict(config), {}).data.name == "camvid"
