"""From a run, a checkpoint or weights to label maps."""

import functools
import gc
import os
import resource
import subprocess
import sys
import tracemalloc
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import segjax
from segjax import checkpoint, config, crf, crf_rnn, models, pretrained, state, steps
from segjax.data.labels import colour_map
from segjax.evaluate.step import eval_step, out_axes
from segjax.models import segnet
from segjax.predict import program, protocols
from segjax.predict.protocols import Protocol
from segjax.predict.segmenter import Segmenter, _canvases

CLASSES = ("sky", "road", "car", "tree", "void-like")
RADIUS = 53  # pixels that SegNet-Basic sees to each side (106 in all)


def a_config(**changes):
    model = models.SegNetBasic(num_classes=len(CLASSES), width=4, dropout=0.5)
    return config.Config(model=model, **changes)


def metadata_of(cfg):
    return {
        "config": config.to_dict(cfg),
        "dataset": "streets",
        "classes": list(CLASSES),
        "palette": [list(colour) for colour in colour_map(len(CLASSES))],
    }


def variables_of(cfg):
    """Random weights; batch statistics that are not those of the start."""
    variables = state.init_variables(cfg.model, jax.random.key(1), (32, 32))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    stats = jax.tree.map(
        lambda x: jax.random.uniform(next(keys), x.shape, minval=0.5, maxval=2.0),
        variables["batch_stats"],
    )
    return {"params": variables["params"], "batch_stats": stats}


def save_run(workdir, cfg, steps_=(7,)):
    variables = variables_of(cfg)
    now = state.create(variables, state.transformation(cfg, variables["params"]))
    with checkpoint.Checkpoints(workdir) as checkpoints:
        for step in steps_:
            checkpoints.save(step, now, position={}, metadata=metadata_of(cfg))
    return variables


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two checkpoints, of a canvas of 64x96 pixels."""
    workdir = tmp_path_factory.mktemp("runs") / "a"
    cfg = a_config(data=config.Data(canvas=(64, 96)))
    save_run(workdir, cfg, (7, 9))
    return workdir


@pytest.fixture(scope="module")
def seg(run):
    return segjax.load(run)


def compiled():
    """Counts compilations of whole programs from now on."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


def test_importing_the_package_imports_no_jax():
    code = "import sys, segjax; assert 'jax' not in sys.modules and segjax.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        segjax.laod  # noqa: B018


def test_a_run_a_checkpoint_and_weights_are_the_same_network(run, seg, tmp_path):
    cfg = a_config(data=config.Data(canvas=(64, 96)))
    pretrained.save_weights(tmp_path / "w", variables_of(cfg), metadata_of(cfg))
    image = picture(50, 70)
    expected = seg(image).labels
    assert len(np.unique(expected)) > 2
    forms = [run / "checkpoints" / "7", str(run / "checkpoints"), tmp_path / "w"]
    for form in (*forms, tmp_path / "w" / "weights.safetensors"):
        other = segjax.load(form)
        assert other.classes == CLASSES and other.palette[1] == (128, 0, 0)
        assert other.canvases == [(64, 96), (512, 512), (768, 768), (1152, 1152)]
        np.testing.assert_array_equal(other(image).labels, expected)
    assert segjax.load(run, step="7").config == seg.config


def test_labels_are_those_of_the_evaluation(seg):
    """The same canvas, the same decoding, the same network: the same label map, pixel by pixel."""
    image = picture(50, 70)
    canvas = np.broadcast_to(np.rint(seg.config.input.mean).astype(np.uint8), (1, 1, 64, 96, 3))
    canvas = canvas.copy()
    canvas[0, 0, :50, :70] = image
    step = steps.parallel(
        eval_step,
        in_axes=(None, 0),
        out_axes=out_axes(refined=False),
        config=seg.config,
        protocol=Protocol(),
        devices=jax.devices()[:1],
    )
    batch = {
        "image": canvas,
        "label": np.full((1, 1, 64, 96), 255, np.int32),
        "size": np.int32([[[50, 70]]]),
    }
    expected = np.asarray(step(jax.device_get(seg.variables), batch).network.labels)
    np.testing.assert_array_equal(seg(image).labels, expected[0, 0, :50, :70])


def test_probabilities_and_entropy(seg):
    image = picture(40, 60)
    lazy, eager = seg(image), seg(image, probs=True)
    np.testing.assert_array_equal(lazy.probs, eager.probs)
    assert lazy.probs.shape == (40, 60, 5) and lazy.probs.dtype == np.float32
    np.testing.assert_allclose(lazy.probs.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(lazy.probs.argmax(-1), lazy.labels)
    exact = lazy.probs.astype(np.float64)
    np.testing.assert_allclose(lazy.entropy, -(exact * np.log(exact)).sum(-1), atol=1e-6)
    assert lazy.entropy.max() <= np.log(5)


def test_saved_label_maps_hold_ids_and_colours(seg, tmp_path):
    out = seg(picture(40, 60))
    out.save(tmp_path / "deep" / "a.png")
    with Image.open(tmp_path / "deep" / "a.png") as saved:
        assert saved.mode == "P"
        np.testing.assert_array_equal(np.asarray(saved), out.labels)
        np.testing.assert_array_equal(np.asarray(saved.convert("RGB")), out.overlay(1.0))
    with pytest.raises(ValueError, match=r"a\.jpg does not end in \.png"):
        out.save(tmp_path / "a.jpg")


def test_more_than_255_classes(tmp_path):
    model = models.SegNetBasic(num_classes=300, width=4)
    cfg = config.Config(model=model, data=config.Data(canvas=(32, 48)))
    pretrained.save_weights(tmp_path, variables_of(cfg), {"config": config.to_dict(cfg)})
    seg = segjax.load(tmp_path)
    assert seg.classes[299] == "class 299" and len(seg.palette) == 300
    out = seg(picture(32, 48))
    assert out.labels.dtype == np.uint16 and out.labels.max() > 255
    out.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), out.labels)


def test_lists_arrays_and_mixed_sizes_are_like_single_pictures(seg, run, tmp_path):
    images = [picture(40, 60, 1), picture(64, 96, 2), picture(100, 30, 3), picture(8, 9, 4)]
    single = [seg(image) for image in images]
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    in_batches = segjax.load(run, batch_size=2)
    for some in (seg, in_batches):
        outs = some([tmp_path / "a.png", *images[1:]], probs=True)
        for out, expected in zip(outs, single, strict=True):
            np.testing.assert_array_equal(out.labels, expected.labels)
            np.testing.assert_allclose(out.probs, expected.probs, atol=1e-5)
    stack = in_batches(np.stack([images[1]] * 3))
    assert len(stack) == 3
    np.testing.assert_array_equal(stack[2].labels, single[1].labels)
    assert seg([]) == []


def test_a_hundred_sizes_compile_four_programs(run):
    model = models.SegNetBasic(num_classes=3, width=1)
    cfg = config.Config(model=model)
    seg = Segmenter(cfg, variables_of(cfg), classes="abc", palette=colour_map(3))
    random = np.random.default_rng(0)
    sizes = random.integers(32, 1101, (100, 2))
    sizes[6:] //= 8  # most of them small, so that the test is fast
    image = picture(1100, 1100)
    seen = compiled()
    for height, width in np.maximum(sizes, 32):
        assert seg(image[:height, :width]).labels.shape == (height, width)
    assert len(seen) == len({seg._canvas(tuple(size), Protocol()) for size in sizes}) == 4


def test_canvases(run):
    """The smallest that holds the picture; corners aligned: 8k + 1 pixels, the papers' 513."""
    seg = segjax.load(run, canvases=[(100, 100), (50, 60), (100, 80)])
    assert seg.canvases == [(50, 60), (100, 80), (100, 100)]
    chosen = [seg._canvas(s, Protocol()) for s in ((50, 60), (60, 50), (9, 99), (101, 9))]
    assert chosen == [(50, 60), (100, 80), (100, 100), None]
    assert seg._canvas((300, 90), Protocol(crop=33, base=64)) == (512, 256)
    cfg = a_config(loss=config.Loss(align_corners=True))
    assert _canvases(cfg) == [(257, 257), (513, 513), (769, 769), (1153, 1153)]
    with pytest.raises(ValueError, match=r"40x60 pixels is larger than canvas=\(32, 64\)"):
        seg(picture(40, 60), canvas=(32, 64))


def test_canvas_of_the_picture_itself_pads_nothing(seg):
    image = picture(48, 80)
    network = protocols.network(seg.config.model, seg.variables, seg.config.input)
    expected = jax.jit(network)(image[None].astype(np.float32))[0].argmax(-1)
    np.testing.assert_array_equal(seg(image, canvas=(48, 80)).labels, expected)


def test_results_do_not_depend_on_what_was_asked_before(seg, run):
    image = picture(40, 60)
    before = seg(image, probs=True)
    seg([picture(64, 96), picture(70, 20)])
    after = seg(image, probs=True)
    np.testing.assert_array_equal(before.probs, after.probs)
    np.testing.assert_array_equal(segjax.load(run)(image, probs=True).probs, before.probs)


def test_protocols_by_name_and_by_hand(seg):
    image = picture(40, 60)
    assert seg(image, protocol="segnet").labels.shape == (40, 60)
    windows = seg(image, protocol=Protocol(crop=32, base=64, flip=True))
    network = protocols.network(seg.config.model, seg.variables, seg.config.input)
    expected = protocols.sliding(
        network,
        image[None].astype(np.float32),
        np.int32([[40, 60]]),
        crop=32,
        base=64,
        fill=seg.config.input.mean,
        align_corners=False,
    )
    np.testing.assert_allclose(windows.probs, expected[0], atol=1e-5)
    with pytest.raises(ValueError, match="crf=True; accepted are auto, none, "):
        seg(image, crf=True)
    with pytest.raises(ValueError, match="protocol 'pspnet_fast' is unknown; accepted are whole"):
        seg(image, protocol="pspnet_fast")


def test_threads_get_what_one_thread_gets(seg):
    """Pictures of two sizes, with and without a CRF, from eight threads at once."""
    images = [picture(*size, seed=i) for i, size in enumerate([(40, 60), (64, 96)] * 4)]
    crfs = ["none", (crf.Bilateral(20.0, 20.0, 5.0), crf.Spatial(3.0, 3.0))]
    expected = [[seg(image, crf=c).labels for c in crfs] for image in images]
    fresh = Segmenter(
        seg.config, seg.variables, classes=seg.classes, palette=seg.palette, canvases=seg.canvases
    )
    asked = [(i, j) for i in range(len(images)) for j in range(2)]
    with futures.ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda ask: fresh(images[ask[0]], crf=crfs[ask[1]]).labels, asked)
        for (i, j), labels in zip(asked, found, strict=True):
            np.testing.assert_array_equal(labels, expected[i][j])


@pytest.mark.parametrize(("number", "kind"), [(255, np.uint8), (256, np.uint16)])
def test_labels_leave_the_device_in_as_few_bytes_as_they_need(number, kind):
    cfg = config.Config(model=models.SegNetBasic(num_classes=number, width=1))
    variables = jax.eval_shape(
        lambda key: state.init_variables(cfg.model, key, (32, 32)), jax.random.key(0)
    )
    labels, probs = jax.eval_shape(
        functools.partial(program.segment, config=cfg, protocol=Protocol()),
        variables,
        jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8),
        jax.ShapeDtypeStruct((1, 2), np.int32),
    )
    assert (labels.dtype, probs) == (kind, None)


def test_repr(seg):
    assert repr(seg) == "Segmenter(SegNetBasic, 5 classes: sky, road, car, tree, ...)"


def test_tiles_equal_the_whole_image_away_from_their_borders(seg, tmp_path):
    """Within 1e-5 wherever no tile border is nearer than the network sees."""
    image = picture(330, 400)
    tile, overlap = 192, 64
    np.save(tmp_path / "image.npy", image)
    labels = seg.tiled(tmp_path / "image.npy", tmp_path / "x.npy", tile=tile, overlap=overlap)
    assert isinstance(labels, np.memmap) and labels.dtype == np.uint8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.npy", "x.npy"]
    strips = seg._strips(image, Protocol(), (), True, tile, overlap)
    probs = np.concatenate(list(strips))
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(labels, probs.argmax(-1))

    whole = seg(image, canvas=(384, 448), probs=True)  # what three rows and four columns cover
    step, away = tile - overlap, np.ones((330, 400), bool)
    for axis, count in ((0, 3), (1, 4)):
        for i in range(count):
            for border in (i * step, i * step + tile):
                if 0 < border < away.shape[axis]:
                    near = [slice(None)] * 2
                    near[axis] = slice(max(border - RADIUS, 0), border + RADIUS)
                    away[tuple(near)] = False
    assert away.mean() > 0.03
    np.testing.assert_allclose(probs[away], whole.probs[away], atol=1e-5)
    assert (labels == whole.labels).mean() > 0.9  # an untrained network, on noise


def test_pictures_beyond_the_canvases_go_to_tiles(run):
    seg = segjax.load(run, canvases=[(64, 64)])
    out = seg(picture(70, 600))
    assert out.labels.shape == (70, 600)
    np.testing.assert_array_equal(out.probs.argmax(-1), out.labels)
    with pytest.raises(ValueError, match=r"70x600 pixels is larger than every canvas; write canv"):
        seg.monte_carlo(picture(70, 600))


def test_memory_of_tiles_does_not_grow_with_the_height(seg, tmp_path):
    """The bound of the docstring: the carry, and a few tiles; measured on host and device."""
    tile, overlap, width = 128, 32, 300
    carry = overlap * 416 * 5 * 4 + tile * overlap * 5 * 4
    peaks = []
    for height in (256, 2560):
        np.save(tmp_path / "image.npy", picture(height, width))
        image = np.load(tmp_path / "image.npy", mmap_mode="r")
        before = jax.live_arrays()
        known = {id(a) for a in before}
        strips = seg._strips(image, Protocol(), (), False, tile, overlap)
        next(strips)  # compiles, which takes memory of its own
        tracemalloc.start()
        device = 0
        for _ in strips:
            alive = [a.nbytes for a in jax.live_arrays() if id(a) not in known]
            device = max(device, sum(alive))
        host = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert device <= carry + 8 * tile * tile
        peaks.append(host)
    assert max(peaks) < 500_000 < height * width  # the label map alone would be more


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 100, "overlap": 20}, "tile=100 with overlap=20 pixels"),
        ({"path": "x.tif"}, r"x\.tif does not end in \.npy"),
    ],
)
def test_tiles_that_cannot_be_made(seg, tmp_path, options, message):
    path = tmp_path / options.pop("path", "x.npy")
    with pytest.raises(ValueError, match=message):
        seg.tiled(picture(20, 20), path, **options)
    assert not any(tmp_path.iterdir())


def test_network_and_crf_in_one_program(seg):
    """Equal to the network's scores refined by hand, where nothing is padded."""
    image = picture(40, 48) // 8 + np.uint8(100)  # noise of few colours, so that pixels interact
    kernels = (crf.Bilateral(20.0, 20.0, 5.0), crf.Spatial(3.0, 3.0))
    out = seg(image, crf=kernels, canvas=(40, 48), probs=True)
    network = protocols.network(seg.config.model, seg.variables, seg.config.input)
    logits = jax.jit(network)(image[None].astype(np.float32))
    capacity = crf.plan(image, kernels)
    expected = crf.mean_field(logits[0], jnp.asarray(image), kernels, capacity=capacity)
    np.testing.assert_allclose(out.probs, expected, atol=2e-3)
    np.testing.assert_array_equal(out.labels, out.probs.argmax(-1))
    plain = seg(image, canvas=(40, 48), probs=True)
    assert np.abs(out.probs - plain.probs).max() > 0.05  # the CRF did something


def test_padding_takes_no_part_in_the_crf(seg):
    """The scores of the image and any others beyond it: the same labels but for the border."""
    image = np.full((64, 96, 3), 123, np.uint8)
    image[:40, :60] = picture(40, 60) // 8 + np.uint8(100)
    random = np.random.default_rng(0)
    scores = random.normal(size=(2, 64, 96, 5)).astype(np.float32)
    scores[1, :40, :60] = scores[0, :40, :60]  # the same, with other scores beyond
    kernels = (crf.Bilateral(20.0, 20.0, 5.0), crf.Spatial(3.0, 3.0))
    refined = crf_rnn.refine(
        jnp.asarray(scores),
        jnp.asarray(np.stack([image] * 2)),
        np.int32([[40, 60]] * 2),
        kernels,
        config.CRF(),
        capacity=crf.plan(image, kernels),
    )
    probs = np.asarray(jax.nn.softmax(refined))[:, :40, :60]
    np.testing.assert_allclose(probs[0], probs[1], atol=1e-6)
    inner = image[:40, :60]
    exact = crf.mean_field(
        jnp.asarray(scores[0, :40, :60]),
        jnp.asarray(inner),
        kernels,
        capacity=crf.plan(inner, kernels),
    )
    assert (probs[0].argmax(-1) == np.asarray(exact).argmax(-1)).mean() > 0.99
    np.testing.assert_allclose(probs[0, :-10, :-10], exact[:-10, :-10], atol=0.02)


def test_tiles_are_refined(seg, tmp_path):
    image = picture(70, 150)
    own = (crf.Spatial(3.0, 5.0),)
    labels = seg.tiled(image, tmp_path / "a.npy", crf=own, tile=96, overlap=32)
    plain = seg.tiled(image, tmp_path / "b.npy", tile=96, overlap=32)
    changes = [np.abs(np.diff(x.astype(int), axis=1)).astype(bool).mean() for x in (labels, plain)]
    assert labels.shape == (70, 150) and changes[0] < changes[1]  # smoother


def test_monte_carlo(seg):
    image = picture(64, 96)  # the canvas itself
    out = seg.monte_carlo(image, samples=5, seed=3)
    normal = (image.astype(np.float32) - np.float32(seg.config.input.mean)) / np.float32(
        seg.config.input.std
    )
    mean, variance = segnet.monte_carlo(
        seg.config.model, seg.variables, jnp.asarray(normal[None]), jax.random.key(3), samples=5
    )
    np.testing.assert_allclose(out.probs, mean[0], atol=1e-5)
    np.testing.assert_allclose(out.variance, variance[0], atol=1e-6)
    np.testing.assert_array_equal(out.labels, out.probs.argmax(-1))
    assert out.variance.max() > 0 and seg(image).variance is None
    again = seg.monte_carlo(image, samples=5, seed=3)
    np.testing.assert_array_equal(out.probs, again.probs)


def test_monte_carlo_is_of_segnet():
    model = models.DeepLabV3(num_classes=2, depth=14, width=4, features=4)
    cfg = config.Config(model=model)
    seg = Segmenter(cfg, {}, classes="ab", palette=colour_map(2))
    with pytest.raises(ValueError, match="of SegNet and SegNetBasic with dropout, not of DeepLab"):
        seg.monte_carlo(picture(9, 9))


def test_folders_without_a_network(tmp_path, run):
    def message(path, **options):
        with pytest.raises(ValueError) as caught:
            segjax.load(path, **options)
        return str(caught.value)

    assert "none does not exist; give the folder of a run" in message(tmp_path / "none")
    assert "holds no checkpoint" in message(tmp_path)
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)  # a killed run
    (tmp_path / "checkpoints" / "7").touch()
    assert "holds no checkpoint" in message(tmp_path)
    (tmp_path / "a.pth").write_bytes(b"weights")
    assert "a.pth is a file; give the folder of a run" in message(tmp_path / "a.pth")
    assert "segjax convert FILE FOLDER" in message(tmp_path / "a.pth")
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    assert "has no config.json" in message(tmp_path)
    assert "no checkpoint '8'; accepted are best, latest, 7, 9" in message(run, step="8")


def test_weights_that_do_not_fit_their_description(tmp_path):
    cfg = a_config()
    other = models.SegNetBasic(num_classes=3, width=4)
    variables = state.init_variables(other, jax.random.key(0), (32, 32))
    pretrained.save_weights(tmp_path, variables, metadata_of(cfg))
    with pytest.raises(ValueError, match=r"checkpoint head has 3 classes, model has 5: loaded"):
        segjax.load(tmp_path)
    pretrained.save_weights(tmp_path, variables, {"partial": "a start for training"})
    with pytest.raises(ValueError, match="is no network of segjax, or only a part of one"):
        segjax.load(tmp_path)
    pretrained.save_weights(tmp_path, variables, {"config": {"input": {"bgr": True}}})
    with pytest.raises(ValueError, match="is no network of segjax, or only a part of one"):
        segjax.load(tmp_path)
    for change, message in (
        ({"model": {"class": "UNet"}}, r"no class 'UNet' in segjax\.models"),
        ({"model": {"class": "monte_carlo"}}, r"no class 'monte_carlo' in segjax\.models"),
        ({"model": {"class": "SegNet", "num_classes": "5"}}, "num_classes is '5'; write a whole"),
        ({"input": 3}, "configuration has input: 3; its fields are needed"),
    ):
        pretrained.save_weights(tmp_path, variables, {"config": config.to_dict(cfg) | change})
        with pytest.raises(ValueError, match=message):
            segjax.load(tmp_path)


# TensorStore's pending reads complain once Orbax has given up and closed its event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_and_foreign_checkpoints(tmp_path):
    save_run(tmp_path, a_config())
    folder = tmp_path / "checkpoints" / "7"
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    parts = (largest, *(folder / p for p in ("metadata/metadata", "state/_METADATA")))
    for path in parts:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"checkpoints/7 is damaged: \S+ is not the file"):
            segjax.load(tmp_path)
        path.write_bytes(content)
    gc.collect()
    variables = variables_of(a_config())
    now = state.create(variables, state.transformation(a_config(), variables["params"]))
    with checkpoint.Checkpoints(tmp_path / "a") as checkpoints:
        checkpoints.save(1, now, position={}, metadata={"step": 1})
    with pytest.raises(ValueError, match="is no network of segjax"):
        segjax.load(tmp_path / "a")
    (tmp_path / "c" / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ValueError, match="checkpoints/3 is damaged"):
        segjax.load(tmp_path / "c")


def test_finished_outputs_stay_when_a_later_one_cannot_be_written(seg, tmp_path):
    out = seg(picture(200, 200), canvas=(200, 200))
    out.save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/b\.png cannot be written"):
        out.save(tmp_path / "file" / "b.png")
    seg.tiled(out.image, tmp_path / "b.npy", tile=128, overlap=32)
    # A full disk: no file may grow beyond 2000 bytes.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        for write in (out.save, lambda path: seg.tiled(out.image, path, tile=128, overlap=32)):
            for name in ("a", "c"):
                path = tmp_path / f"{name}{'.png' if write == out.save else '.npy'}"
                with pytest.raises(ValueError, match="cannot be written: File too large"):
                    write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a.png").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.npy", "file"]
