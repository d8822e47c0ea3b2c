import importlib.util

import flax.linen as nn
import jax
import numpy as np
import pytest

from segjax import topologies
from segjax.config import Config, Train

V5E = topologies.find("v5e:4x4")
HLO = """
  %a.1 = f32[2,64]{1,0:T(2,128)S(1)} all-reduce(%f.4), channel_id=1, to_apply=%region_2.3
  %b = (bf16[8]{0:T(128)}, /*index=5*/f32[3,3,3,8]{3,2,1,0:T(4,128)S(1)}, f32[]) all-reduce(%x, %y)
  %c = pred[5]{0} all-reduce-start(%z), metadata={op_name="jit(f)/all-reduce(f32[9])"}
  %d = pred[5]{0} all-reduce-done(%c)
  %e = f32[100]{0} get-tuple-element(%b), index=1
  %g = f32[100]{0} add(%e, %e), metadata={op_name="all-reduce"}
"""


class Net(nn.Module):
    num_classes: int = 3
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.relu(nn.Conv(8, (3, 3), name="conv1")(image))
        return {"logits": nn.Conv(self.num_classes, (1, 1), name="conv2")(x)}


def program(**changes):
    fields = {
        "flops": 197e9,
        "traffic": 819e6,
        "memory": 10**9,
        "all_reduces": 10,
        "reduced": 10**6,
    }
    return topologies.Program(**fields | changes)


def test_every_name_is_a_slice_of_so_many_chips():
    for name, generation in topologies.GENERATIONS.items():
        for shape in generation.shapes:
            found = topologies.find(f"{name}:{shape}")
            assert found.chips == np.prod([int(side) for side in shape.split("x")])
            assert found.chip.name.endswith(name)
    assert topologies.find("v5p:2x2x4").chips == 16


@pytest.mark.parametrize("name", ["v5e", "v5e:3x5", "v9:4x4", "v5litepod-16", "v5p:4x4", "v5e:4X4"])
def test_another_name_is_refused_with_those_there_are(name):
    with pytest.raises(
        ValueError, match=r"no TPU slice .* v5e and v6e with 2x2, .*16x16; v4 and"
    ) as e:
        topologies.find(name)
    assert repr(name) in str(e.value) and "v5p with 2x2x1" in str(e.value)


def test_without_libtpu_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs libtpu.*pip install '\.\[tpu\]'"):
        topologies.compile_only(V5E)


def test_all_reduces_are_counted_in_the_text_of_a_program():
    number, size = topologies.all_reduces(HLO)
    assert number == 3
    assert size == 4 * 2 * 64 + (2 * 8 + 4 * 3 * 3 * 3 * 8 + 4) + 5


def test_times_are_what_the_makers_promise():
    times = topologies.times(program(), V5E)
    np.testing.assert_allclose((times.operations, times.traffic), 1e-3)
    ring, hops = 2 * 15 / 16 * 1e6 / 200e9, 10 * (4 + 4) * 1e-6
    np.testing.assert_allclose(times.all_reduce, ring + hops)
    np.testing.assert_allclose(times.step, 1e-3 + ring + hops)
    slow = topologies.times(program(traffic=10 * 819e6), V5E)
    np.testing.assert_allclose(slow.step - slow.all_reduce, 1e-2)


def test_past_the_largest_slice_the_network_of_the_data_centre_adds_up():
    one, four = (topologies.times(program(), V5E, chips).all_reduce for chips in (256, 1024))
    np.testing.assert_allclose(four - one, 2 * 3 / 4 * 1e6 / 256 / 3.125e9)
    v5p = topologies.find("v5p:2x2x1")  # 1,024 chips are one slice
    np.testing.assert_allclose(
        topologies.times(program(), v5p, 1024).all_reduce,
        2 * 1023 / 1024 * 1e6 / 600e9 + 10 * 32 * 1e-6,
    )


def test_efficiency_falls_with_the_chips_and_is_one_where_nothing_is_reduced():
    falling = [topologies.efficiency(program(), V5E, chips) for chips in topologies.SCALES]
    assert falling == sorted(falling, reverse=True) and 0.5 < falling[-1] < falling[0] < 1
    alone = program(all_reduces=0, reduced=0)
    assert topologies.efficiency(alone, V5E, 1024) == 1


def test_what_does_not_fit_is_said_in_the_words_of_the_compiler():
    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
                "memory required (23.50G) exceeds available HBM (15.75G).\nSee https://openxla.org"
            )

    with pytest.raises(
        topologies.TooLargeError, match=r"^Ran out of .* available HBM \(15.75G\)\.$"
    ):
        topologies.compiled(Lowered())


def test_advice_is_what_the_configuration_has_left():
    assert topologies.smaller(Config(model=Net()), 4) == (
        "a smaller --batch or --config.model.dtype=bfloat16 or a smaller --crop"
    )
    assert topologies.smaller(Config(model=Net(dtype="bfloat16")), 1) == "a smaller --crop"


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_step_compiles_for_a_slice_that_is_not_there_by_both_engines():
    made, other, quick = (
        topologies.train_step(
            Config(model=Net(), train=Train(engine=engine)),
            topologies.find("v5e:2x2"),
            (32, 48),
            2,
            quick=quick,
        )
        for engine, quick in (("pmap", False), ("shard_map", False), ("pmap", True))
    )
    assert made == other
    assert quick.reduced == made.reduced and quick.memory >= made.memory
    parameters = 3 * 3 * 3 * 8 + 8 + 8 * 3 + 3
    assert made.all_reduces >= 2
    # gradients, the count of valid pixels, and the loss
    assert 4 * parameters <= made.reduced <= 4 * parameters + 16
    pixels = 2 * 32 * 48
    convolutions = pixels * 2 * (2 * 3 * 3 * 3 * 8 + 3 * 8 * 3)
    assert 0.9 * convolutions < made.flops < convolutions + 1000 * pixels
    assert pixels * 4 + 8 * parameters < made.memory < 10**8
    assert jax.default_backend() == "cpu"
