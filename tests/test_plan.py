import dataclasses
import io

import flax.linen as nn
import jax
import numpy as np
import pytest
import rich.console

from segjax import plan
from segjax.config import Compile, Config


class Net(nn.Module):
    num_classes: int = 3
    features: int = 8
    remat: bool = False

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.relu(nn.Conv(self.features, (3, 3), name="conv1")(image))
        return {"logits": nn.Conv(self.num_classes, (1, 1), name="conv2")(x)}


PARAMETERS = 3 * 3 * 3 * 8 + 8 + 8 * 3 + 3


CONFIG = Config(model=Net(), compile=Compile(libraries=False))  # oneDNN has buffers of its own


@pytest.fixture(scope="module")
def made():
    return plan.make(CONFIG, [(32, 48), (64, 64)], [1, 4], memory=10**7)


def test_every_crop_and_batch_is_measured(made):
    assert [(p.crop, p.batch) for p in made.points] == [
        ((32, 48), 1),
        ((32, 48), 4),
        ((64, 64), 1),
        ((64, 64), 4),
    ]
    assert made.parameters == PARAMETERS


def test_flops_are_those_of_the_convolutions(made):
    """Forward, gradient of the kernel, and of the input for the second convolution alone.

    A multiply-add is two. The compiler leaves out products with the zeros around the image, and
    adds the loss, the update and the augmentation: a few dozen operations per pixel.
    """
    for point in made.points:
        pixels = point.batch * point.crop[0] * point.crop[1]
        convolutions = pixels * 2 * (2 * 3 * 3 * 3 * 8 + 3 * 8 * 3)
        assert 0.9 * convolutions < point.flops < convolutions + 1000 * pixels


def test_operations_that_are_not_known_are_a_question_mark(made):
    point = dataclasses.replace(made.points[0], flops=None)  # as JAX without a CPU backend
    [cell] = dataclasses.replace(made, points=(point,)).table("plan").columns[2].cells
    assert cell == "?"


def test_resident_memory_is_state_and_batch(made):
    for point in made.points:
        pixels = point.batch * point.crop[0] * point.crop[1]
        state = 2 * PARAMETERS * 4  # parameters and momentum
        batch = pixels * (3 + 1)  # uint8 RGB and labels
        assert state + batch <= point.resident <= state + batch + 2000


def test_memory_grows_with_the_batch_and_the_largest_that_fits_is_on_the_line(made):
    one, four = (p for p in made.points if p.crop == (64, 64))
    assert one.temporary < four.temporary
    batch = made.largest((64, 64))
    each = (four.memory - one.memory) / 3
    assert one.memory + (batch - 1) * each <= made.memory < one.memory + batch * each
    enough = plan.measure(CONFIG, (64, 64), batch)
    np.testing.assert_allclose(enough.memory, made.memory, rtol=0.1)


def test_table_says_what_fits(made):
    def text(**changes):
        console = rich.console.Console(width=120, file=io.StringIO())
        console.print(dataclasses.replace(made, **changes).table("title"))
        return console.file.getvalue()

    assert "yes" in text() and " no " not in text()
    assert " no " in text(memory=1000) and "yes" not in text(memory=1000)
    assert "64x64: about 0 images fit" in text(memory=1000)
    unknown = text(memory=None)
    assert "--memory=GB" in unknown and "yes" not in unknown


def test_table_says_where_maps_are_computed_twice(made):
    again = Config(model=Net(remat=True), compile=CONFIG.compile)
    assert plan.make(again, [(8, 8)], [1]).remat and not made.remat
    note = "GFLOP include what model.remat computes twice"
    assert note in dataclasses.replace(made, remat=True).table("title").caption
    assert note not in made.table("title").caption


def test_one_batch_tells_nothing_about_others(made):
    alone = dataclasses.replace(made, points=made.points[:1])
    assert alone.largest((32, 48)) is None


def test_memory_of_this_machine():
    assert plan.device_memory() > 1e8
    assert jax.local_devices()[0].platform == "cpu"
