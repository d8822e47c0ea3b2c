"""Steps of training as pure functions, and the one place that maps a step over devices."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from segjax import augment, compiling, crf_rnn, losses
from segjax import rows as rows_lib
from segjax import state as state_lib
from segjax.config import Config
from segjax.state import TrainState

P = jax.sharding.PartitionSpec
AXIS = rows_lib.BATCH
Batch = dict[str, jax.Array]  # image: uint8 [B, H, W, 3], label: uint8 [B, H, W]


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    config: Config,
    tx: optax.GradientTransformation,
    class_weights: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from this device's share of a batch.

    With `train.max_skipped` a step whose loss or gradient is not finite changes nothing but the
    number of the step; the schedule does not count it.

    The loss is `sum(loss) / count(valid)` over the global batch. Devices differ in their number of
    valid pixels, so sum and count are added up over the devices before one is divided by the
    other. The augmentation of an image depends on its index in the global batch, and not on the
    number of devices.

    Args:
      state: the same on every device.
      batch: this device's images and labels, padded to one size.
      key: of the run; the number of the step is folded in here.
      config: of the run; `config.model` shares BatchNorm statistics over the axis "batch". With
        `config.crf.learn` the CRF refines the logits; its parameters are `params["crf"]`.
      tx: the optimiser, of `state.transformation`.
      class_weights: float32 [C], factors of the pixels of each class; None for 1.

    Returns:
      The new state and the scalars "loss" and "grad_norm", the same on every device.
    """
    image, label, key = _augmented(batch, jax.random.fold_in(key, state.step), config)
    image, label = (rows_lib.split(x, config.train.rows) for x in (image, label))

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        outputs, batch_stats = state_lib.forward(config.model, variables, image, config.input, key)
        if config.crf.learn:
            outputs = crf_rnn.train_outputs(
                outputs, image, params["crf"], config.crf, config.loss.align_corners
            )
        return _loss(outputs, label, config.loss, class_weights), batch_stats

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    loss, grads = jax.lax.psum((loss, grads), AXIS)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    new = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    norm = optax.tree.norm(grads)
    if config.train.max_skipped:  # otherwise the program is without it
        good, old = jnp.isfinite(loss) & jnp.isfinite(norm), state.replace(step=new.step)
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    return new, {"loss": loss, "grad_norm": norm}


def batch_stats_step(
    variables: dict[str, Any], batch: Batch, key: jax.Array, *, config: Config
) -> Any:
    """Returns the BatchNorm statistics of one batch of whole images, without augmentation.

    In SegNet's workflow (its script compute_bn_statistics.py) the network runs over the training
    set in training mode, and the means and variances of all batches are averaged.

    Args:
      variables: "params" and "batch_stats".
      batch: this device's images.
      key: of dropout.
      config: of the run.
    """
    model = state_lib.with_norm(config.model, decay=0.0, frozen=False)
    key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
    image = rows_lib.split(batch["image"], config.train.rows)
    return state_lib.forward(model, variables, image, config.input, key)[1]


def parallel(
    step: Callable[..., Any],
    *,
    in_axes: tuple[Any, ...] = (None, 0, None),
    out_axes: Any = None,
    donate: bool = False,
    devices: Sequence[jax.Device] | None = None,
    config: Config,
    **static: Any,
) -> Callable[..., Any]:
    """Maps a step over devices: the only place of the project that does.

    Each device has a copy of the state, without a leading axis: None in `in_axes` and `out_axes`.
    BatchNorm statistics are those of the global batch. `train.engine` chooses what maps; the
    results are the same.

    Args:
      step: a function of the state, a batch and what else `in_axes` counts.
      in_axes: as for pmap: 0 for what is split over the devices, None for what each one gets whole.
      out_axes: as for pmap: None for results that are equal on all devices.
      donate: the step trains: the memory of the first argument is used again for the result.
      devices: all when None.
      config: of the run.
      **static: other keyword arguments of the step, which do not change during a run.
    """
    config = dataclasses.replace(config, model=state_lib.with_norm(config.model, axis_name=AXIS))
    donated = 0 if donate else ()
    step = functools.partial(step, config=config, **static)
    libraries = config.compile.libraries
    jit = functools.partial(
        compiling.jit, libraries=libraries, training=donate, donate_argnums=donated
    )
    if config.train.engine == "shard_map":
        mesh = rows_lib.mesh(devices or jax.devices(), config.train.rows)
        return _sharded(step, mesh, in_axes, out_axes, jit)
    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=donated,
        devices=devices,
    )
    # pmap takes no options of the compiler. Inside jit it would not know arrays of other processes.
    if not (libraries and compiling.options()) or jax.process_count() > 1:
        return mapped
    # A function around it: jit would take over pmap's own `lower`, which knows no options.
    return jit(lambda *arguments: mapped(*arguments))


def _sharded(
    step: Callable[..., Any],
    mesh: jax.sharding.Mesh,
    in_axes: tuple[Any, ...],
    out_axes: Any,
    jit: Callable[..., Any],
) -> Callable[..., Any]:
    """Maps a step by shard_map over the global arrays of all processes, as pmap would.

    Without `check_vma` a collective inside has pmap's gradient; with it, the gradients of
    parameters that all devices share would be added up twice. The axis "rows", where there is one,
    is left to the compiler.
    """
    place = lambda axis: P() if axis is None else P(AXIS)
    in_specs = tuple(place(axis) for axis in in_axes)
    out_specs = jax.tree.map(place, out_axes, is_leaf=lambda axis: axis is None)

    def of_device(*arguments: Any) -> Any:
        own = zip(arguments, in_specs, strict=True)
        arguments = [jax.tree.map(_only, a) if spec == P(AXIS) else a for a, spec in own]
        expand = lambda spec, x: jax.tree.map(lambda x: x[None], x) if spec == P(AXIS) else x
        return jax.tree.map(expand, out_specs, step(*arguments))

    mapped = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names={AXIS},
        check_vma=False,
    )
    shardings = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), out_specs)
    mapped = jit(mapped, out_shardings=shardings)  # else the compiler may leave rows apart
    if jax.process_count() == 1:
        return mapped

    def placed(arguments: tuple[Any, ...]) -> list[Any]:
        return [
            jax.tree.map(functools.partial(_moved, mesh=mesh, spec=spec), argument)
            for argument, spec in zip(arguments, in_specs, strict=True)
        ]

    def over_processes(*arguments: Any) -> Any:
        # What all devices share stays global: the next step takes it, and a host may read it.
        to_local = functools.partial(_moved, mesh=mesh.local_mesh, spec=P(AXIS))
        back = lambda spec, x: jax.tree.map(to_local, x) if spec == P(AXIS) else x
        return jax.tree.map(back, out_specs, mapped(*placed(arguments)))

    over_processes.lower = lambda *arguments: mapped.lower(*placed(arguments))
    return over_processes


def _only(x: jax.Array) -> jax.Array:
    if x.shape[0] != 1:
        raise ValueError(f"a batch has {x.shape[0]} parts for each device, or group of them")
    return x[0]


def _moved(x: Any, mesh: jax.sharding.Mesh, spec: jax.sharding.PartitionSpec) -> jax.Array:
    """Returns an array on another mesh of which this process has the same devices, not copied."""
    sharding = jax.sharding.NamedSharding(mesh, spec)
    if isinstance(x, jax.Array) and x.sharding == sharding:
        return x
    ours = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    if not (isinstance(x, jax.Array) and set(x.sharding.addressable_devices) == set(ours)):
        x = jax.device_put(x, jax.sharding.NamedSharding(mesh.local_mesh, spec))
    shape = (mesh.shape[AXIS], *x.shape[1:]) if len(spec) else x.shape
    shards = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def precompile(
    step: Callable[..., Any], *arguments: Any, counted: Callable[..., Any] | None = None
) -> float | None:
    """Compiles a mapped step for arguments, and computes nothing; later calls use the program.

    Args:
      step: of `parallel`.
      *arguments: of the step.
      counted: the step whose operations are wanted, where it is another: with `without_remat`.

    Returns:
      The operations, as `operations` counts them.
    """
    lowered = step.lower(*arguments)
    lowered.compile()
    return operations(counted.lower(*arguments) if counted else lowered)


def without_remat(config: Config) -> Config | None:
    """Returns the configuration of a run whose step makes no map twice, for the operations that
    the network itself needs; None where it is `config`, or where the network has no `remat`."""
    if not getattr(config.model, "remat", False):
        return None
    return dataclasses.replace(config, model=config.model.clone(remat=False))


def operations(lowered: jax.stages.Lowered) -> float | None:
    """Returns the operations of a program on one device, or on those that share the rows of an
    image; None where JAX does not tell.

    They are those of XLA's cost analysis before optimisation: afterwards it does not see what is
    handed to libraries (cuDNN, cuBLAS, oneDNN). A multiply-add counts as two, the body of a loop
    once.
    """
    try:
        # As Lowered.cost_analysis does, which asks the client of the program's own devices; those
        # of accelerators cannot tell.
        from jax._src.lib import _jax

        client = jax.local_devices(backend="cpu")[0].client
        module = lowered.compiler_ir("hlo").as_hlo_module()
        return _jax.hlo_module_cost_analysis(client, module).get("flops")
    except (ImportError, AttributeError, RuntimeError):  # another JAX, or one without a CPU
        return None


def replicated(tree: Any, devices: Sequence[jax.Device] | None = None, *, rows: int = 1) -> Any:
    """Copies arrays to the devices of this process, placed as a mapped step returns them.

    A mapped step copies arrays of the host to all devices at every call, and is compiled again for
    arrays that are placed in another way.

    Args:
      tree: of arrays.
      devices: all of this process when None.
      rows: `train.rows` of the run.
    """
    mesh = rows_lib.mesh(devices or jax.local_devices(), rows)
    # An array of all processes is read where this one has it.
    own = lambda x: x if getattr(x, "is_fully_addressable", True) else x.addressable_data(0)
    return jax.device_put(jax.tree.map(own, tree), jax.sharding.NamedSharding(mesh, P()))


def _augmented(
    batch: Batch, key: jax.Array, config: Config
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns augmented images in 0..255, labels int32, and a key of this device for dropout."""
    count, label = batch["image"].shape[0], batch["label"].astype(jnp.int32)
    device = jax.lax.axis_index(AXIS)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(device * count + jnp.arange(count))
    change = functools.partial(augment.augment, config=config.augment, fill=config.input.mean)
    image, label = jax.vmap(change)(keys, batch["image"], label)
    # The indices of images are 0 and more, so no image has this key.
    return image, label, jax.random.fold_in(key, -1 - device)


def _loss(
    outputs: dict[str, jax.Array],
    label: jax.Array,
    config: Any,
    class_weights: jax.Array | None,
) -> jax.Array:
    """Returns this device's part of the weighted sum of the losses of all heads."""
    total = jnp.zeros((), jnp.float32)
    for head, weight in config.heads.items():
        logits, target = losses.match_resolution(
            outputs[head], label, resolution=config.resolution, align_corners=config.align_corners
        )
        loss, count = losses.cross_entropy(logits, target, class_weights=class_weights)
        total += weight * loss / jnp.maximum(jax.lax.psum(count, AXIS), 1.0)
    return total
