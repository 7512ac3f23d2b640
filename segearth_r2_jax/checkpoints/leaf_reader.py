"""Leaves of a saved tree, read a few layers of a stack at a time: what Orbax has no function for.

Orbax restores whole leaves, and a stacked leaf of the published model has up to 1.7 GB in float16. Underneath a leaf is a TensorStore
array (driver "zarr", named by its path with dots, on an OCDBT key-value store or in files of its own), of which any part can be read.
"""

from __future__ import annotations

import json
import os

import numpy as np
import tensorstore as ts
from etils import epath

from segearth_r2_jax.checkpoints.chunk_files import FileLeaf, are_raw, divides_rows
from segearth_r2_jax.checkpoints.reused_memory import ReusedMemory
from segearth_r2_jax.errors import UserError

# Of a stacked leaf in memory; the next piece of this size is read ahead.
_WINDOW_BYTES = 128 << 20


# For the small tables in which a tree's files say where its leaves are.
_TABLE_BYTES = 16 << 20


class StoredTree:
    """The tree that was saved in the folder `tree`.

    Raises:
        UserError: there is none.
    """

    def __init__(self, tree: epath.PathLike):
        self._folder = epath.Path(tree)
        try:
            zarr3 = json.loads((self._folder / "_METADATA").read_text()).get("use_zarr3", False)
        except (OSError, ValueError) as error:
            raise UserError(f"{tree}: cannot be read ({str(error).splitlines()[0]})") from error
        self._driver = "zarr3" if zarr3 else "zarr"
        self._base = f"{self._folder}/" if "://" in str(tree) else {"driver": "file", "path": f"{os.fspath(self._folder)}/"}
        # Whether every chunk is a file of its own.
        self.in_files = not (self._folder / "manifest.ocdbt").exists()
        # (bytes, CRC-32C) of those that were read, by their names in the tree.
        self.sums: dict[str, tuple[int, int]] = {}
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _TABLE_BYTES}})

    def leaf(self, path: str) -> LeafReader | FileLeaf:
        """The leaf `path` ("phi/layers/mlp/fc1/kernel").

        Raises:
            UserError: there is no such leaf.
        """
        name = f"{path.replace('/', '.')}/"
        try:
            base = ts.KvStore.Spec(self._base if self.in_files else {"driver": "ocdbt", "base": self._base})
            spec = {"driver": self._driver, "kvstore": (base / name).to_json()}
            store = ts.open(spec, open=True, read=True, context=self._context).result()
        except (OSError, ValueError) as error:
            raise UserError(f"{self._folder}: cannot read {path} ({str(error).splitlines()[0]})") from error
        local = self.in_files and isinstance(self._base, dict)
        plain = local and self._driver == "zarr" and are_raw(store) and divides_rows(store)
        return FileLeaf(store, self.sums) if plain else LeafReader(store)


class LeafReader:
    """A leaf of `shape` and `dtype`; nothing is read until it is asked for. Rows are quick in ascending order."""

    def __init__(self, store: ts.TensorStore):
        self._store = store
        self.shape: tuple[int, ...] = self._store.shape
        self.dtype: np.dtype = self._store.dtype.numpy_dtype
        self._window: tuple[range, np.ndarray] = range(0), np.empty(0)
        self._next: tuple[range, ts.Future] | None = None
        if self.shape:
            row = max(1, self._store.size // max(1, self.shape[0]) * self.dtype.itemsize)
            chunk = self._store.chunk_layout.read_chunk.shape[0]
            # Whole chunks, since a chunk is read whole anyway.
            self._step = chunk * max(1, _WINDOW_BYTES // (row * chunk))

    def read(self, memory: ReusedMemory) -> np.ndarray:
        """All of it; in memory of TensorStore's own."""
        return self._store.read().result()

    def row(self, index: int, memory: ReusedMemory) -> np.ndarray:
        """leaf[index]; in memory of TensorStore's own."""
        if index not in self._window[0]:
            self._window = range(0), np.empty(0)  # Let go of before the next is here.
            if self._next is None or index not in self._next[0]:
                self._next = self._begin(index // self._step * self._step)
            rows, future = self._next
            self._window = rows, future.result()
            self._next = self._begin(rows.stop) if rows.stop < self.shape[0] else None
        rows, values = self._window
        return values[index - rows.start]

    def release(self) -> None:
        """Forget what was read."""
        self._window, self._next = (range(0), np.empty(0)), None

    def _begin(self, start: int) -> tuple[range, ts.Future]:
        rows = range(start, min(start + self._step, self.shape[0]))
        return rows, self._store[rows.start : rows.stop].read()
