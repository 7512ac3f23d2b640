"""Tensors that are parts of stored ones: rows of a table, pieces of several partitions. Nothing is read before somebody asks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor

# Elements [start, stop) of a flat tensor.
Span = tuple[LazyTensor, int, int]


def first_rows(tensor: LazyTensor, rows: int) -> LazyTensor:
    """The first `rows` of [more rows, ...]; a view where the tensor is one."""
    return LazyTensor(tensor.name, (rows, *tensor.shape[1:]), tensor.dtype, lambda: tensor.load()[:rows], tensor.files)


def stacked_rows(top: LazyTensor, bottom: LazyTensor) -> LazyTensor:
    """[a, ...] over [b, ...] of the same dtype -> [a + b, ...], a copy."""
    shape = (top.shape[0] + bottom.shape[0], *top.shape[1:])
    return LazyTensor(top.name, shape, top.dtype, lambda: np.concatenate([top.load(), bottom.load()]), (*top.files, *bottom.files))


def joined(name: str, spans: Sequence[Span], shape: tuple[int, ...], dtype: np.dtype) -> LazyTensor:
    """The tensor [*shape] whose elements in C order are the spans, one behind the other; a view if it is one span.

    The spans have together as many elements as the shape.
    """

    def load() -> np.ndarray:
        parts = [tensor.load()[start:stop] for tensor, start, stop in spans]
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, dtype)
        return flat.reshape(shape)

    files = {id(file): file for tensor, _, _ in spans for file in tensor.files}
    return LazyTensor(name, shape, dtype, load, tuple(files.values()))


class FlatTensors:
    """Flat tensors as one long vector, of which ranges are taken."""

    def __init__(self, tensors: Sequence[LazyTensor]):
        self.tensors = tensors
        self.starts = [0, *itertools.accumulate(math.prod(tensor.shape) for tensor in tensors)]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.starts[-1]

    def spans(self, start: int, stop: int) -> list[Span]:
        """Where the elements [start, stop) of the vector are."""
        found = []
        for tensor, first, end in zip(self.tensors, self.starts, self.starts[1:], strict=False):
            if max(start, first) < min(stop, end):
                found.append((tensor, max(start, first) - first, min(stop, end) - first))
        return found
