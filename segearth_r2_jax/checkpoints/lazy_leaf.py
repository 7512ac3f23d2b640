"""A parameter that is still in the files it comes from, and is read in the pieces that somebody asks for.

A leaf of the tree is one reference tensor, or equal rows of several (the layers of a stack), each perhaps transposed. Reading a box of it
touches only the bytes of that box, so that a checkpoint larger than memory can be written elsewhere in pieces, and each device of a mesh
is given its own piece.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segearth_r2_jax.checkpoints.transposition import copy_transposed
from segearth_r2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a tensor (None: all of it), transposed by `layout`: a leaf, or one row of a stacked leaf."""

    tensor: Any
    name: str
    start: int | None
    stop: int | None
    layout: tuple[int, ...] | None

    def view(self) -> np.ndarray:
        """The piece in the leaf's layout, where possible without copying anything."""
        tensor = np.asarray(self.tensor)
        rows = tensor if self.start is None else tensor[self.start : self.stop]
        return rows if self.layout is None else rows.transpose(self.layout)


@dataclasses.dataclass(frozen=True)
class LazyLeaf:
    """An array of `shape` and `dtype` whose values come from `pieces`: one, or one for each row if it is `stacked`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[Piece, ...] = dataclasses.field(repr=False)
    stacked: bool

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all values in `dtype`."""
        return self.size * self.dtype.itemsize

    def astype(self, dtype: np.typing.DTypeLike) -> LazyLeaf:
        """The leaf whose values are cast when they are read; one that holds no floating-point numbers stays as it is."""
        return dataclasses.replace(self, dtype=np.dtype(dtype)) if jnp.issubdtype(self.dtype, jnp.floating) else self

    def read(self, box: Sequence[slice], into: np.ndarray | None = None) -> np.ndarray:
        """The values in `box`, one slice with step 1 for each dimension, in the array `into` or a new one.

        Raises:
            UserError: a value does not fit into `dtype`.
        """
        box = tuple(slice(*part.indices(size)) for part, size in zip(box, self.shape, strict=True))
        values = np.empty([part.stop - part.start for part in box], self.dtype) if into is None else into
        if not self.stacked:
            _copy(values, self.pieces[0].view()[box], self.pieces[0].name)
            return values
        for row, piece in zip(values, self.pieces[box[0]], strict=True):
            _copy(row, piece.view()[box[1:]], piece.name)
        return values

    def __array__(self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        values = self.read([slice(None)] * self.ndim)
        return values if dtype is None else values.astype(dtype, copy=False)

    def place(self, sharding: jax.sharding.Sharding) -> jax.Array:
        """The leaf on the devices of `sharding`; a process reads what its own devices hold, each box once."""
        boxes: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

        def read(index: tuple[slice, ...]) -> np.ndarray:
            box = tuple(part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True))
            if box not in boxes:
                boxes[box] = self.read(index)
            return boxes[box]

        return jax.make_array_from_callback(self.shape, sharding, read)


def _copy(target: np.ndarray, source: np.ndarray, name: str) -> None:
    """`target[...] = source`, which may be transposed and of another dtype."""
    with np.errstate(over="ignore"):
        if target.ndim == 2 and source.strides[0] < source.strides[1]:
            copy_transposed(target, source.T)
        else:
            target[...] = source
    if source.dtype != target.dtype and not np.isfinite(target).all() and np.isfinite(source).all():
        raise UserError(f"key {name}: its largest value {np.abs(source).max():.3g} does not fit into {target.dtype.name}")
