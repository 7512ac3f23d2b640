"""Checkpoint folders: what is in one, and its parameters.

A folder is the same for a run's work directory and for converted weights:

    config.json       the network ("model") and what else a user of the weights must know (prompt template, mask canvas, ...)
    tokenizer.json    the tokenizer that the weights were trained with
    base/             parameters that training does not change; absent if there are none
    unused/           reference tensors that the network does not use, kept for export; absent if there are none
    steps/<n>/        after n training steps: trainable parameters, optimizer, metadata (the position in the data)

Trees are nested dicts with string keys, so that a path in a checkpoint is the path in the model. The parameters of a folder are base
overlaid with the trainable ones of the newest whole step. A folder that was cut off while it was written is never read, and what is read
is compared with the checksums that were written with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from segearth_r2_jax.checkpoints.array_trees import load_tree, save_tree, tree_shapes
from segearth_r2_jax.checkpoints.json_files import read_json, write_json
from segearth_r2_jax.checkpoints.key_rules import check_tree
from segearth_r2_jax.checkpoints.sealed_folder import find_damage, is_whole, set_aside
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import Params, flatten, unflatten
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config


def absolute(directory: epath.PathLike) -> epath.Path:
    """Orbax takes absolute paths only."""
    return epath.Path(directory) if "://" in str(directory) else epath.Path(os.path.abspath(directory))


def write_config(directory: epath.PathLike, config: Mapping[str, Any]) -> None:
    """Write DIR/config.json; `config["model"]` is `SegEarthR2Config.to_dict()`. One process writes."""
    if jax.process_index() == 0:
        absolute(directory).mkdir(parents=True, exist_ok=True)
        write_json(absolute(directory) / "config.json", config)


def read_config(directory: epath.PathLike) -> dict[str, Any]:
    """DIR/config.json.

    Raises:
        UserError: there is none, or it does not describe a network.
    """
    path = absolute(directory) / "config.json"
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
        raise UserError(f"{absolute(directory) / 'config.json'}: not a network of this version ({error})") from error


def save_base(directory: epath.PathLike, params: Params, written: Callable[[int], None] | None = None) -> None:
    """Write the parameters that training does not change, once and whole; `params` and `written` as `save_tree` takes them.

    Raises:
        UserError: the folder has them already.
    """
    save_tree(absolute(directory) / "base", params, written)


def load_base(directory: epath.PathLike, abstract_params: Params) -> Params | None:
    """What `save_base` wrote, with the shapes, dtypes and shardings of `abstract_params`; None if it is not there or is damaged.

    Raises:
        UserError: it holds other parameters.
    """
    base = absolute(directory) / "base"
    if not is_whole(base):
        return None
    if damage := find_damage(base):
        set_aside(base, damage)
        return None
    wanted = flatten(abstract_params)
    shapes = {name: tuple(leaf.shape) for name, leaf in tree_shapes(base).items()}
    check_tree(shapes, {name: tuple(leaf.shape) for name, leaf in wanted.items()}, str(base))
    return unflatten(load_tree(base, wanted))


def keep_base(directory: epath.PathLike, params: Params) -> None:
    """Sees to it that the folder holds the parameters that training does not change; damaged ones are renamed, with a line."""
    base = absolute(directory) / "base"
    if has_base(directory):
        damage = find_damage(base)
        if damage is None:
            return
        set_aside(base, damage)
    save_base(directory, params)


def save_unused(directory: epath.PathLike, tensors: Mapping[str, Any], written: Callable[[int], None] | None = None) -> None:
    """Keep the reference tensors that the network does not use, by the names that `KeyMap.to_parameters` gave."""
    if tensors:
        save_tree(absolute(directory) / "unused", dict(tensors), written)


def load_unused(directory: epath.PathLike) -> dict[str, np.ndarray]:
    """The tensors that `save_unused` kept; empty if there are none."""
    path = absolute(directory) / "unused"
    return load_tree(path, tree_shapes(path)) if is_whole(path) else {}


def has_base(directory: epath.PathLike) -> bool:
    """Whether DIR/base is there and whole."""
    return is_whole(absolute(directory) / "base")


def latest_step(directory: epath.PathLike) -> int | None:
    """The newest whole step under DIR/steps, None if there is none."""
    steps = absolute(directory) / "steps"
    if not steps.exists():
        return None
    return max((int(path.name) for path in steps.iterdir() if path.name.isdigit() and is_whole(path)), default=None)


def load_parameters(
    directory: epath.PathLike,
    abstract_params: Params | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    *,
    select: str = "",
) -> Params:
    """The parameters of the folder: base, overlaid with the newest whole step's trainable ones.

    abstract_params: the model's tree (`module_params` of the abstract module): the stored tree must be exactly this one. A leaf that
        carries a sharding is loaded as a jax array with it, any other as a numpy array.
    dtype: of the loaded floating-point leaves; by default that of `abstract_params`, without these as stored.
    select: a regular expression; only the parameters in whose path it is found are looked at, in the folder and in `abstract_params`
        ("/lora_": the low-rank adapters of a run, to be put onto other weights).

    Raises:
        UserError: the folder holds no such parameters, one is missing, unknown or wrongly shaped, or a file is damaged.
    """
    directory = absolute(directory)
    stored = {path: entry for path, entry in stored_leaves(directory).items() if re.search(select, path)}
    if not stored:
        raise UserError(
            f"{directory}: no parameter with {select!r} in its path"
            if select
            else f"{directory}: no parameters there (neither a whole base/ nor a whole step under steps/)"
        )
    wanted = {path: leaf for path, (_, leaf) in stored.items()}
    if abstract_params is not None:
        wanted = {path: leaf for path, leaf in flatten(abstract_params).items() if re.search(select, path)}
        shapes = {path: tuple(leaf.shape) for path, (_, leaf) in stored.items()}
        check_tree(shapes, {path: tuple(leaf.shape) for path, leaf in wanted.items()}, str(directory))
    loaded: dict[str, Any] = {}
    for source in dict.fromkeys(source for source, _ in stored.values()):
        require_undamaged(source)
        loaded.update(load_tree(source, {path: leaf for path, leaf in wanted.items() if stored[path][0] == source}, dtype))
    return unflatten({path: loaded[path] for path in wanted})


def has_adapters(directory: epath.PathLike) -> bool:
    """Whether low-rank adapters are among the folder's parameters."""
    return any("/lora_" in path for path in stored_leaves(directory))


def stored_leaves(directory: epath.PathLike) -> dict[str, tuple[epath.Path, jax.ShapeDtypeStruct]]:
    """{parameter path: (the tree that it is in, its shape and dtype)}: DIR/base, overlaid with DIR/steps/<newest>/trainable.

    Raises:
        UserError: a file is damaged that says which they are.
    """
    directory = absolute(directory)
    step = latest_step(directory)
    trees = [directory / "base"] if has_base(directory) else []
    if step is not None:
        trees.append(directory / "steps" / str(step) / "trainable")
    stored: dict[str, tuple[epath.Path, jax.ShapeDtypeStruct]] = {}
    for tree in trees:
        try:
            shapes = tree_shapes(tree)
        except Exception:  # Of every type; the seal says it in a line. What it does not explain is no damage.
            require_undamaged(tree)
            raise
        stored.update({path: (tree, leaf) for path, leaf in shapes.items()})
    return stored


def require_undamaged(tree: epath.Path, known: Mapping[str, tuple[int, int]] | None = None) -> None:
    """Compares the files of one of these trees with the checksums that were written with it.

    known: (bytes, CRC-32C) of its files that have been read already, by their names in the tree.

    Raises:
        UserError: they differ.
    """
    if tree.name == "base":
        folder, part, remedy = tree, "", "`train` with the configuration that made it writes it anew"
    elif tree.name == "unused":
        folder, part, remedy = tree, "", "`convert` of the PyTorch weights writes it anew; deleted, it is missed by exports only"
    else:
        folder, part = tree.parent, f"{tree.name}/"
        remedy = "renamed to something else than a number, it is passed over for the step before"
    if damage := find_damage(folder, part, {f"{part}{name}": found for name, found in (known or {}).items()}):
        raise UserError(f"{folder} is damaged: {damage}; {remedy}")
