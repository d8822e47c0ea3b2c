"""Atrous convolution: against the zero-filled kernel, and its forms against each other."""

import doctest
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import compiling
from segjax.models import AtrousConv, atrous


def zero_filled(kernel, rate):
    filled = np.zeros(
        [rate * (n - 1) + 1 for n in kernel.shape[:2]] + [*kernel.shape[2:]], np.float32
    )
    filled[::rate, ::rate] = kernel
    return filled


def by_hand(x, kernel):
    """Cross-correlation with zeros around, written as sums of shifted images."""
    height, width = x.shape[1:3]
    pad = [(n - 1) // 2 for n in kernel.shape[:2]]
    x = np.pad(x, ((0, 0), (pad[0],) * 2, (pad[1],) * 2, (0, 0)))
    return sum(
        x[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )


@pytest.mark.parametrize("form", atrous.FORMS)
@pytest.mark.parametrize(("size", "rate"), [(3, 1), (3, 2), (3, 5), (4, 2), (7, 3)])
def test_equals_the_zero_filled_kernel(form, size, rate):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 9, 14, 3)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 3, 2)).astype(np.float32)
    expected = by_hand(x, zero_filled(kernel, rate))
    layer = AtrousConv(2, (size, size), rate=rate, form=form)
    y = jax.jit(layer.apply)({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("height", "width", "rate"), [(9, 12, 2), (33, 33, 12), (1, 7, 3), (4, 3, 5), (10, 2, 1)]
)
def test_the_forms_are_equal_to_the_bit(height, width, rate, dtype):
    """On whole numbers, whose sums are exact in any order: XLA chooses the order by the shape."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-2, 3, (2, height, width, 16)), dtype)
    kernel = jnp.asarray(rng.integers(-1, 2, (3, 3, 16, 8)), dtype)
    run = jax.jit(lambda x, k: {name: f(x, k, rate=rate) for name, f in atrous.FORMS.items()})
    forms = run(x, kernel)
    assert jnp.abs(forms["native"]).max() > 5
    for form, y in forms.items():
        assert y.dtype == dtype
        if form == "fourier":  # whose waves are rounded
            y = jnp.round(y.astype(jnp.float32)).astype(dtype)
        np.testing.assert_array_equal(y, forms["native"])


def test_the_forms_differ_by_rounding_only():
    x = jax.random.normal(jax.random.key(0), (2, 9, 12, 16))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 16, 8))
    native = atrous.conv_same(x, kernel, rate=2)
    for form in atrous.FORMS.values():
        np.testing.assert_allclose(form(x, kernel, rate=2), native, rtol=1e-5, atol=1e-4)


def convolutions(rate: int, features: int, dtype: str) -> int:
    """Counts them in `conv_fastest`, which has none where it goes by taps."""
    x = jax.ShapeDtypeStruct((1, 33, 33, 16), dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, 16, features), dtype)
    fastest = jax.jit(functools.partial(atrous.conv_fastest, rate=rate))
    return fastest.lower(x, kernel).as_text().count("stablehlo.convolution")


@pytest.mark.parametrize(
    ("onednn", "matrix_units", "rates"),
    [
        (True, True, {"float32": 18, "bfloat16": 6}),
        (True, False, {}),
        (False, True, {"float32": 18, "bfloat16": 1}),
        (False, False, {"float32": 12, "bfloat16": 6}),
    ],
)
def test_the_fastest_form_on_a_cpu_goes_by_taps_from_a_rate(
    monkeypatch, onednn, matrix_units, rates
):
    monkeypatch.setattr(compiling, "onednn", lambda: onednn)
    monkeypatch.setattr(compiling, "matrix_units", lambda: matrix_units)
    for dtype in ("float32", "bfloat16"):
        by_taps = [rate for rate in (1, 6, 12, 18) if not convolutions(rate, 128, dtype)]
        assert by_taps == [rate for rate in (1, 6, 12, 18) if rate >= rates.get(dtype, 99)]
        assert convolutions(18, 64, dtype) == 1


def test_a_1x1_kernel_is_a_product_but_where_onednn_predicts(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (2, 9, 7, 6))
    kernel = jax.random.normal(jax.random.key(1), (1, 1, 6, 5))
    results = []
    for onednn in (False, True):
        monkeypatch.setattr(compiling, "predicts_by_onednn", lambda onednn=onednn: onednn)
        lowered = jax.jit(lambda *args: atrous.conv_same(*args, rate=1)).lower(x, kernel)
        assert lowered.as_text().count("stablehlo.convolution") == onednn
        results.append(lowered.compile()(x, kernel))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)


def test_training_without_avx512_goes_by_taps_from_a_lower_rate(monkeypatch):
    monkeypatch.setattr(compiling, "onednn", lambda: False)
    monkeypatch.setattr(compiling, "training", lambda: True)
    for narrow, lowest in ((True, 6), (False, 12)):
        monkeypatch.setattr(compiling, "narrow", lambda narrow=narrow: narrow)
        by_taps = [rate for rate in (1, 6, 12) if not convolutions(rate, 128, "float32")]
        assert by_taps == [rate for rate in (6, 12) if rate >= lowest]


@pytest.mark.parametrize("side", [24, 25])
def test_fourier_transforms_of_many_tiles(monkeypatch, side):
    """More tiles than one in both directions, none of which ends with the map; an odd side too."""
    monkeypatch.setattr(atrous, "TILE", side)
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 41, 60, 5)), jax.random.normal(keys[1], (7, 5, 5, 4))
    grad = jax.random.normal(keys[2], (2, 41, 60, 4))

    def results(form, x, kernel, grad):
        y, gradients = jax.vjp(functools.partial(atrous.FORMS[form], rate=1), x, kernel)
        return y, *gradients(grad)

    ways = [
        jax.jit(functools.partial(results, form))(x, kernel, grad) for form in ("native", "fourier")
    ]
    for expected, found in zip(*ways, strict=True):
        bound = 5e-6 * float(jnp.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("form", sorted(atrous.FORMS))
def test_no_images_give_no_maps(form, size):
    x, kernel = jnp.zeros((0, 25, 30, 3)), jnp.ones((size, size, 3, 4))
    assert atrous.FORMS[form](x, kernel, rate=1).shape == (0, 25, 30, 4)


def test_training_without_avx512_convolves_large_kernels_by_fourier_transforms(monkeypatch):
    def convolutions(size: int, features: int, height: int = 60) -> int:
        x = jax.ShapeDtypeStruct((1, height, 64, features), jnp.float32)
        kernel = jax.ShapeDtypeStruct((size, size, features, features), jnp.float32)
        fastest = jax.jit(functools.partial(atrous.conv_fastest, rate=1))
        jax.clear_caches()
        return fastest.lower(x, kernel).as_text().count("stablehlo.convolution")

    monkeypatch.setattr(compiling, "narrow", lambda: True)
    assert convolutions(7, 64) == 1
    monkeypatch.setattr(compiling, "training", lambda: True)
    assert convolutions(7, 64) == 0
    assert convolutions(3, 64) == convolutions(7, 32) == convolutions(7, 64, height=59) == 1
    monkeypatch.setattr(compiling, "narrow", lambda: False)
    assert convolutions(7, 64) == 1


def test_the_fastest_form_is_exported_for_other_devices_and_any_size():
    fastest = jax.jit(functools.partial(atrous.conv_fastest, rate=12))
    x = jax.random.normal(jax.random.key(0), (1, 15, 14, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 128))
    for shape in ("1,15,14,2", "1,h,w,2"):
        image = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.float32)
        program = jax.export.export(fastest, platforms=("cpu", "cuda", "tpu"))(image, kernel)
        expected = atrous.conv_same(x, kernel, rate=12)
        np.testing.assert_allclose(program.call(x, kernel), expected, rtol=1e-5, atol=1e-4)


def test_gradients_of_the_forms_agree():
    x = jax.random.normal(jax.random.key(0), (2, 11, 8, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))

    def gradients(form: str) -> tuple[jax.Array, jax.Array]:
        loss = lambda x, kernel: jnp.sum(jnp.sin(atrous.FORMS[form](x, kernel, rate=3)))
        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel)

    for form in ("batch", "taps", "fourier"):
        for expected, found in zip(gradients("native"), gradients(form), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [1, 5])
def test_gradients_by_taps_in_bfloat16_are_exact_but_for_rounding(rate):
    """Whole numbers: float32 sums are exact, and the one rounding is that of the result."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.integers(-3, 4, shape), jnp.float32)
    x, kernel, grad = draw(2, 11, 8, 3), draw(3, 3, 3, 4), draw(2, 11, 8, 4)

    def gradients(form, x, kernel, grad):
        return jax.vjp(functools.partial(form, rate=rate), x, kernel)[1](grad)

    exact = jax.jit(functools.partial(gradients, atrous.conv_same))(x, kernel, grad)
    low = [a.astype(jnp.bfloat16) for a in (x, kernel, grad)]
    taps = jax.jit(functools.partial(gradients, atrous.conv_by_taps))(*low)
    for expected, found in zip(exact, taps, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("form", ["native", "taps"])
def test_gradients_are_those_of_small_steps(form):
    keys = jax.random.split(jax.random.key(0), 4)
    x, x_step = (jax.random.normal(key, (1, 7, 6, 2)) for key in keys[:2])
    kernel, kernel_step = (jax.random.normal(key, (3, 3, 2, 3)) for key in keys[2:])
    conv = functools.partial(atrous.FORMS[form], rate=4)
    loss = jax.jit(lambda x, kernel: jnp.sin(conv(x, kernel)).sum())
    x_grad, kernel_grad = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
    slope = (x_grad * x_step).sum() + (kernel_grad * kernel_step).sum()
    around = [loss(x + h * x_step, kernel + h * kernel_step) for h in (1e-3, -1e-3)]
    np.testing.assert_allclose(slope, (around[0] - around[1]) / 2e-3, rtol=1e-2)


def test_products_below_float32_have_float32_results():
    """Matrix units take no others."""
    x, kernel = (jax.ShapeDtypeStruct(s, "bfloat16") for s in ((1, 33, 33, 16), (1, 1, 16, 128)))
    by_taps = jax.jit(functools.partial(atrous.conv_by_taps, rate=1))
    products = [line for line in by_taps.lower(x, kernel).as_text().splitlines() if "dot_" in line]
    (product,) = products
    assert "(tensor<1089x16xbf16>, tensor<16x128xbf16>) -> tensor<1089x128xf32>" in product


def test_bias_vmap_and_dtype():
    layer = AtrousConv(4, rate=2, use_bias=True, dtype="bfloat16")
    x = jax.random.normal(jax.random.key(0), (3, 1, 8, 8, 2))
    variables = layer.init(jax.random.key(1), x[0])
    assert {k: v.dtype for k, v in variables["params"].items()} == {
        "kernel": jnp.float32,
        "bias": jnp.float32,
    }
    y = jax.vmap(layer.apply, in_axes=(None, 0))(variables, x)
    assert y.shape == (3, 1, 8, 8, 4) and y.dtype == jnp.bfloat16
    shifted = {"params": {**variables["params"], "bias": jnp.ones(4)}}
    np.testing.assert_allclose(
        np.float32(layer.apply(shifted, x[0])), np.float32(y[0]) + 1, rtol=0.02, atol=0.02
    )


def test_refuses():
    x = jnp.zeros((1, 8, 8, 2))
    with pytest.raises(ValueError, match="use an odd kernel or an even rate"):
        AtrousConv(4, (4, 4), rate=3).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="form='fast'; accepted: "):
        AtrousConv(4, form="fast").init(jax.random.key(0), x)


def test_example():
    result = doctest.testmod(atrous)
    assert result.attempted and not result.failed
