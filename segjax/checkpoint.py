"""Checkpoints of a run: asynchronous, atomic, the newest few and the best."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from segjax.state import TrainState


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/<step>`.

    A checkpoint holds the state, the position in the data and what is needed to use the network
    without its training data: configuration, classes, palette. It appears under its name only
    when it is complete; a process killed while writing leaves none or a whole one.
    """

    def __init__(
        self, workdir: str | pathlib.Path, *, keep: int = 3, read_only: bool = False
    ) -> None:
        """Opens the folder, and makes it unless `read_only`.

        Args:
          workdir: the folder of the run.
          keep: newest checkpoints to keep, beside the one with the best "mean_iou".
          read_only: change nothing.

        Raises:
          ValueError: `read_only` and there is no checkpoint, or one holds an empty file.
        """
        root = pathlib.Path(workdir).expanduser().absolute() / "checkpoints"
        if read_only and not any(p.name.isdigit() and p.is_dir() for p in root.glob("*")):
            found = "has none" if root.exists() else "is missing"
            raise ValueError(
                f"{workdir} holds no checkpoint ({root} {found}); give the --workdir of a run that "
                "has saved one"
            )
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=_mean_iou, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=_mean_iou,
            # Orbax's own read_only warns of itself; without these two it changes nothing either.
            cleanup_tmp_directories=not read_only,
            create=not read_only,
        )
        self._root = root
        self._refuse_empty()
        self._manager = ocp.CheckpointManager(root, options=options)

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        position: dict[str, Any],
        metadata: dict[str, Any],
        scores: dict[str, float] | None = None,
    ) -> None:
        """Starts writing a checkpoint; the state may be donated as soon as this returns.

        Args:
          step: batches seen.
          state: replicated over the devices.
          position: in the training data, JSON values.
          metadata: JSON values.
          scores: of the validation split; the best checkpoint is the one of the highest "mean_iou".
        """
        if step in self._manager.all_steps():
            return
        # On several processes a pmapped state is local to each, which Orbax does not write.
        host = jax.device_get(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(host),
                position=ocp.args.JsonSave(position),
                metadata=ocp.args.JsonSave(metadata),
            ),
            metrics=scores,
        )

    def latest(self) -> int | None:
        """Returns the newest step, None when there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Returns the step with the best "mean_iou", the newest when none was scored."""
        scored = self._manager.best_step()
        return self.latest() if scored is None else scored

    def find(self, name: str) -> int:
        """Returns the step that "best", "latest" or a number means.

        Raises:
          ValueError: there is no such checkpoint.
        """
        named = {"best": self.best, "latest": self.latest}
        step = named[name]() if name in named else int(name) if name.isdigit() else None
        if step not in self._manager.all_steps():
            saved = ", ".join(map(str, self._manager.all_steps()))
            raise ValueError(f"no checkpoint {name!r}; accepted are best, latest, {saved}")
        return step

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state and the position saved at a step.

        Raises:
          ValueError: the checkpoint is damaged, or is not one of a state like `like`.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, jax.device_get(like))
        restored = self._read(
            step, state=ocp.args.StandardRestore(shapes), position=ocp.args.JsonRestore()
        )
        return restored.state, restored.position

    def variables(self, step: int) -> dict[str, Any]:
        """Returns what a prediction needs of the state saved at a step: "params" (their moving
        average where the run keeps one) and "batch_stats", as numpy arrays."""
        state = self._read(step, state=ocp.args.StandardRestore()).state
        if missing := {"params", "batch_stats", "opt_state"} - set(state):
            raise ValueError(
                f"checkpoint {self._manager.directory / str(step)} is none of segjax: it has no "
                f"{', '.join(sorted(missing))}"
            )
        averaged = [
            leaf["averaged"]
            for leaf in jax.tree.leaves(state["opt_state"], is_leaf=_holds_average)
            if _holds_average(leaf)
        ]
        params = averaged[0] if averaged else state["params"]
        return {"params": params, "batch_stats": state["batch_stats"]}

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata saved at a step."""
        return self._read(step, metadata=ocp.args.JsonRestore()).metadata

    def wait(self) -> None:
        """Returns when everything is written; raises what went wrong while writing."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Writes everything and gives up the folder."""
        self._manager.close()

    def _refuse_empty(self) -> None:
        """A full disk or a failed copy leaves empty files, on which Orbax fails obscurely."""
        for folder in (p for p in sorted(self._root.glob("*")) if p.name.isdigit()):
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                if not path.stat().st_size:
                    raise ValueError(
                        f"checkpoint {folder} is damaged: {path.relative_to(folder)} is empty; "
                        "remove this folder to go on from another step, or start in another "
                        "--workdir"
                    )

    def _read(self, step: int, **items: Any) -> Any:
        folder = self._manager.directory / str(step)
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f"checkpoint {folder} cannot be read: {error}\nIt is damaged, or holds another "
                "network; start in another --workdir, or remove this folder to go on from an "
                "earlier step"
            ) from error


def _mean_iou(scores: dict[str, float]) -> float:
    """That of network and CRF where they were trained together."""
    return scores.get("crf_mean_iou", scores["mean_iou"])


def _holds_average(leaf: Any) -> bool:
    return isinstance(leaf, dict) and set(leaf) == {"averaged"}
