"""Leaves whose chunks are files of raw values: what Orbax stores without OCDBT and compression (Zarr version 2, a folder for each leaf).

Nothing has to be decoded: the bytes of a file are the chunk's values.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorstore as ts

from segearth_r2_jax.checkpoints.checksums import array_checksum
from segearth_r2_jax.checkpoints.disk_files import LARGE_BYTES, let_go
from segearth_r2_jax.checkpoints.reused_memory import ReusedMemory
from segearth_r2_jax.errors import UserError

# (number of a chunk along every axis, the part of the array that it holds).
Chunk = tuple[tuple[int, ...], tuple[slice, ...]]


def are_raw(store: ts.TensorStore) -> bool:
    """Whether the chunks of an open array are such files."""
    table = store.spec().to_json()["metadata"]
    plain = table.get("compressor", 0) is None and table.get("filters") is None and table.get("order") == "C"
    return plain and not str(table.get("dtype")).startswith(">")


def chunk_path(store: ts.TensorStore, index: tuple[int, ...]) -> Path:
    """The file of a chunk, by its number along every axis."""
    separator = store.spec().to_json()["metadata"].get("dimension_separator", ".")
    return Path(store.kvstore.path) / (separator.join(map(str, index)) or "0")


def chunks(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[Chunk]:
    """The chunks of an array, in the order of its memory."""
    for index in itertools.product(*(range(-(-size // step)) for size, step in zip(shape, chunk, strict=True))):
        yield index, tuple(slice(i * step, min((i + 1) * step, size)) for i, step, size in zip(index, chunk, shape, strict=True))


class FileLeaf:
    """A leaf of `shape` and `dtype` in such files, each of which holds a part of one row, or whole rows.

    What is read goes into the memory that the caller brings: a mapped file would lie in small pages, out of which a transposition is slow.
    """

    def __init__(self, store: ts.TensorStore, sums: dict[str, tuple[int, int]] | None = None):
        """sums: is told (bytes, CRC-32C) of the files that are read, by their names in the tree.

        Raises:
            ValueError: a file holds parts of several rows.
        """
        self.shape: tuple[int, ...] = store.shape
        self.dtype: np.dtype = store.dtype.numpy_dtype
        self._store = store
        self._chunk: tuple[int, ...] = store.chunk_layout.read_chunk.shape or ()
        self._sums = {} if sums is None else sums
        # The last file that was read for a part of it.
        self._held: tuple[tuple[int, ...], np.ndarray] | None = None
        if not divides_rows(store):
            raise ValueError(f"chunks of {self._chunk} hold parts of several rows of {self.shape}")

    def read(self, memory: ReusedMemory) -> np.ndarray:
        """All of it, perhaps in `memory`.

        Raises:
            UserError: a file is missing or too short.
        """
        return self._part(tuple(slice(0, size) for size in self.shape), memory)

    def row(self, index: int, memory: ReusedMemory) -> np.ndarray:
        """leaf[index], perhaps in `memory`. Rows are quick in ascending order.

        Raises:
            UserError: a file is missing or too short.
        """
        return self._part((slice(index, index + 1), *(slice(0, size) for size in self.shape[1:])), memory)[0]

    def release(self) -> None:
        """Forget what was read."""
        self._held = None

    def _part(self, box: tuple[slice, ...], memory: ReusedMemory) -> np.ndarray:
        parts = list(self._overlapping(box))
        if len(parts) == 1 and not self._is_whole(parts[0][2]):
            index, _, own = parts[0]
            if self._held is None or self._held[0] != index:
                self._held = index, self._load(index, np.empty(self._chunk, self.dtype))
            return self._held[1][(..., *own)]
        values = memory.array(tuple(side.stop - side.start for side in box), self.dtype)
        for index, inside, own in parts:
            target = values[(..., *inside)]
            if self._is_whole(own) and target.flags.c_contiguous:
                self._load(index, target)
            else:
                target[...] = self._load(index, np.empty(self._chunk, self.dtype))[(..., *own)]
        return values

    def _overlapping(self, box: tuple[slice, ...]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
        """(number of a chunk, where in the box, which part of the chunk) of those that have a part of the box."""
        for index, held in chunks(self.shape, self._chunk):
            common = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, held, strict=True)]
            if all(start < stop for start, stop in common):
                inside = tuple(slice(start - side.start, stop - side.start) for (start, stop), side in zip(common, box, strict=True))
                own = tuple(slice(start - side.start, stop - side.start) for (start, stop), side in zip(common, held, strict=True))
                yield index, inside, own

    def _is_whole(self, own: tuple[slice, ...]) -> bool:
        return all(part == slice(0, size) for part, size in zip(own, self._chunk, strict=True))

    def _load(self, index: tuple[int, ...], into: np.ndarray) -> np.ndarray:
        """The whole chunk, in the contiguous array `into`."""
        path, data = chunk_path(self._store, index), into.reshape(-1).view(np.uint8)
        try:
            with path.open("rb", buffering=0) as file:
                read = 0
                while read < len(data) and (more := file.readinto(data[read:])):
                    read += more
                size = os.fstat(file.fileno()).st_size
                if read >= LARGE_BYTES:
                    let_go(file.fileno())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        if size != len(data):
            raise UserError(f"{path}: has {size} bytes instead of {len(data)}")
        self._sums[f"{path.parent.name}/{path.name}"] = size, array_checksum(data)
        return into


def divides_rows(store: ts.TensorStore) -> bool:
    """Whether every chunk holds whole rows, or a part of one."""
    chunk = store.chunk_layout.read_chunk.shape or ()
    return not chunk or chunk[0] == 1 or chunk[1:] == tuple(store.shape[1:])
