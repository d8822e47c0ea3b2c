"""ResNet: strides and rates, sizes, parameter counts, and equality across output strides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import Norm
from segjax.models.resnet import STAGE_SIZES, ResNet, plan
from tests.models.fill import random_variables

R50 = STAGE_SIZES[50]


def strides_and_rates(*args, **kwargs):
    """The stride of each stage and the rates of its blocks."""
    stages = plan(*args, **kwargs)
    assert all(stride == 1 for blocks in stages for stride, _ in blocks[1:])
    return [blocks[0][0] for blocks in stages], [[rate for _, rate in blocks] for blocks in stages]


def test_plan_of_classification():
    assert strides_and_rates(R50, 32) == ([1, 2, 2, 2], [[1] * 3, [1] * 4, [1] * 6, [1] * 3])


def test_plan_of_deeplab_v2_and_pspnet():
    strides, rates = strides_and_rates(STAGE_SIZES[101], 8)
    assert strides == [1, 2, 1, 1]
    assert rates == [[1] * 3, [1] * 4, [2] * 23, [4] * 3]


@pytest.mark.parametrize(
    ("output_stride", "strides", "stage3", "stage4"),
    [(16, [1, 2, 2, 1], [1] * 6, [2, 4, 8]), (8, [1, 2, 1, 1], [2] * 6, [4, 8, 16])],
)
def test_plan_of_deeplab_v3(output_stride, strides, stage3, stage4):
    found, rates = strides_and_rates(R50, output_stride, multi_grid=(1, 2, 4))
    assert found == strides
    assert rates == [[1] * 3, [1] * 4, stage3, stage4]


def test_plan_of_the_cascade():
    strides, rates = strides_and_rates((*R50, 3, 3, 3), 16)
    assert strides == [1, 2, 2, 1, 1, 1, 1]
    assert rates[3:] == [[2] * 3, [4] * 3, [8] * 3, [16] * 3]
    _, rates = strides_and_rates((*R50, 3, 3, 3), 8, multi_grid=(1, 2, 1))
    assert rates[3:] == [[4, 8, 4], [8, 16, 8], [16, 32, 16], [32, 64, 32]]
    strides, rates = strides_and_rates((*R50, 3, 3, 3), 256)  # the paper's Table 1
    assert strides == [1, 2, 2, 2, 2, 2, 2]
    assert {rate for stage in rates for rate in stage} == {1}


def test_plan_of_torchvision():
    strides, rates = strides_and_rates(R50, 8, first_rate="previous")
    assert strides == [1, 2, 1, 1]
    assert rates == [[1] * 3, [1] * 4, [1, 2, 2, 2, 2, 2], [2, 4, 4]]
    # It has no cascade: there the rates are the paper's.
    options = {"multi_grid": (1, 2, 1), "first_rate": "previous"}
    _, rates = strides_and_rates((*R50, 3, 3, 3), 16, **options)
    assert rates[3:] == [[1, 4, 2], [4, 8, 4], [8, 16, 8], [16, 32, 16]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_stride": 12}, r"output_stride=12: use one of \[4, 8, 16, 32\]"),
        ({"output_stride": 64}, "output_stride=64"),
        ({"output_stride": 16, "multi_grid": (1, 2)}, "stage 4 needs 3 rates"),
        ({"output_stride": 16, "first_rate": "half"}, "first_rate='half': use 'full'"),
    ],
)
def test_plan_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        plan(R50, **change)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 18}, "depth=18: use one of"),
        ({"stem": "wide"}, "stem='wide': use one of"),
        ({"stride_in": "2x2"}, "stride_in='2x2': use"),
    ],
)
def test_network_refuses(fields, message):
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(ResNet(**fields).init, jax.random.key(0), image)


@pytest.mark.parametrize(
    ("fields", "size", "count", "rows"),
    [
        # Parameter counts: convolutions and BatchNorm affine, computed from the layers' shapes.
        ({"depth": 50, "output_stride": 16}, 513, 23_508_032, (129, 129, 65, 33, 33)),
        ({"depth": 101, "output_stride": 8}, 513, 42_500_160, (129, 129, 65, 65, 65)),
        (
            {"depth": 50, "stem": "deep", "output_stride": 8},
            473,
            23_631_808,
            (119, 119, 60, 60, 60),
        ),
        (
            {"depth": 101, "stem": "deep", "output_stride": 8},
            713,
            42_623_936,
            (179, 179, 90, 90, 90),
        ),
        (
            {"depth": 101, "ceil_mode": True, "output_stride": 8},
            320,
            42_500_160,
            (81, 81, 41, 41, 41),
        ),
        ({"depth": 101, "output_stride": 8}, 320, 42_500_160, (80, 80, 40, 40, 40)),
        ({"depth": 50, "cascade": 3, "output_stride": 16}, 513, 23_508_032 + 3 * 13_387_776, None),
        # torchvision's resnet152 has 60,192,808 parameters, 2,049,000 of them in its classifier.
        ({"depth": 152}, 224, 58_143_808, (56, 56, 28, 14, 7)),
    ],
)
def test_sizes_and_parameter_counts(fields, size, count, rows):
    model = ResNet(**fields)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count
    ends = jax.eval_shape(model.apply, variables, image)
    if rows:
        assert [ends[k].shape[1] for k in ("stem", "stage1", "stage2", "stage3", "stage4")] == [
            *rows
        ]
    assert ends["stage4"].shape[-1] == 2048


def test_parameter_paths_do_not_depend_on_the_output_stride():
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    shapes = [
        jax.eval_shape(ResNet(26, stride, cascade=1, width=8).init, jax.random.key(0), image)
        for stride in (4, 8, 16, 32, 64)
    ]
    assert all(
        jax.tree.map(lambda x: x.shape, s) == jax.tree.map(lambda x: x.shape, shapes[0])
        for s in shapes
    )
    params = shapes[0]["params"]
    assert sorted(params["stage3"]["block1"]) == [
        *("bn1", "bn2", "bn3", "bn_proj", "conv1", "conv2", "conv3", "proj")
    ]
    assert sorted(params["stage3"]["block2"]) == ["bn1", "bn2", "bn3", "conv1", "conv2", "conv3"]
    assert sorted(params["stage5"]["block1"]) == ["bn1", "bn2", "bn3", "conv1", "conv2", "conv3"]


@pytest.mark.parametrize(
    ("stride_in", "first_rate", "stem"), [("1x1", "full", "plain"), ("3x3", "previous", "deep")]
)
def test_denser_features_subsampled_are_the_coarser_features(stride_in, first_rate, stem):
    """As the atrous-values tests of slim's ResNet v1: only the sampling changes, to the border."""
    image = jax.random.normal(jax.random.key(2), (1, 129, 97, 3))
    nets = {
        stride: ResNet(
            26, stride, (2, 1), stem=stem, stride_in=stride_in, first_rate=first_rate, width=8
        )
        for stride in (8, 16, 32)
    }
    variables = random_variables(nets[8], image)
    ends = {
        s: np.asarray(jax.jit(net.apply)(variables, image)["stage4"]) for s, net in nets.items()
    }
    assert ends[8].shape[1:3] == (17, 13)
    assert ends[32].std() > 0.1
    np.testing.assert_allclose(ends[8][:, ::2, ::2], ends[16], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ends[16][:, ::2, ::2], ends[32], rtol=1e-4, atol=1e-4)


def test_stride_in_3x3_at_full_rate_is_another_function():
    """PSPNet's plan: why DeepLab v3, evaluated at another stride than trained, has not this one."""
    image = jax.random.normal(jax.random.key(2), (1, 65, 65, 3))
    nets = [ResNet(14, stride, stride_in="3x3", width=8) for stride in (16, 32)]
    variables = random_variables(nets[0], image)
    dense, coarse = (jax.jit(net.apply)(variables, image)["stage4"] for net in nets)
    assert np.abs(dense[:, ::2, ::2] - coarse).max() > 0.1


def test_frozen_norm_has_no_update_and_ignores_the_batch():
    image = jax.random.normal(jax.random.key(2), (2, 33, 33, 3))
    frozen = ResNet(14, 16, width=8, norm=Norm(frozen=True))
    variables = random_variables(frozen, image)
    train = lambda net: jax.jit(functools.partial(net.apply, train=True, mutable=["batch_stats"]))
    ends, changed = train(frozen)(variables, image)
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])
    alone = jax.jit(frozen.apply)(variables, image[:1])
    np.testing.assert_allclose(ends["stage4"][:1], alone["stage4"], rtol=1e-5, atol=1e-5)

    trained = frozen.clone(norm=Norm())
    _, changed = train(trained)(variables, image)
    before, after = (
        v["batch_stats"]["stage4"]["block1"]["bn3"]["mean"] for v in (variables, changed)
    )
    assert np.abs(after - before).max() > 1e-3


def test_remat_gives_the_same_gradients_and_statistics():
    image = jax.random.normal(jax.random.key(0), (2, 65, 49, 3))
    plain = ResNet(depth=14, width=8, output_stride=8)
    variables = random_variables(plain, image)

    def gradients(net, params):
        def loss(params):
            both = {**variables, "params": params}
            ends, changed = net.apply(both, image, train=True, mutable=["batch_stats"])
            return jnp.square(ends["stage4"]).sum(), changed

        return jax.grad(loss, has_aux=True)(params)

    expected, got = (
        jax.jit(functools.partial(gradients, net)).lower(variables["params"])
        for net in (plain, plain.clone(remat=True))
    )
    # Four blocks of two 3x3 and 1x1 convolutions and a projection compute the former again.
    blocks = [lowered.as_text().count("stablehlo.convolution") for lowered in (expected, got)]
    assert blocks[1] == blocks[0] + 4
    expected, got = (lowered.compile()(variables["params"]) for lowered in (expected, got))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
