"""Writes lazy leaves into an Orbax checkpoint, chunk by chunk, so that no more than a few chunks are in memory.

Orbax saves trees whose leaves are in memory: it starts to write all of them at once. Here a leaf is given as a `LazyLeaf`, and its values
are read when their chunk is written, into memory that is used again and again, where TensorStore takes new one for every chunk. What is
on the disk afterwards is what Orbax itself writes for a numpy array without OCDBT: a folder for each leaf, a file for each chunk (Zarr
version 2, not compressed).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from segearth_r2_jax.checkpoints.chunk_files import chunk_path, chunks
from segearth_r2_jax.checkpoints.disk_files import LARGE_BYTES, let_go, to_disk, write_all
from segearth_r2_jax.checkpoints.lazy_leaf import LazyLeaf
from segearth_r2_jax.checkpoints.reused_memory import ReusedMemory

# Of a leaf on the disk: small enough for a few in memory and for a device of a mesh to read little more than its part, large enough for a
# disk to work at its full speed.
CHUNK_BYTES = 64 << 20
# Chunks that are read, transposed and written at the same time.
IN_FLIGHT = 4


class LazyLeafHandler(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of numpy arrays, for `LazyLeaf`, in trees on a local disk and without OCDBT and compression.

    written: is told the bytes of every chunk that has been written.
    sums: (bytes, CRC-32C) of the files that were written, by their names in the tree's folder.
    """

    def __init__(self, written: Callable[[int], None] | None = None):
        super().__init__(deepcopy_host_arrays=False)
        self.sums: dict[str, tuple[int, int]] = {}
        self._written = written or (lambda size: None)
        self._memory = threading.local()
        self._writers = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="lazy_leaf")
        self._chunks: list[asyncio.Future] = []
        self._small: list[Path] = []

    async def _background_serialize(self, values: Sequence[LazyLeaf], infos: Sequence[Any], args: Sequence[Any] | None = None) -> None:
        try:
            # One leaf after the other, where Orbax begins with all: chunks are written in the order in which the source is read quickly.
            for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
                await super()._background_serialize([value], [info], [arg])
            await asyncio.gather(*self._chunks)
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(self._writers, to_disk, path) for path in self._small))
        finally:
            # After an error: what has begun is seen to its end, so that nothing is written later.
            self._writers.shutdown(cancel_futures=True)
            await asyncio.gather(*self._chunks, return_exceptions=True)

    async def _open_and_write(self, value: LazyLeaf, tspec: dict[str, Any], ts_context: ts.Context) -> None:
        """Creates the leaf's folder; its chunks are written meanwhile."""
        tspec = {**tspec, "kvstore": {**tspec["kvstore"], "file_io_sync": False}}
        store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
        self._small.append(Path(store.kvstore.path) / ".zarray")
        loop, chunk = asyncio.get_running_loop(), store.chunk_layout.write_chunk.shape or ()
        for index, box in chunks(value.shape, chunk):
            self._chunks.append(loop.run_in_executor(self._writers, self._write, value, chunk, box, chunk_path(store, index)))

    def _write(self, leaf: LazyLeaf, chunk: tuple[int, ...], box: tuple[slice, ...], path: Path) -> None:
        if not hasattr(self._memory, "reused"):
            self._memory.reused = ReusedMemory()
        stored = self._memory.reused.array(chunk, leaf.dtype)
        values = stored[(..., *(slice(0, part.stop - part.start) for part in box))]
        if values.shape != chunk:
            stored[...] = 0  # A chunk that reaches over the edge is stored whole.
        leaf.read(box, values)
        data = stored.reshape(-1).view(np.uint8)
        with path.open("wb", buffering=0) as file:
            write_all(file, data)
            if data.nbytes >= LARGE_BYTES:
                os.fsync(file.fileno())
                let_go(file.fileno())
            else:
                self._small.append(path)
        self.sums[f"{path.parent.name}/{path.name}"] = data.nbytes, google_crc32c.value(data)
        self._written(values.nbytes)
