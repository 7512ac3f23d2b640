"""Trees of arrays in folders: written whole and sealed, read with the sharding and dtype that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from segearth_r2_jax.checkpoints.sealed_folder import TEMPORARY, is_whole, seal, wait_for_all
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import flatten, unflatten


def save_tree(path: epath.Path, tree: Mapping[str, Any]) -> None:
    """Write a nested dict of arrays, once and whole.

    Raises:
        UserError: it is there already.
    """
    if is_whole(path):
        raise UserError(f"{path}: is there already")
    if jax.process_index() == 0:
        # What a killed run left would be continued, not replaced.
        for stale in (path, path.parent / f"{path.name}{TEMPORARY}"):
            if stale.exists():
                stale.rmtree()
    wait_for_all(f"{path.name} may be written")
    options = ocp.AsyncOptions(post_finalization_callback=lambda: seal(path))
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)
    try:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
    finally:
        checkpointer.close()


def tree_shapes(path: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """{path in the tree: shape and dtype} of a saved tree."""
    with _checkpointer() as checkpointer:
        saved = flatten(checkpointer.metadata(path).item_metadata.tree)
    # Orbax's own metadata also say how the leaves were sharded when they were saved, which is no request for loading.
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in saved.items()}


def load_tree(path: epath.Path, wanted: Mapping[str, Any], dtype: jax.typing.DTypeLike | None = None) -> dict[str, Any]:
    """The leaves `wanted` of a saved tree by path.

    wanted: {path: shape, dtype and perhaps a sharding}; a leaf with a sharding becomes a jax array, any other a numpy array.
    dtype: of the floating-point leaves instead of their own.
    """
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


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
