"""A run of an untrained network, pictures, and what a command printed."""

import json

import jax
import numpy as np
from PIL import Image

from segjax import checkpoint, state
from segjax.config import Config, Data, Input, to_dict
from segjax.models import SegNetBasic


def save_run(folder, classes, palette):
    """A run of a small network with random weights."""
    model = SegNetBasic(num_classes=len(classes), width=4)
    data = Data(dir=str(folder.parent / "data"), canvas=(64, 96))
    config = Config(model=model, data=data, input=Input(mean=(9.0, 9.0, 9.0)))
    variables = state.init_variables(model, jax.random.key(0), (32, 32))
    tx = state.transformation(config, variables["params"])
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    metadata = {"config": to_dict(config), "classes": classes, "palette": palette}
    with checkpoint.Checkpoints(folder) as checkpoints:
        now = state.create(variables, tx)
        checkpoints.save(3, now, position={}, metadata=json.loads(json.dumps(metadata)))
    return folder


def picture(path, size=(40, 60), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)
    return path


def said(capsys):
    captured = capsys.readouterr()
    return captured.out, " ".join(captured.err.split())
