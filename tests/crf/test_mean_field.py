"""Mean field: exact against numpy, and what must not change the result."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import crf
from tests.crf import reference
from tests.crf.test_capacity import vertices

KERNELS = (crf.Bilateral(6.0, 20.0, 3.0), crf.Spatial(2.0, 1.5))

# One problem for what is to hold for every problem: programs are shared between tests.
LOGITS, IMAGE = reference.random_problem(16, 20, 5)


def infer(logits, image=IMAGE, **options):
    return crf.mean_field(logits, image, **{"kernels": KERNELS, "capacity": 1920, **options})


@pytest.mark.parametrize("normalization", ["symmetric", "after", "before", "none"])
@pytest.mark.parametrize("size", [24, 32])
def test_exact_equals_numpy(size, normalization):
    """The bilateral and the spatial kernel have Potts and full compatibility once each."""
    logits, image = reference.random_problem(size, size, 5)
    rng = np.random.default_rng(4)
    own = rng.normal(size=(size, size, 4)).astype(np.float32)
    scale = np.float32(1 if normalization != "none" else 0.01)
    potts, classes = scale * np.float32(3), scale * rng.uniform(0.5, 3, 5).astype(np.float32)
    matrix = scale * rng.normal(size=(5, 5)).astype(np.float32)
    bilateral, spatial = (potts, matrix) if size == 24 else (matrix, potts)
    kernels = (
        crf.Bilateral(6.0, 20.0, bilateral),
        crf.Spatial(2.0, spatial),
        crf.Features(own, extent=(10.0,) * 4, weight=classes),
    )
    expected = reference.mean_field(logits, image, kernels, 5, normalization)
    result = crf.mean_field(
        logits, image, kernels, num_iterations=5, normalization=normalization, filter="exact"
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("normalization", ["symmetric", "after", "before", "none"])
def test_lattice_is_near_exact(normalization):
    weights = (3.0, 1.5) if normalization != "none" else (0.03, 0.015)
    kernels = tuple(dataclasses.replace(k, weight=w) for k, w in zip(KERNELS, weights))
    options = {"kernels": kernels, "normalization": normalization}
    lattice = infer(LOGITS, **options)
    exact = reference.mean_field(LOGITS, IMAGE, num_iterations=10, **options)
    assert float(jnp.abs(lattice - exact).mean()) < 0.01
    assert float((lattice.argmax(-1) == exact.argmax(-1)).mean()) > 0.97


def test_nystrom_is_near_exact_for_wide_kernels_and_keeps_pixels_apart_for_narrow_ones():
    logits, image = reference.random_problem(32, 48, 4)
    for sigma_rgb, near in ((40.0, 2e-3), (1.0, 2e-2)):
        kernels = (crf.Bilateral(20.0, sigma_rgb, 4.0), crf.Spatial(2.0, 2.0))
        low_rank = crf.mean_field(logits, image, kernels, filter="nystrom")
        exact = reference.mean_field(logits, image, kernels, 10)
        assert float(jnp.abs(low_rank - exact).mean()) < near


def test_separable_and_planar_spatial_kernels_agree():
    kernels = (crf.Spatial(2.0, 2.0), crf.Spatial(20.0, 1.0))
    planar = infer(LOGITS, kernels=kernels)
    separable = infer(LOGITS, kernels=kernels, spatial_filter="separable")
    expected = reference.mean_field(LOGITS, IMAGE, kernels, 10)
    np.testing.assert_allclose(separable, expected, atol=1e-5)
    assert float(jnp.abs(planar - separable).mean()) < 0.02


def test_no_iterations_return_the_softmax():
    np.testing.assert_array_equal(infer(LOGITS, num_iterations=0), jax.nn.softmax(LOGITS, -1))


@pytest.mark.parametrize("filter", crf.FILTERS)
def test_a_constant_added_to_a_pixel_changes_nothing(filter):
    shift = np.random.default_rng(0).normal(size=(16, 20, 1)).astype(np.float32) * 5
    q = infer(LOGITS, filter=filter)
    np.testing.assert_allclose(q, infer(LOGITS + shift, filter=filter), atol=2e-5)


def test_rows_sum_to_one_and_an_excluded_class_stays_out():
    logits = LOGITS.copy()
    logits[:, :, 4] = -np.inf
    q = np.asarray(infer(logits))
    np.testing.assert_allclose(q.sum(-1), 1, atol=1e-5)
    assert not q[:, :, 4].any()


class TestNotFinite:
    """Inside a compiled program, where values cannot be refused, they stay with their pixel."""

    infer = staticmethod(jax.jit(functools.partial(crf.mean_field, kernels=KERNELS, capacity=1920)))

    def with_pixel(self, values, filter="lattice"):
        logits = LOGITS.copy()
        logits[3, 4] = values
        function = self.infer
        if filter != "lattice":
            function = jax.jit(functools.partial(infer, filter=filter))
        return np.array(function(logits, image=IMAGE))

    @pytest.mark.parametrize("filter", crf.FILTERS)
    def test_plus_infinity_makes_a_class_certain(self, filter):
        expected = self.with_pixel([0, 1e9, 0, 0, 0], filter)
        assert expected[3, 4, 1] == 1
        np.testing.assert_allclose(self.with_pixel([0, np.inf, 0, -np.inf, 5], filter), expected)

    def test_several_certain_classes_share_their_pixel(self):
        found = self.with_pixel([0, np.inf, 0, np.inf, 5])
        np.testing.assert_allclose(found, self.with_pixel([-1e9, 0, -1e9, 0, -1e9]), atol=1e-6)

    def test_nothing_but_minus_infinity_is_nothing_known(self):
        np.testing.assert_array_equal(self.with_pixel([-np.inf] * 5), self.with_pixel([0] * 5))

    @pytest.mark.parametrize("values", [[np.nan] * 5, [0, np.nan, 0, np.inf, -np.inf]])
    def test_nan_stays_at_its_pixel(self, values):
        found, expected = self.with_pixel(values), self.with_pixel([0] * 5)
        assert np.isnan(found[3, 4]).all()
        found[3, 4] = expected[3, 4]
        np.testing.assert_array_equal(found, expected)

    def test_no_iterations_follow_the_same_rule(self):
        logits = np.float32([[[np.inf, 0], [-np.inf, -np.inf], [np.nan, 0]]])
        image = np.zeros((1, 3, 3), np.uint8)
        q = jax.jit(functools.partial(crf.mean_field, kernels=KERNELS, num_iterations=0))
        np.testing.assert_array_equal(q(logits, image)[0], [[1, 0], [0.5, 0.5], [np.nan] * 2])

    def test_gradients_of_other_pixels_are_finite(self):
        logits = LOGITS.copy()
        logits[3, 4], logits[5, 6], logits[7, 7, 1] = np.nan, -np.inf, np.inf

        def loss(logits):
            q = crf.mean_field(logits, IMAGE, KERNELS, num_iterations=2, capacity=1920)
            return jnp.square(q).at[3, 4].set(0).sum()

        gradient = jax.jit(jax.grad(loss))(logits)
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient)[[3, 5], [4, 6]].any()


def test_the_signature_is_the_real_one():
    """What help() and editors show; both functions take the same."""
    shown = inspect.signature(crf.mean_field)
    assert shown == inspect.signature(crf.refine_logits)
    assert not any(p.kind == p.VAR_KEYWORD for p in shown.parameters.values())
    assert "capacity" in shown.parameters


def weighted(weight):
    """The kernels with the weight [C, C] of CRF-RNN's start, or with one drawn at random."""
    return tuple(dataclasses.replace(kernel, weight=weight) for kernel in KERNELS)


@pytest.mark.parametrize(
    "kernels",
    [
        KERNELS,
        weighted(-3 * np.eye(5, dtype=np.float32)),
        weighted(np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)),
    ],
    ids=["scalars", "diagonal", "any"],
)
def test_a_weight_and_its_matrix_with_an_empty_diagonal_agree(kernels):
    matrices = tuple(crf.potts(kernel, 5) for kernel in kernels)
    for kernel in matrices:
        np.testing.assert_array_equal(np.diagonal(kernel.weight), 0)
    expected = infer(LOGITS, kernels=kernels)
    np.testing.assert_allclose(infer(LOGITS, kernels=matrices), expected, atol=1e-5)
    assert float(jnp.abs(expected - jax.nn.softmax(LOGITS)).max()) > 0.05


@pytest.mark.parametrize("classes", [1, 9])  # LOGITS have 5, those of pydensecrf 21
def test_any_number_of_classes(classes):
    logits, image = reference.random_problem(12, 16, classes)
    expected = reference.mean_field(logits, image, KERNELS, 3)
    q = crf.mean_field(logits, image, KERNELS, num_iterations=3, capacity=1152)
    assert q.shape == (12, 16, classes)
    assert q.dtype == jnp.float32
    assert float(jnp.abs(q - expected).mean()) < 0.03


class TestMask:
    """Padding changes nothing for the pixels that exist."""

    canvas = (24, 27)

    @functools.cached_property
    def padded(self):
        """Logits, image and mask on a canvas whose padding is anything but like the image."""
        rng = np.random.default_rng(7)
        logits = rng.normal(size=(*self.canvas, 5)).astype(np.float32) * 20
        image = rng.integers(0, 256, (*self.canvas, 3)).astype(np.uint8)
        mask = np.zeros(self.canvas, bool)
        logits[:16, :20], image[:16, :20], mask[:16, :20] = LOGITS, IMAGE, True
        return logits, image, mask

    def refined(self, mask, **options):
        logits, image, _ = self.padded
        capacity = 6 * mask.size
        q = crf.mean_field(logits, image, KERNELS, mask=mask, capacity=capacity, **options)
        return np.asarray(q)[:16, :20]

    @pytest.mark.parametrize(
        ("filter", "normalization"), [("lattice", "after"), ("exact", "before")]
    )
    def test_it_equals_the_image_without_padding(self, filter, normalization):
        options = {"filter": filter, "normalization": normalization, "spatial_filter": "separable"}
        expected = infer(LOGITS, **options)
        mask = self.padded[2]
        np.testing.assert_allclose(self.refined(mask, **options), expected, atol=1e-5)
        assert np.abs(self.refined(np.ones_like(mask), **options) - expected).max() > 0.01

    @pytest.mark.parametrize("filter", ["lattice", "nystrom"])
    def test_what_is_approximate_stays_near(self, filter):
        """The spatial lattice has more vertices, and the landmarks are others."""
        options = {"filter": filter, "spatial_filter": "lattice"}
        difference = np.abs(self.refined(self.padded[2], **options) - infer(LOGITS, **options))
        assert difference.mean() < 5e-3
        assert difference[:12, :16].max() < 0.05

    def test_padding_needs_no_vertices(self):
        _, image, mask = self.padded
        features = crf.Features(image / np.float32(20), extent=(13.0,) * 3)
        kernels = (crf.Bilateral(6.0, 20.0), features)
        own = dataclasses.replace(features, values=features.values[:16, :20])
        needed = vertices(IMAGE, (kernels[0], own))
        assert vertices(image, kernels, mask) == needed > 100


@pytest.mark.parametrize(
    ("filter", "shape"),
    [
        *(("lattice", shape) for shape in ((30, 1), (1, 1))),
        *((filter, shape) for filter in ("exact", "nystrom") for shape in ((1, 30), (1, 1))),
    ],
)
def test_narrow_images(filter, shape):
    logits, image = reference.random_problem(*shape, 3)
    expected = reference.mean_field(logits, image, KERNELS, 3)
    q = crf.mean_field(logits, image, KERNELS, num_iterations=3, filter=filter, capacity=180)
    assert float(jnp.abs(q - expected).mean()) < 0.05


def test_a_constant_image():
    image = np.full_like(IMAGE, 200)
    expected = reference.mean_field(LOGITS, image, KERNELS, 10)
    assert float(jnp.abs(infer(LOGITS, image) - expected).mean()) < 0.03


class TestTransformations:
    """The same numbers under every transformation."""

    problems = tuple(reference.random_problem(16, 20, 5, seed) for seed in range(4))
    logits = np.stack([p[0] for p in problems])
    image = np.stack([p[1] for p in problems])
    infer = staticmethod(functools.partial(crf.mean_field, kernels=KERNELS, capacity=1920))

    @functools.cached_property
    def expected(self):
        return np.stack([self.infer(*p) for p in self.problems])

    def test_jit(self):
        result = jax.jit(self.infer)(self.logits[0], self.image[0])
        np.testing.assert_allclose(result, self.expected[0], atol=1e-6)

    def test_batch(self):
        np.testing.assert_allclose(self.infer(self.logits, self.image), self.expected, atol=1e-6)

    def test_vmap(self):
        result = jax.vmap(self.infer)(self.logits, self.image)
        np.testing.assert_allclose(result, self.expected, atol=1e-5)

    def test_pmap(self):
        result = jax.pmap(self.infer)(self.logits, self.image)
        np.testing.assert_allclose(result, self.expected, atol=1e-6)

    @pytest.mark.parametrize("filter", crf.FILTERS)
    def test_export(self, filter):
        pytest.importorskip("flatbuffers", reason="needed to serialise an exported program")
        infer = functools.partial(self.infer, filter=filter)
        exported = jax.export.export(jax.jit(infer), platforms=["cpu", "cuda", "tpu"])(
            self.logits[0], self.image[0]
        )
        restored = jax.export.deserialize(exported.serialize())
        result = restored.call(self.logits[0], self.image[0])
        np.testing.assert_allclose(result, infer(self.logits[0], self.image[0]), atol=1e-6)

    def test_features_in_a_batch(self):
        own = np.random.default_rng(0).normal(size=(4, 16, 20, 3)).astype(np.float32)
        kernel = crf.Features(own, extent=(12.0,) * 3, weight=2.0)
        batch = crf.mean_field(self.logits, self.image, (kernel,), filter="exact")
        for i in range(4):
            one = crf.Features(own[i], extent=(12.0,) * 3, weight=2.0)
            single = crf.mean_field(self.logits[i], self.image[i], (one,), filter="exact")
            np.testing.assert_allclose(batch[i], single, atol=1e-6)

    def test_bfloat16_logits_are_inferred_in_float32(self):
        logits = jnp.asarray(self.logits[0], jnp.bfloat16)
        exact = functools.partial(self.infer, image=self.image[0], filter="exact")
        result = exact(logits)
        assert result.dtype == jnp.float32
        np.testing.assert_array_equal(result, exact(logits.astype(jnp.float32)))

    def test_the_scale_of_features_is_that_of_a_bilateral_kernel(self):
        y, x = np.mgrid[:16, :20]
        own = np.concatenate([np.stack([x, y], -1) / 6.0, self.image[0] / 20.0], -1)
        own = crf.Features(own.astype(np.float32), extent=(20.0,) * 5, weight=3.0)
        exact = functools.partial(crf.mean_field, self.logits[0], self.image[0], filter="exact")
        np.testing.assert_allclose(exact((own, KERNELS[1])), exact(KERNELS), atol=1e-5)
