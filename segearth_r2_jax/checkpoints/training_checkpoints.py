"""The steps of a run, in DIR/steps: saved in the background, the last and the best kept, damaged ones passed over.

steps/<n>/ holds, after n training steps: trainable/, optimizer/, metadata/ (the position in the data), metrics/ and files.json.
"""

from __future__ import annotations

import copy
import math
import os
import re
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from segearth_r2_jax.checkpoints import sealed_folder
from segearth_r2_jax.checkpoints.array_trees import tree_shapes
from segearth_r2_jax.checkpoints.json_files import read_json
from segearth_r2_jax.checkpoints.key_rules import check_tree
from segearth_r2_jax.checkpoints.manager import absolute
from segearth_r2_jax.checkpoints.termination import Termination
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import Params, flatten


class Restored(NamedTuple):
    """What a run continues from; `step` counts the steps that were done."""

    step: int
    trainable: Params
    optimizer: Any
    metadata: dict[str, Any]


class TrainingCheckpoints:
    """The steps of a run: the last `keep` (None: all) and, besides, the `keep_best` with the largest `best_metric` are kept.

    A context manager. Opening the folder removes what a run that was killed left unfinished in it. While it is open SIGTERM does not
    end the process: the run asks `reached_preemption` after every step.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int | None = 3,
        save_every: int = 1000,
        keep_best: int = 0,
        best_metric: str = "validation/gIoU",
    ):
        self._folder = absolute(directory) / "steps"
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            sealed_folder.clean(self._folder)
        sealed_folder.wait_for_all("checkpoint folder is clean")
        self._keep, self._save_every = keep, save_every
        self._keep_best, self._best_metric = keep_best, best_metric
        whole = [path for path in self._folder.iterdir() if path.name.isdigit() and sealed_folder.is_whole(path)]
        # Step -> its metric; every process has the same.
        self._saved = {int(path.name): _read_metric(path, best_metric) for path in whole}
        self._saving: tuple[int, threading.Thread] | None = None
        self._error: Exception | None = None
        self._termination = Termination()
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(), async_options=ocp.AsyncOptions(post_finalization_callback=self._seal)
        )

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        try:
            self.close()
        except UserError:
            # The run already ends for a reason, and one line.
            if kind is None:
                raise

    def save(
        self,
        step: int,
        trainable: Params,
        optimizer: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Save the state after `step` steps if it is due (a multiple of `save_every`, or `force`). True if a save was begun.

        It goes on in the background once the arrays are copied off the device. `metadata` is JSON: the position in the data, for one.
        `metrics` may hold the one by which the best steps are chosen.

        Raises:
            UserError: the save before this one failed.
        """
        due = force or step % self._save_every == 0
        if not due or step in self._saved or (self._saving is not None and self._saving[0] == step):
            return False
        self.wait()
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        items = {
            "trainable": ocp.args.StandardSave(trainable),
            "optimizer": ocp.args.StandardSave(optimizer),
            "metadata": ocp.args.JsonSave(copy.deepcopy(dict(metadata or {}))),  # Written in the background.
            "metrics": ocp.args.JsonSave(metrics),
        }
        thread = threading.Thread(target=self._finish, args=(step, metrics.get(self._best_metric)), name="checkpoint")
        self._saving = step, thread
        try:
            self._checkpointer.save(self._folder / str(step), args=ocp.args.Composite(**items))
        except OSError as error:
            self._saving = None
            raise self._failed(step, error) from error
        thread.start()
        return True

    def reached_preemption(self, step: int) -> bool:
        """Whether the run is to save after this step and leave. Every process calls it after every step, and all get the same answer.

        Raises:
            UserError: a save that was begun has failed.
        """
        if self._saving is not None and not self._saving[1].is_alive():
            self.wait()
        return self._termination.reached(step)

    def latest_step(self) -> int | None:
        """The newest step that is saved."""
        return max(self._saved, default=None)

    def restore(self, abstract_trainable: Params, abstract_optimizer: Any, *, step: int | None = None) -> Restored | None:
        """The state after `step` steps, by default after the newest undamaged one; None if there is none.

        The abstract trees give structure, dtypes and shardings (which may differ from the saved ones). Damaged steps newer than the one
        that is read are renamed, with a line.

        Raises:
            UserError: the saved state is not one of this model and optimizer, or the step that was asked for is damaged.
        """
        self.wait()
        if step is None:
            step = self._newest_undamaged()
            if step is None:
                return None
        elif damage := sealed_folder.find_damage(self._folder / str(step)):
            raise UserError(f"{self._folder / str(step)} is damaged: {damage}")
        where = self._folder / str(step)
        shapes = {path: tuple(leaf.shape) for path, leaf in tree_shapes(where / "trainable").items()}
        check_tree(shapes, {path: tuple(leaf.shape) for path, leaf in flatten(abstract_trainable).items()}, str(where))
        items = {
            "trainable": ocp.args.StandardRestore(abstract_trainable),
            "optimizer": ocp.args.StandardRestore(abstract_optimizer),
            "metadata": ocp.args.JsonRestore(),
        }
        try:
            restored = self._checkpointer.restore(where, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(f"{where}: was not saved by this configuration ({str(error).splitlines()[0]})") from error
        return Restored(step, restored["trainable"], restored["optimizer"], restored["metadata"])

    def wait(self) -> None:
        """Until the save that was begun is on disk.

        Raises:
            UserError: it failed; the steps before it are untouched.
        """
        if self._saving is None:
            return
        step, thread = self._saving
        thread.join()
        self._saving = None
        if self._error is not None:
            error, self._error = self._error, None
            raise self._failed(step, error) from error

    def close(self) -> None:
        """Wait, and end the background threads."""
        self._termination.close()
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def _newest_undamaged(self) -> int | None:
        had_steps = bool(self._saved)
        for step in sorted(self._saved, reverse=True):
            damage = sealed_folder.find_damage(self._folder / str(step))
            if damage is None:
                return step
            sealed_folder.set_aside(self._folder / str(step), damage)
            del self._saved[step]
        if had_steps:
            sealed_folder.say(f"{self._folder}: no undamaged step is left; the run begins again")
        return None

    def _seal(self) -> None:
        sealed_folder.seal(self._folder / str(self._saving[0]))

    def _finish(self, step: int, metric: float | None) -> None:
        """In the background: waits for the save, and deletes what need no longer be kept."""
        try:
            self._checkpointer.wait_until_finished()
            self._saved[step] = metric
            kept = steps_to_keep(self._saved, self._keep, self._keep_best)
            for old in self._saved.keys() - kept:
                del self._saved[old]
                if jax.process_index() == 0:
                    sealed_folder.delete(self._folder / str(old))
        except Exception as error:  # Of every type that a file system's client may raise; `wait` raises it again.
            self._error = error

    def _failed(self, step: int, error: Exception) -> UserError:
        left = ", ".join(str(number) for number in sorted(self._saved)) or "none"
        return UserError(
            f"{self._folder / str(step)} could not be saved: {_reason(error)}; whole steps: {left}; the same command continues"
        )


def _reason(error: Exception) -> str:
    """What the operating system said, if it was asked; TensorStore tells at length what it was doing."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.errno:
        return error.strerror
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def steps_to_keep(saved: Mapping[int, float | None], keep: int | None, keep_best: int) -> set[int]:
    """The last `keep` steps (None: all; the newest always) and the `keep_best` with the largest metric (of equal ones the newer)."""
    last = sorted(saved) if keep is None else sorted(saved)[-max(keep, 1) :]
    judged = [step for step, metric in saved.items() if metric is not None and math.isfinite(metric)]
    best = sorted(judged, key=lambda step: (saved[step], step), reverse=True)[:keep_best]
    return {*last, *best}


def _read_metric(folder: epath.Path, name: str) -> float | None:
    try:
        value = read_json(folder / "metrics" / "metadata").get(name)
    except UserError:  # Damaged, which is found when the step is read.
        return None
    return float(value) if isinstance(value, int | float) else None
