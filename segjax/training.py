"""A training run, from its first step or its last checkpoint to the end."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from segjax import checkpoint, files, hosts, log, paths, pretrained, profiling, rows, signals, steps
from segjax import config as config_lib
from segjax import state as state_lib
from segjax import workdir as workdir_lib
from segjax.config import Config
from segjax.data import datasets, pipeline
from segjax.evaluate.result import Evaluation
from segjax.evaluate.scoring import evaluator
from segjax.pretrained.files import CONFIG, WEIGHTS
from segjax.report.evaluation_files import write_evaluation, write_report


def train(
    config: Config,
    workdir: str | os.PathLike[str],
    *,
    profile: tuple[int, int] | None = None,
) -> int:
    """Trains a network, or goes on where `workdir` stopped.

    Args:
      config: of the run.
      workdir: its folder, of this machine or gs://BUCKET/FOLDER; made when missing.
      profile: the first and the last step to trace into `workdir`/profile, or for a bucket into
        ~/.cache/segjax/profiles; None for none.

    Returns:
      The number of the signal that stopped the run, 0 when it came to its end.

    Raises:
      ValueError: configuration, data, devices, folder and `profile` do not fit together.
      FloatingPointError: the loss, a gradient or a parameter is not finite.
    """
    workdir = paths.of(workdir)
    times = log.Times()
    if profile and not 1 <= profile[0] <= profile[1] <= config.train.steps:
        raise ValueError(
            f"--profile is {profile[0]}:{profile[1]}, but train.steps is {config.train.steps}; "
            "write FIRST:LAST, two steps of the run, the earlier one first"
        )
    if getattr(config.model, "dtype", "") == "float16":
        raise ValueError(
            "model.dtype is float16, in which small gradients become 0, since the loss is not "
            "scaled; train with bfloat16 or float32"
        )
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals.stop_signals())
        link = hosts.link()
        if link is not None:
            compare(config, link)
        config, prepared = prepare(config)
        stop.begin()
        warn(config)
        weights = class_weights(config, prepared)
        about = metadata(config, prepared.dataset, weights)
        session = link.session if link else ""
        owned = stack.enter_context(workdir_lib.only_one(workdir, session=session))
        if link is not None:
            compare(config, link, prepared)
            link.same(workdir_lib.seen(workdir, link.session))
        checkpoints = stack.enter_context(checkpoint.Checkpoints(workdir, keep=config.train.keep))
        stack.enter_context(hosts.together())  # a checkpoint waits for all processes
        state, tx = initial_state(config, fresh=not checkpoints.latest())
        classes = prepared.dataset.classes
        start, state, position = workdir_lib.resume(workdir, config, checkpoints, state, classes)
        # The last start may have been cut off between its scores and their file.
        file = workdir / "eval" / f"{start:06d}.json"
        scored = start in checkpoints.scores() and file.exists()
        if link is not None:  # one alone may have found damage
            link.same({"goes on after step": start, "scored": scored})
        state = steps.replicated(state, rows=config.train.rows)
        restarts = workdir_lib.begin(config, workdir)
        batches = stack.enter_context(train_batches(config, prepared, position))
        writer = stack.enter_context(log.Log(workdir, step=start, scored=scored, owned=owned))
        keep = functools.partial(keep_batch, config, prepared, workdir, batches, link)
        reporter = stack.enter_context(log.Reporter(config, writer, start, keep))
        traces = paths.cached(workdir / "profile", "profiles")  # JAX writes to disks alone
        trace = stack.enter_context(profiling.Profile(traces, profile))
        mapped = functools.partial(
            steps.parallel, steps.train_step, tx=tx, class_weights=weights, donate=True
        )
        train_step, once = mapped(config=config), steps.without_remat(config)
        score = Scorer(config, prepared, workdir, checkpoints, reporter, writer, stop, weights)
        key = steps.replicated(jax.random.key(config.train.seed), rows=config.train.rows)

        times.go_on("steps")
        total = config.train.steps
        try:
            stop.check()
            if score.is_due(start) and not scored:
                with times.spent("evaluation"):
                    score(start, state)
            for step in range(start + 1, total + 1):
                trace.begin(step)
                with times.spent("input"):
                    batch = next(batches)
                images = {"image": batch.image, "label": batch.label}
                if step == start + 1:
                    with times.spent("compilation"):
                        counted = mapped(config=once) if once else None
                        flops = steps.precompile(train_step, state, images, key, counted=counted)
                        reporter.compiled(flops, batches.wait)
                state, metrics = train_step(state, images, key)
                trace.end(step, metrics)
                reporter.add(step, metrics, batch.ids)
                stopping = stop.reached()
                save = stopping or score.is_due(step) or step % config.train.checkpoint_every == 0
                if save or step % config.train.log_every == 0:
                    reporter.flush(batches.wait)
                if measures_statistics(config, step):
                    with times.spent("BatchNorm statistics"):
                        state = recompute_batch_stats(config, prepared, state, key, stop.check)
                if save or measures_statistics(config, step + 1):
                    # Before anything is reported: a fault there costs nothing.
                    with times.spent("saving"):
                        owned()
                        writer.send()
                        place = batches.get_state()
                        checkpoints.save(step, state, position=place, metadata=about)
                if stopping:
                    break
                if score.is_due(step):
                    with times.spent("evaluation"):
                        score(step, state)
        except signals.StoppedError:
            pass  # statistics and scores are made after the next start
        except FloatingPointError as error:
            with contextlib.suppress(ValueError):
                checkpoints.wait()
            raise FloatingPointError(
                f"{error}; last good checkpoint {checkpoints.last_good()}. The same command "
                "would end alike: go on with a lower --config.optim.lr, with "
                "--config.optim.clip_norm=1, or, if such steps are rare, leave them out, "
                "--config.train.max_skipped=5"
            ) from error
        times.go_on("saving")
        checkpoints.wait()
        reached = checkpoints.latest() or 0
        done = reached == total and reached in checkpoints.scores()
    times.go_on("evaluation")
    owned()
    with log.harmless(f"{workdir}/report.html"):
        write_report(workdir)
    log.show(times.table(restarts, writer.repeated))
    if profile and start >= profile[1] and jax.process_index() == 0:
        log.warn(f"--profile: step {profile[1]} was before step {start}; nothing is traced")
    if start >= total:
        log.say(f"{workdir} is at step {start} of {total}: nothing is left to train")
    if stop.signal and not done:
        kept = f"step {reached} of {total} is saved, the same command goes on from there"
        log.say(f"stopped; {kept if reached else 'nothing is saved yet'}")
        return stop.signal
    return 0


def measures_statistics(config: Config, step: int) -> bool:
    """Whether BatchNorm statistics are measured after a step, the last one.

    The step before it is saved: a stop while they are measured costs one step.
    """
    return bool(config.train.recompute_batch_stats) and step == config.train.steps


@dataclasses.dataclass
class Scorer:
    """Scores a checkpoint on the validation split and shows the result.

    The scores are written down before anything is shown: a picture that cannot be drawn is a
    warning.
    """

    config: Config
    prepared: datasets.Prepared
    workdir: pathlib.Path
    checkpoints: checkpoint.Checkpoints
    reporter: log.Reporter
    writer: log.Log
    stop: signals.Stop
    class_weights: np.ndarray | None

    def is_due(self, step: int) -> bool:
        """Whether the state after a step is scored: every `eval_every` steps, and at the end."""
        every = self.config.train.eval_every
        return step == self.config.train.steps or bool(step and every and step % every == 0)

    def __call__(self, step: int, state: state_lib.TrainState) -> None:
        """Scores the state after a step; raises StoppedError when a signal comes meanwhile."""
        split, classes = self.config.data.val_split, self.prepared.dataset.classes
        variables = {"params": state.eval_params, "batch_stats": state.batch_stats}
        result = self._evaluator(variables, split)
        self.reporter.scored(step, result.summary())
        self.writer.send()
        self.checkpoints.score(step, result.summary())  # last: until then they are made again
        with log.harmless(f"the evaluation of step {step}"):
            log.console.print(result.table(classes, f"{split}, step {step}"))
            sheet = write_evaluation(
                result,
                self.config,
                self.prepared,
                self.workdir,
                f"{step:06d}",
                split=split,
                step=step,
            )
            self.writer.picture(step, split, sheet)

    @functools.cached_property
    def _evaluator(self) -> Callable[[dict[str, Any], str], Evaluation]:
        return evaluator(
            self.config, self.prepared, class_weights=self.class_weights, each=self.stop.check
        )


def prepare(
    config: Config, splits: Sequence[str] = (), classes: Sequence[str] = ()
) -> tuple[Config, datasets.Prepared]:
    """Prepares the data of a run, after everything that can be checked without it has been.

    Args:
      config: of the run.
      splits: those to score; by default those to train and to validate on.
      classes: names, by id, of the checkpoint that is scored; () for none.

    Returns:
      The configuration with what the data tell, and the data. The number of classes is filled in
      where it is 0, and the crop where `augment.largest_crop` limits it.

    Raises:
      ValueError: configuration, data and devices do not fit together.
    """
    config_lib.check(config)
    groups = rows.mesh(jax.local_devices(), config.train.rows).shape[rows.BATCH]
    if not splits:  # a batch that is scored is filled up
        config_lib.check(config, devices=groups * jax.process_count())
    first = jax.process_index() == 0
    prepared = datasets.prepare(config.data, splits, first=first, classes=classes)
    prepared = dataclasses.replace(prepared, aligned=config_lib.alignment(config))
    config = _from_data(config, prepared)
    given, names = config.model.num_classes, prepared.dataset.classes
    if classes:
        workdir_lib.compare_classes(classes, names)
    if given != len(names):
        raise ValueError(
            f"model.num_classes is {given} but {config.data.name} has {len(names)} classes "
            f"({', '.join(names[:4])}, ...); write --config.model.num_classes={len(names)}, or 0: "
            "those of the data"
        )
    pipeline.check(prepared, config.data)
    for split in prepared.folders:
        whole = prepared.filled_up(split, config.data.canvas)
        size = config.augment.crop if split == config.data.train_split else (0, 0)
        size = [given or side for given, side in zip(size, whole, strict=True)]
        rows.check(config.model, tuple(size), config.train.rows)
    return config, prepared


def _from_data(config: Config, prepared: datasets.Prepared) -> Config:
    """Returns the configuration with the number of classes and the crop that the data tell."""
    model, augment = config.model, config.augment
    if not model.num_classes:
        model = model.clone(num_classes=prepared.dataset.num_classes)
    if augment.largest_crop and not all(augment.crop):
        own = prepared.crop(augment.largest_crop)
        crop = tuple(given or side for given, side in zip(augment.crop, own, strict=True))
        augment = dataclasses.replace(augment, crop=crop)
    return dataclasses.replace(config, model=model, augment=augment)


def compare(config: Config, link: hosts.Link, prepared: datasets.Prepared | None = None) -> None:
    """Ends all processes, and says where they differ, unless they are about to do the same.

    Versions, devices, configuration (but not where this host has its data) and prepared data must
    be alike. All but the data is compared before they are prepared, too: of a cache in a bucket a
    process would wait for ever for what the first one does not write.
    """
    environment = log.environment()
    values = {
        **environment["packages"],
        "python": environment["python"],
        "devices": [device.device_kind for device in jax.local_devices()],
        **{
            f"config.{part}.{field}": value
            for part, fields in config_lib.to_dict(config).items()
            for field, value in fields.items()
            if (part, field) not in (("data", "dir"), ("data", "cache"))
        },
    }
    for split in prepared.folders if prepared else ():
        values[f"images of {split}"] = len(prepared.source(split))
        values[f"canvas of {split}"] = prepared.canvas(split)
        summary = prepared.summaries[split]
        for i, name in enumerate(prepared.dataset.classes):
            counted = (name, summary.pixels[i], summary.class_weights[i])
            values[f"name, pixels and weight of class {i} of {split}"] = counted
    link.same(values)


def warn(config: Config) -> None:
    """Prints what is allowed but rarely meant."""
    norm = getattr(config.model, "norm", None)
    if norm is not None and not norm.frozen and config.train.batch_size < 8:
        advice = ["a larger --config.train.batch_size"]
        if not config.train.recompute_batch_stats:
            advice.append(
                "statistics of the whole training set at the end, "
                "--config.train.recompute_batch_stats=-1"
            )
        advice.append(
            "statistics frozen at those of trained weights, --config.model.norm.frozen=True"
        )
        log.warn(
            f"global batch {config.train.batch_size} with trainable BatchNorm: statistics will be "
            f"poor. Options: {'; '.join(advice)}"
        )
    stride = config_lib.alignment(config)
    for field, size in (("data.canvas", config.data.canvas), ("augment.crop", config.augment.crop)):
        right = [-(-(side - 1) // stride) * stride + 1 if side else 0 for side in size]
        if right != list(size):
            log.warn(
                f"{field} is {tuple(size)} and loss.align_corners is set: the scores of the "
                f"network are shifted, at the far end by up to {stride - 1} pixels, unless sides "
                f"are a multiple of {stride} and one more; write "
                f'--config.{field}="({right[0]},{right[1]})"'
            )
    updates = config.train.steps // config.optim.accumulate
    if config.optim.warmup > updates:
        log.warn(
            f"optim.warmup is {config.optim.warmup}, but train.steps makes {updates} updates: the "
            "learning rate never reaches its schedule"
        )


def class_weights(config: Config, prepared: datasets.Prepared) -> np.ndarray | None:
    """Returns the loss weights float32 [C] that `loss.class_weights` asks for, None for none.

    Raises:
      ValueError: the text is none that is accepted.
    """
    text = config.loss.class_weights
    if not text:
        return None
    if text == "median_frequency":
        return np.asarray(prepared.class_weights, np.float32)
    if text == "published" and prepared.dataset.class_weights:
        return np.asarray(prepared.dataset.class_weights, np.float32)
    return np.array(config_lib.given_class_weights(config), np.float32)


def initial_state(
    config: Config, *, fresh: bool = True
) -> tuple[state_lib.TrainState, optax.GradientTransformation]:
    """Returns the state of a run at step 0, on the host, and its optimiser.

    Args:
      config: of the run.
      fresh: start from `train.init_from`, which a run that goes on has no need of.

    Raises:
      ValueError: the network cannot be built, `loss.heads` names no output of it, or the weights
        cannot be read.
    """
    key = jax.random.fold_in(jax.random.key(config.train.seed), 2**32 - 1)  # beyond all steps
    crop = config.augment.crop if min(config.augment.crop) else (64, 64)
    try:
        variables = state_lib.init_variables(config.model, key, crop, config.crf)
        if not all(leaf.size for leaf in jax.tree.leaves(variables)):
            raise ValueError("a layer has no channels")
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise config_lib.unbuildable(config.model, error) from error
    image = jax.ShapeDtypeStruct((1, *crop, 3), np.float32)
    outputs = set(jax.eval_shape(config.model.apply, variables, image))
    outputs |= {"unary"} if config.crf.learn else set()
    if unknown := sorted(set(config.loss.heads) - outputs):
        raise ValueError(
            f"loss.heads names {', '.join(unknown)}; outputs of {type(config.model).__name__} are "
            f"{', '.join(sorted(outputs))}"
        )
    if config.train.init_from and fresh:
        variables, report = _start_from(config.train.init_from, config, variables)
        log.say(f"{config.train.init_from}: {report}")
    tx = state_lib.transformation(config, variables["params"])
    # From the host it goes to all devices alike, without a copy left on the first one.
    return jax.device_get(state_lib.create(variables, tx)), tx


def _start_from(
    path: str, config: Config, variables: dict[str, Any]
) -> tuple[dict[str, Any], pretrained.Report]:
    """Loads what fits of a run or of a file of weights; the rest keeps its initial values."""
    start = paths.of(path)
    if not (start.is_dir() or (start.name == WEIGHTS and start.with_name(CONFIG).is_file())):
        return pretrained.load(start, config.model, variables, strict=False)
    *_, given, metadata = workdir_lib.read(start)
    _warn_of_another_input(path, metadata, config)
    other = _another_network(path, metadata.get("config"), config)
    try:
        merged, report = pretrained.merge(variables, given)
    except ValueError as error:
        raise ValueError(f"train.init_from: {other}{error}") from error
    if len(report.loaded) < len(report.new):
        log.warn(f"train.init_from: {other}most of the network is initialised afresh")
    return merged, report


def _warn_of_another_input(path: str, metadata: Mapping[str, Any], config: Config) -> None:
    """Warns where the images that weights were trained on came to them in another way.

    Args:
      path: of the weights.
      metadata: what is stored with them.
      config: of the run.
    """
    fields = [("input", field.name) for field in dataclasses.fields(config.input)]
    trained = metadata.get("config")
    trained = trained if isinstance(trained, Mapping) else {}
    if "model" in trained:  # otherwise a classifier's, which has no corners
        fields.append(("loss", "align_corners"))
    if flags := _flags(trained, config, fields):
        log.warn(
            f"train.init_from: {path} was trained on images that were fed in another way; what it "
            f"has learnt fits with {' '.join(flags)}"
        )
    provenance = metadata.get("provenance")
    source = provenance.get("source") if isinstance(provenance, Mapping) else None
    known = pretrained.SOURCES.get(source) if isinstance(source, str) else None
    if known and (caution := known.caution(config.model)):
        log.warn(f"train.init_from: {path}: {caution}")


def _another_network(path: str, trained: Any, config: Config) -> str:
    """Returns what to write for the network that weights are of, where it is another.

    Args:
      path: of the weights.
      trained: the configuration that is stored with them, or what there is of one.
      config: of the run.
    """
    model = trained.get("model") if isinstance(trained, Mapping) else None
    kind = model.get("class") if isinstance(model, Mapping) else None
    own = type(config.model).__name__
    if kind is None:
        return ""
    if kind != own:
        return f"{path} holds weights of {kind}, and this is {own}; "
    names = {field.name for field in dataclasses.fields(config.model)}
    fields = [("model", name) for name in sorted(names - {"num_classes", "norm", "dtype", "remat"})]
    flags = " ".join(_flags(trained, config, fields))
    return f"{path} fits with {flags}; " if flags else ""


def _flags(
    trained: Mapping[str, Any], config: Config, fields: Iterable[tuple[str, str]]
) -> list[str]:
    """Returns "--config.part.field=value" for each of the fields in which a run differs."""
    flags = []
    for part, field in fields:
        old, new = trained.get(part), getattr(getattr(config, part), field)
        old = old.get(field) if isinstance(old, Mapping) else None
        if old is not None and old != (list(new) if isinstance(new, tuple) else new):
            value = f'"({", ".join(map(str, old))})"' if isinstance(old, list) else old
            flags.append(f"--config.{part}.{field}={value}")
    return flags


def train_batches(
    config: Config, prepared: datasets.Prepared, position: dict[str, Any] | None = None
) -> pipeline.Batches:
    """Returns the batches of a training run, from a position on that a checkpoint holds."""
    batches = pipeline.train_batches(
        prepared,
        config.data,
        batch_size=config.train.batch_size,
        mesh=rows.mesh(jax.local_devices(), config.train.rows),
        seed=config.train.seed,
        fill=config.input.mean,
    )
    if position is not None:
        batches.set_state(position)
    return batches


def keep_batch(
    config: Config,
    prepared: datasets.Prepared,
    workdir: pathlib.Path,
    batches: pipeline.Batches,
    link: hosts.Link | None,
    step: int,
    ago: int,
) -> str:
    """Saves this process's part of a batch that gave a loss that is not finite.

    `workdir`/not_finite/<step>.npz, <step>_<process>.npz of several, has "image" uint8
    [b, H, W, 3] and "label" uint8 [b, H, W] before augmentation, and "ids".

    Args:
      config: of the run.
      prepared: its data.
      workdir: its folder.
      batches: of the run; the batch is read anew, so that none has to be kept.
      link: to the other processes, which wait until all have saved: an error ends all.
      step: of the batch.
      ago: how many batches have been handed out since.

    Returns:
      What to say about it.
    """
    name = f"{step:06d}_{jax.process_index()}" if link else f"{step:06d}"
    path = workdir / "not_finite" / f"{name}.npz"
    with log.harmless(f"{path}"):
        place = batches.get_state()
        place["images"] -= (ago + 1) * config.train.batch_size
        with train_batches(config, prepared, place) as again:
            batch = next(again)
        image, label = (np.asarray(x) for x in (batch.image, batch.label))
        with files.whole_file(path) as file:
            np.savez_compressed(
                file,
                image=image.reshape(-1, *image.shape[2:]),
                label=label.reshape(-1, *label.shape[2:]),
                ids=np.array(batch.ids),
            )
    if link:
        link.same({"step": step})
    return f"its images are in {path}"


def metadata(
    config: Config, dataset: datasets.Dataset, class_weights: np.ndarray | None = None
) -> dict[str, Any]:
    """Returns what a checkpoint says about itself, as JSON values."""
    return {
        "config": config_lib.to_dict(config),
        "dataset": dataset.name,
        "classes": list(dataset.classes),
        "palette": [list(colour) for colour in dataset.palette],
        "class_weights": None if class_weights is None else class_weights.tolist(),
    }


def recompute_batch_stats(
    config: Config,
    prepared: datasets.Prepared,
    state: state_lib.TrainState,
    key: jax.Array,
    each: Callable[[], None] = lambda: None,
) -> state_lib.TrainState:
    """Returns the state with BatchNorm statistics averaged over the training set.

    SegNet's official workflow (its script compute_bn_statistics.py): means and variances of
    `train.recompute_batch_stats` batches of whole, unaugmented images are averaged.
    """
    size = config.train.batch_size
    count = config.train.recompute_batch_stats
    if count < 0:
        images = config.data.num_train or len(prepared.source(config.data.train_split))
        count = -(-images // size)
    step = steps.parallel(steps.batch_stats_step, config=config)
    variables = {"params": state.eval_params, "batch_stats": state.batch_stats}
    total = jax.tree.map(np.zeros_like, jax.device_get(state.batch_stats))
    with train_batches(config, prepared) as batches, log.progress() as bar:
        task = bar.add_task("BatchNorm statistics", total=count, text="")
        for i in range(count):
            batch = next(batches)
            images = {"image": batch.image, "label": batch.label}
            stats = step(variables, images, jax.random.fold_in(key, i))
            total = jax.tree.map(lambda t, s: t + np.asarray(s) / count, total, stats)
            bar.advance(task)
            each()
    return state.replace(batch_stats=total)
