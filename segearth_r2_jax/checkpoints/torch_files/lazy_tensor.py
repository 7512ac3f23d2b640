"""A tensor that lies in a file and is not read yet, and the memory-mapped file it lies in."""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segearth_r2_jax.errors import UserError

# numpy holds no array of more axes; neither does PyTorch.
_MOST_AXES = 64
# Far above any tensor. numpy refuses even empty arrays whose other sizes multiply to more than an address.
_MOST_ELEMENTS = 2**48


def are_sizes(values: Iterable[Any]) -> bool:
    """Whether these values from a file are whole numbers that positions and sizes can be."""
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def is_shape(values: Collection[Any]) -> bool:
    """Whether an array can have this shape, which a file claims."""
    return len(values) <= _MOST_AXES and are_sizes(values) and math.prod(max(1, size) for size in values) <= _MOST_ELEMENTS


class MappedFile:
    """A file in the address space: read page by page when somebody looks, and never written.

    As with every memory map, the process ends (SIGBUS) if somebody cuts the file short and a page that is gone is looked at.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self.size = file.seek(0, 2)
                # An empty file cannot be mapped.
                self.mmap = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ) if self.size else None
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None

    def bytes(self, start: int, stop: int) -> bytes:
        """A copy of the bytes [start, stop)."""
        return self.mmap[start:stop] if self.mmap is not None else b""

    def view(
        self, dtype: np.dtype, shape: tuple[int, ...], start: int = 0, *, strides: tuple[int, ...] | None = None, order: str = "C"
    ) -> np.ndarray:
        """The array [*shape] of `dtype` at byte `start`, read-only and not copied; strides are in bytes.

        The caller has checked that it lies inside the file.
        """
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.ndarray(shape, dtype, buffer=self.mmap, offset=start, strides=strides, order=order)

    def release(self) -> None:
        """Give back the memory of all pages read so far; they are read anew when somebody looks again."""
        if self.mmap is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mmap.madvise(mmap.MADV_DONTNEED)


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A stored tensor; `load()` or `numpy.asarray` gives its values.

    name: its key in the file, "" if it has none.
    load: gives the array. Where the bytes lie in a file as they are needed, it is a read-only view of the mapped file: nothing is
        copied, a page is read when its values are. A view may be strided or not aligned to its item size, as it is stored.
    files: what `load` reads, for `release`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)
    files: tuple[MappedFile, ...] = dataclasses.field(default=(), repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """The size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def renamed(self, name: str) -> LazyTensor:
        """The same tensor under another name."""
        return dataclasses.replace(self, name=name)

    def release(self) -> None:
        """Give back the memory of the pages read so far from this tensor's files."""
        for file in self.files:
            file.release()

    def __array__(self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.load(), dtype=dtype, copy=copy)
