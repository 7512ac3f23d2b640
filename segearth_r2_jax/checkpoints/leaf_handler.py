"""Writes lazy leaves into an Orbax checkpoint, chunk by chunk, so that no more than a few chunks are in memory.

Orbax saves trees whose leaves are in memory: it starts to write all of them at once. Here a leaf is given as a `LazyLeaf`, and its values
are read when their chunk is written. What is on the disk afterwards is the same as if a numpy array had been saved.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orbax.checkpoint as ocp
import tensorstore as ts

from segearth_r2_jax.checkpoints.lazy_leaf import LazyLeaf

# Of a leaf on the disk: small enough for a few in memory and for a device of a mesh to read little more than its part, large enough for a
# disk or a bucket to work at its full speed.
CHUNK_BYTES = 64 << 20
# Of a file of the disk: what waits to be written to one is in memory.
FILE_BYTES = 256 << 20
# Read (and transposed) at the same time as one is written.
IN_FLIGHT = 3


class LazyLeafHandler(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of numpy arrays, for `LazyLeaf`.

    written: is told the bytes of every chunk that has been written.
    """

    def __init__(self, written: Callable[[int], None] | None = None):
        super().__init__(deepcopy_host_arrays=False)
        self._written = written or (lambda size: None)
        self._readers = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="lazy_leaf")

    async def _background_serialize(self, values: Sequence[LazyLeaf], infos: Sequence[Any], args: Sequence[Any] | None = None) -> None:
        # One leaf after the other, where Orbax begins with all.
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            await super()._background_serialize([value], [info], [arg])

    async def _open_and_write(self, value: LazyLeaf, tspec: dict[str, Any], ts_context: ts.Context) -> None:
        store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
        pending: set[asyncio.Task] = set()
        try:
            for box in _boxes(value.shape, store.chunk_layout.write_chunk.shape):
                if len(pending) == IN_FLIGHT:
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                pending.add(asyncio.create_task(self._write(store, value, box)))
            for task in list(pending):
                await task
        finally:
            # After an error: what has begun is seen to its end, so that nothing is written later.
            await asyncio.gather(*pending, return_exceptions=True)

    async def _write(self, store: ts.TensorStore, leaf: LazyLeaf, box: tuple[slice, ...]) -> None:
        values = await asyncio.get_running_loop().run_in_executor(self._readers, leaf.read, box)
        await store[box].write(values, can_reference_source_data_indefinitely=True)
        self._written(values.nbytes)


def _boxes(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """The chunks of an array, in the order of its memory."""
    starts = (range(0, size, step) for size, step in zip(shape, chunk, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(start, min(start + step, size)) for start, step, size in zip(corner, chunk, shape, strict=True))
