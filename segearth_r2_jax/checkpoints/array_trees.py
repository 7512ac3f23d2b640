"""Trees of arrays in folders: written whole and sealed, read with the sharding and dtype that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from segearth_r2_jax.checkpoints.disk_files import LARGE_BYTES
from segearth_r2_jax.checkpoints.lazy_leaf import LazyLeaf
from segearth_r2_jax.checkpoints.leaf_handler import CHUNK_BYTES, LazyLeafHandler
from segearth_r2_jax.checkpoints.sealed_folder import TEMPORARY, is_whole, seal, wait_for_all
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import flatten, unflatten

# Of a file of the disk in a tree that is stored with OCDBT: what waits to be written to one is in memory.
FILE_BYTES = 256 << 20


def save_tree(path: epath.Path, tree: Mapping[str, Any], written: Callable[[int], None] | None = None) -> None:
    """Write a nested dict of arrays, once and whole. Leaves may be `LazyLeaf`s, which are read while they are written; the folder is then
    on a local disk.

    written: is told the bytes of every chunk of a lazy leaf that has been written.

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
    lazy = LazyLeafHandler(written)
    options = ocp.AsyncOptions(post_finalization_callback=lambda: seal(path, lazy.sums))
    checkpointer = ocp.AsyncCheckpointer(_handler(tree, lazy), async_options=options)
    chunks = jax.tree.map(_chunks, tree)
    try:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree, save_args=chunks, ocdbt_target_data_file_size=FILE_BYTES))
    finally:
        checkpointer.close()


def _chunks(leaf: Any) -> ocp.SaveArgs:
    """A stack of large layers is divided into them, since that is how their sources and targets hold them; anything else as Orbax likes."""
    stacked = isinstance(leaf, LazyLeaf) and leaf.stacked and leaf.nbytes >= leaf.shape[0] * LARGE_BYTES
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())


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


def _handler(tree: Mapping[str, Any], lazy: LazyLeafHandler) -> ocp.PyTreeCheckpointHandler:
    # Not compressed: the bits of trained weights are close to random, and zstd is slower than a disk.
    arrays = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
        (LazyLeaf, lazy),
    )
    is_lazy = any(isinstance(leaf, LazyLeaf) for leaf in jax.tree.leaves(tree))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=arrays, use_compression=False, use_ocdbt=not is_lazy)


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
