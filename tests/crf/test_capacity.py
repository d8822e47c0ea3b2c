"""Planned capacities, those that a program chooses from, and what happens where none is enough."""

import functools

import jax
import numpy as np
import pytest

from segjax import crf
from segjax.crf import capacity
from tests.crf import reference

LOGITS, IMAGE = reference.random_problem(16, 20, 5)


def vertices(image, kernels, mask=None) -> int:
    """The largest number of vertices of a lattice, as the program itself counts."""
    return int(capacity.count(image, mask, kernels))


class Programs:
    """Counts what is compiled inside a `with` block."""

    def __enter__(self):
        self.number, self.counting = 0, True
        jax.monitoring.register_event_duration_secs_listener(self.listen)
        return self

    def listen(self, event, duration, **_):
        self.number += self.counting and event == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *_):
        self.counting = False


class TestManySizes:
    """A data set of pictures of many sizes and textures, each padded to one size."""

    canvas = (20, 28)
    kernels = (crf.Bilateral(8.0, 5.0, 4.0), crf.Spatial(1.5, 3.0))
    logits = np.random.default_rng(0).normal(size=(*canvas, 3)).astype(np.float32)

    def pictures(self):
        rng = np.random.default_rng(1)
        for spread in (1, 2, 4, 8, 16, 32, 64, 128, 256) * 3:
            image, mask = np.full((*self.canvas, 3), 128, np.uint8), np.zeros(self.canvas, bool)
            size = rng.integers(8, self.canvas)
            mask[: size[0], : size[1]] = True
            image[mask] = rng.integers(0, spread, (mask.sum(), 3))
            yield image, mask

    def test_a_compiled_program_serves_all(self):
        infer = jax.jit(functools.partial(crf.mean_field, kernels=self.kernels, num_iterations=1))
        with Programs() as programs:
            found = [infer(self.logits, image, mask=mask) for image, mask in self.pictures()]
        assert programs.number <= 3  # two of them for the tables of the spatial kernel
        assert len(found) == 27
        assert all(np.isfinite(q).all() for q in found)

    def test_planned_capacities_are_few(self):
        alike = {}
        for image, mask in self.pictures():
            planned = crf.plan(image, self.kernels, mask=mask, growth=2)
            alike.setdefault(planned, []).append((image, mask))
        assert 3 < len(alike) <= 7
        capacity, (first, second, *_) = max(alike.items(), key=lambda item: len(item[1]))
        infer = functools.partial(
            crf.mean_field, self.logits, kernels=self.kernels, capacity=capacity, num_iterations=1
        )
        infer(first[0], mask=first[1])
        with Programs() as programs:
            infer(second[0], mask=second[1])
        assert not programs.number  # what it compiled for the first serves the second


class TestCapacity:
    """White noise needs the most vertices that there can be."""

    kernels = (crf.Bilateral(20.0, 3.0, 4.0), crf.Spatial(3.0, 3.0))
    logits, _ = reference.random_problem(40, 48, 5)
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)

    def test_plan_holds_what_the_image_needs(self):
        planned = crf.plan(self.noise, self.kernels)
        assert planned > 2.5 * 40 * 48
        planned = crf.mean_field(self.logits, self.noise, self.kernels, capacity=planned)
        unplanned = crf.mean_field(self.logits, self.noise, self.kernels)
        np.testing.assert_array_equal(planned, unplanned)

    def test_one_program_holds_several_capacities(self, monkeypatch):
        """Four images, each of which needs another one."""
        assert capacity.ladder(4096, 2) == (3 * 4096,)
        monkeypatch.setattr(capacity, "SMALL", 0)  # these are small
        logits, image = np.stack([LOGITS] * 4), np.stack([IMAGE] * 4)
        spread = np.array([1, 12, 20, 250], np.float32).reshape(4, 1, 1, 1)
        values = np.random.default_rng(0).random((4, 16, 20, 2), np.float32) * spread

        def infer(logits, image, values, capacity=None):
            kernel = crf.Features(values, extent=(250.0, 250.0), weight=2.0)
            return crf.mean_field(logits, image, (kernel,), capacity=capacity)

        rungs = np.array(capacity.ladder(320, 2))
        needed = [vertices(IMAGE, (crf.Features(v, (250.0, 250.0)),)) for v in values]
        assert [int((n > rungs).sum()) for n in needed] == [0, 1, 2, 3]
        planned = infer(logits, image, values, capacity=960)
        np.testing.assert_allclose(jax.jit(infer)(logits, image, values), planned, atol=1e-5)
        assert crf.plan(image, (crf.Features(values, (250.0, 250.0)),)) == 960

    def test_overflow_is_an_error_outside_jit(self):
        with pytest.raises(ValueError, match=r"needs \d+ lattice vertices and capacity is 3000"):
            crf.mean_field(self.logits, self.noise, self.kernels, capacity=3000)

    infer = staticmethod(jax.jit(functools.partial(crf.mean_field, kernels=kernels, capacity=3000)))

    def test_overflow_is_nan_under_jit_everywhere(self):
        assert np.isnan(self.infer(self.logits, self.noise.astype(np.float32))).all()
        calm = np.full(self.noise.shape, 128, np.float32)
        assert np.isfinite(self.infer(self.logits, calm)).all()

    def test_an_image_outside_0_to_255_is_nan_under_jit(self):
        assert np.isnan(self.infer(self.logits, np.full(self.noise.shape, 300, np.float32))).all()

    def test_plan_uses_few_capacities(self):
        rng = np.random.default_rng(0)
        fine, coarse = set(), set()
        for spread in (1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 64, 256):
            image = rng.integers(0, spread, (40, 48, 3)).astype(np.uint8)
            needed = vertices(image, self.kernels)
            fine.add(crf.plan(image, self.kernels))
            assert needed <= crf.plan(image, self.kernels) <= max(1.19 * needed + 1, 240)
            coarse.add(crf.plan(image, self.kernels, growth=2))
            assert needed <= crf.plan(image, self.kernels, growth=2) <= max(2 * needed + 1, 240)
        assert len(coarse) < len(fine) < 14
        assert coarse <= {240, 480, 960, 1920, 3840, 7680, 11520}
        with pytest.raises(ValueError, match=r"growth is 1; it is above 1"):
            crf.plan(self.noise, self.kernels, growth=1)
