"""The weights that come with the project: small, safe to load, described, and not broken."""

import json
import pathlib

import numpy as np
import pytest
import safetensors

import segjax
from segjax.data.builders.camvid import Camvid
from segjax.data.images import read_image

ROOT = pathlib.Path(__file__).parents[1]
CAMVID = ROOT.parent / "shared" / "data" / "camvid"
FOLDERS = sorted(path.parent for path in (ROOT / "weights").glob("*/config.json"))


def test_there_are_some():
    assert [folder.name for folder in FOLDERS] == ["segnet_basic_camvid"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_small_and_described(folder):
    file = folder / "weights.safetensors"
    assert file.stat().st_size < 12e6
    with safetensors.safe_open(file, framework="np") as tensors:
        types = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    assert types == {"BF16", "F32"}
    about = json.loads((folder / "config.json").read_text())
    score = about["provenance"]["scores"]["mean_iou"]
    assert score > 0.4 and not about["config"]["data"]["dir"]
    card = " ".join((folder / "README.md").read_text().split())
    assert f"{100 * score:.1f}" in card
    for part in ("CC BY-NC", "segjax train --config=", "commit", "segjax predict weights/"):
        assert part in card, part


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_sky_is_above_and_road_below(folder):
    """A bright half over a dark one, with little noise: CamVid's skies are overexposed."""
    rng = np.random.default_rng(0)
    image = np.full((180, 240, 3), (235, 245, 255), np.float32)
    image[90:] = (60, 60, 65)
    image = np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
    segment = segjax.load(folder)
    labels = segment(image, canvas=(180, 240)).labels
    assert labels.shape == (180, 240)
    assert (labels[:60] == segment.classes.index("sky")).mean() > 0.9
    assert (labels[120:] == segment.classes.index("road")).mean() > 0.9


@pytest.mark.skipif(not CAMVID.exists(), reason="needs CamVid beside the project")
def test_val_images_are_labelled():
    segment = segjax.load(ROOT / "weights" / "segnet_basic_camvid")
    right = labelled = 0
    for pair in Camvid(str(CAMVID), "val").pairs[::25]:
        truth = read_image(pair.mask.read_bytes())[..., 0]
        labels = segment(read_image(pair.image.read_bytes()), canvas=truth.shape).labels
        right += ((labels == truth) & (truth < 11)).sum()
        labelled += (truth < 11).sum()
    assert right / labelled > 0.7
