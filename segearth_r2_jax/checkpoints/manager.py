"""Checkpoint folders: the one place that knows Orbax.

A folder is the same for a run's work directory and for converted weights:

    config.json       the network ("model") and what else a user of the weights must know (prompt template, mask canvas, ...)
    tokenizer.json    the tokenizer that the weights were trained with
    base/             parameters that training does not change; absent if there are none
    unused/           reference tensors that the network does not use, kept for export; absent if there are none
    steps/<n>/        after n training steps: trainable parameters, optimizer, metadata (the position in the data)

Trees are nested dicts with string keys, so that a path in a checkpoint is the path in the model. The parameters of a folder are base
overlaid with the trainable ones of the newest whole step. A step that was cut off while it was written is never read.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from segearth_r2_jax.checkpoints.json_files import read_json, write_json
from segearth_r2_jax.checkpoints.key_rules import check_tree
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import Params, flatten, unflatten
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config

# Orbax writes into "<name>.orbax-checkpoint-tmp", renames it when all is written, and marks it. The mark also tells a whole step from
# one that was copied in part.
_TEMPORARY = ".orbax-checkpoint-tmp"
_MARK = "commit_success.txt"


def _folder(directory: epath.PathLike) -> epath.Path:
    """Orbax takes absolute paths only."""
    return epath.Path(directory) if "://" in str(directory) else epath.Path(os.path.abspath(directory))


def write_config(directory: epath.PathLike, config: Mapping[str, Any]) -> None:
    """Write DIR/config.json; `config["model"]` is `SegEarthR2Config.to_dict()`. One process writes."""
    if jax.process_index() == 0:
        _folder(directory).mkdir(parents=True, exist_ok=True)
        write_json(_folder(directory) / "config.json", config)


def read_config(directory: epath.PathLike) -> dict[str, Any]:
    """DIR/config.json.

    Raises:
        UserError: there is none, or it does not describe a network.
    """
    path = _folder(directory) / "config.json"
    config = read_json(path)
    if not isinstance(config.get("model"), dict):
        raise UserError(f'{path}: no "model"; a checkpoint folder of this project has it (PyTorch weights go through `convert` first)')
    return config


def read_model_config(directory: epath.PathLike) -> SegEarthR2Config:
    """The network of DIR/config.json.

    Raises:
        UserError: there is none, or it has an unknown or a missing field.
    """
    config = read_config(directory)
    try:
        return SegEarthR2Config.from_dict(config["model"])
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{_folder(directory) / 'config.json'}: not a network of this version ({error})") from error


def save_base(directory: epath.PathLike, params: Params) -> None:
    """Write the parameters that training does not change, once and whole.

    Raises:
        UserError: the folder has them already.
    """
    _save_tree(_folder(directory) / "base", params)


def save_unused(directory: epath.PathLike, tensors: Mapping[str, Any]) -> None:
    """Keep the reference tensors that the network does not use, by the names that `KeyMap.to_parameters` gave."""
    if tensors:
        _save_tree(_folder(directory) / "unused", dict(tensors))


def load_unused(directory: epath.PathLike) -> dict[str, np.ndarray]:
    """The tensors that `save_unused` kept; empty if there are none."""
    path = _folder(directory) / "unused"
    return _restore(path, _metadata(path)) if _is_whole(path) else {}


def has_base(directory: epath.PathLike) -> bool:
    """Whether DIR/base is there and whole."""
    return _is_whole(_folder(directory) / "base")


def latest_step(directory: epath.PathLike) -> int | None:
    """The newest whole step under DIR/steps, None if there is none."""
    steps = _folder(directory) / "steps"
    if not steps.exists():
        return None
    return max((int(path.name) for path in steps.iterdir() if path.name.isdigit() and _is_whole(path)), default=None)


def load_parameters(directory: epath.PathLike, abstract_params: Params | None = None, dtype: jax.typing.DTypeLike | None = None) -> Params:
    """All parameters of the folder: base, overlaid with the newest whole step's trainable ones.

    abstract_params: the model's tree (`module_params` of the abstract module): the stored tree must be exactly this one. A leaf that
        carries a sharding is loaded as a jax array with it, any other as a numpy array.
    dtype: of the loaded floating-point leaves; by default that of `abstract_params`, without these as stored.

    Raises:
        UserError: the folder holds no parameters, or a parameter is missing, unknown or wrongly shaped.
    """
    directory = _folder(directory)
    step = latest_step(directory)
    stored: dict[str, tuple[epath.Path, Any]] = {}
    if has_base(directory):
        stored.update({path: (directory / "base", leaf) for path, leaf in _metadata(directory / "base").items()})
    if step is not None:
        trainable = directory / "steps" / str(step) / "trainable"
        stored.update({path: (trainable, leaf) for path, leaf in _metadata(trainable).items()})
    if not stored:
        raise UserError(f"{directory}: no parameters there (neither a whole base/ nor a whole step under steps/)")
    wanted = {path: leaf for path, (_, leaf) in stored.items()} if abstract_params is None else flatten(abstract_params)
    if abstract_params is not None:
        shapes = {path: tuple(leaf.shape) for path, (_, leaf) in stored.items()}
        check_tree(shapes, {path: tuple(leaf.shape) for path, leaf in wanted.items()}, str(directory))
    loaded: dict[str, Any] = {}
    for source in dict.fromkeys(source for source, _ in stored.values()):
        loaded.update(_restore(source, {path: leaf for path, leaf in wanted.items() if stored[path][0] == source}, dtype))
    return unflatten({path: loaded[path] for path in wanted})


class Restored(NamedTuple):
    """What a run continues from; `step` counts the steps that were done."""

    step: int
    trainable: Params
    optimizer: Any
    metadata: dict[str, Any]


class TrainingCheckpoints:
    """The steps of a run, in DIR/steps: saved in the background, the last `keep` kept (None: all).

    Opening the folder removes what a run that was killed left unfinished in it.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int | None = 3, save_every: int = 1000):
        self._directory = _folder(directory)
        steps = self._directory / "steps"
        if jax.process_index() == 0:
            steps.mkdir(parents=True, exist_ok=True)
            # Orbax takes such a step for a whole one, and deletes older, whole ones in its favour.
            for path in steps.iterdir():
                if _TEMPORARY in path.name or (path.name.isdigit() and not _is_whole(path)):
                    path.rmtree()
        _wait_for_all("checkpoint folder is clean")
        self._save_every = save_every
        self._manager = ocp.CheckpointManager(steps, options=ocp.CheckpointManagerOptions(max_to_keep=keep))

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def save(
        self,
        step: int,
        trainable: Params,
        optimizer: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> bool:
        """Save the state after `step` steps if it is due (a multiple of `save_every`, or `force`). True if a save was begun.

        It goes on in the background once the arrays are copied off the device. `metadata` is JSON: the position in the data, for one.
        """
        due = force or step % self._save_every == 0
        if not due or step in self._manager.all_steps():
            return False
        items = {
            "trainable": ocp.args.StandardSave(trainable),
            "optimizer": ocp.args.StandardSave(optimizer),
            "metadata": ocp.args.JsonSave(copy.deepcopy(dict(metadata or {}))),  # Written in the background.
        }
        return self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def latest_step(self) -> int | None:
        """The newest whole step."""
        return self._manager.latest_step()

    def restore(self, abstract_trainable: Params, abstract_optimizer: Any, *, step: int | None = None) -> Restored | None:
        """The state after `step` steps (default: the newest), None if nothing was saved yet.

        The abstract trees give structure, dtypes and shardings (which may differ from the saved ones).

        Raises:
            UserError: the saved state is not one of this model and optimizer.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            return None
        where = self._directory / "steps" / str(step)
        shapes = {path: tuple(leaf.shape) for path, leaf in _metadata(where / "trainable").items()}
        check_tree(shapes, {path: tuple(leaf.shape) for path, leaf in flatten(abstract_trainable).items()}, str(where))
        items = {
            "trainable": ocp.args.StandardRestore(abstract_trainable),
            "optimizer": ocp.args.StandardRestore(abstract_optimizer),
            "metadata": ocp.args.JsonRestore(),
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(f"{where}: was not saved by this configuration ({str(error).splitlines()[0]})") from error
        return Restored(step, restored["trainable"], restored["optimizer"], restored["metadata"])

    def wait(self) -> None:
        """Until every save that was begun is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and end the background threads."""
        self._manager.close()


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _is_whole(path: epath.Path) -> bool:
    return (path / _MARK).exists()


def _wait_for_all(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _save_tree(path: epath.Path, tree: Mapping[str, Any]) -> None:
    if _is_whole(path):
        raise UserError(f"{path}: is there already")
    if jax.process_index() == 0:
        # What a killed run left would be continued, not replaced.
        for stale in (path, path.parent / f"{path.name}{_TEMPORARY}"):
            if stale.exists():
                stale.rmtree()
    _wait_for_all(f"{path.name} may be written")
    with _checkpointer() as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


def _metadata(path: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """{parameter path: its shape and dtype} of a saved tree."""
    with _checkpointer() as checkpointer:
        saved = flatten(checkpointer.metadata(path).item_metadata.tree)
    # Orbax's own metadata also say how the leaves were sharded when they were saved, which is no request for loading.
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in saved.items()}


def _restore(path: epath.Path, wanted: Mapping[str, Any], dtype: jax.typing.DTypeLike | None = None) -> dict[str, Any]:
    """The leaves `wanted` of a saved tree by path; the values of `wanted` have shape, dtype and perhaps a sharding."""
    if not wanted:
        return {}

    def arguments(leaf: Any) -> ocp.RestoreArgs:
        target = dtype if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        if getattr(leaf, "sharding", None) is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=target)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=target)

    item = unflatten(dict.fromkeys(wanted, 0))
    restore_args = unflatten({name: arguments(leaf) for name, leaf in wanted.items()})
    with _checkpointer() as checkpointer:
        restored = checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True))
    return flatten(restored)
