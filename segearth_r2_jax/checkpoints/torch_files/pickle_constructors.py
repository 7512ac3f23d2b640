"""What stands for Python's and numpy's own constructors when weights are read from a pickle: containers, bytes, arrays, numbers.

numpy pickles an array as `_reconstruct(ndarray, (0,), b"b")` with the state (version, shape, dtype, is in Fortran order, bytes), or,
in protocol 5, as `_frombuffer(bytes, dtype, shape, order)`; a dtype as `dtype("f4", False, True)` with the state (version, byte order,
...); a number as `scalar(dtype, bytes)`. Numpy 1 and 2 write different module names. Python 2 wrote bytes as texts, and
Python 3 in the protocols before 3 as `_codecs.encode(text, "latin1")`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import OrderedDict
from typing import Any

import numpy as np

from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor, MappedFile, is_shape
from segearth_r2_jax.restricted_pickle import Constructor, Named, Refused, Unfinished, shown

_NDARRAY = Named("numpy.ndarray")
_DTYPES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))
_LATIN_1 = ("latin1", "latin-1", "iso-8859-1")


def python_and_numpy_constructors(file: MappedFile) -> dict[tuple[str, str], Any]:
    """The table for `restricted_pickle.load_pickle`; arrays become `LazyTensor`s without a name. Their bytes lie in `file`."""
    copied = _Budget(file.size)
    arrays = _Arrays(file, copied)
    table: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): Constructor("collections.OrderedDict", copied.ordered_dict),
        ("collections", "defaultdict"): Constructor("collections.defaultdict", _default_dict),
        ("_codecs", "encode"): Constructor("_codecs.encode", copied.encode),
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): Constructor("numpy.dtype", _Dtype),
    }
    for module in ("builtins", "__builtin__"):
        table[module, "bytes"] = Constructor(f"{module}.bytes", _no_bytes)
        table[module, "set"] = Constructor(f"{module}.set", copied.set)
        table |= {(module, name): Named(f"{module}.{name}") for name in ("dict", "list", "int", "float")}
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = Constructor(f"{core}.multiarray._reconstruct", arrays.reconstruct)
        table[f"{core}.multiarray", "scalar"] = Constructor(f"{core}.multiarray.scalar", arrays.scalar)
        table[f"{core}.numeric", "_frombuffer"] = Constructor(f"{core}.numeric._frombuffer", arrays.from_buffer)
    return table


def checked_shape(shape: Any) -> tuple[int, ...]:
    """`shape` if it is a tuple that an array can have as its shape; Refused if it is not."""
    if not isinstance(shape, tuple) or not is_shape(shape):
        raise Refused("holds a shape that is none")
    return shape


class _Budget:
    """Constructors that copy; together not more than an honest file of this size can ask for."""

    def __init__(self, size: int) -> None:
        self.left = size

    def _spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise Refused("copies more than the file holds")

    def encode(self, text: str, encoding: str) -> bytes:
        if not isinstance(text, str) or encoding not in _LATIN_1:
            raise Refused(f"encodes a text as {shown(encoding)}; expected {_LATIN_1[0]}")
        self._spend(len(text))
        return text.encode("latin-1")

    def set(self, items: list[Any]) -> set[Any]:
        self._spend(len(items))
        if not all(isinstance(item, str | int | float | bytes | None) for item in items):
            raise Refused("holds a set of something else than texts and numbers")
        return set(items)

    def ordered_dict(self, items: list[Any] | tuple[()] = ()) -> OrderedDict[Any, Any]:
        """Python 2 gives the items here; Python 3 sets them afterwards."""
        self._spend(len(items))
        if not all(isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str | int | None) for item in items):
            raise Refused("holds an OrderedDict whose keys are neither texts nor whole numbers")
        return OrderedDict(items)


def _no_bytes() -> bytes:
    """Python 3 writes empty bytes as `bytes()` in the protocols before 3."""
    return b""


def _default_dict(*_: Any) -> dict[Any, Any]:
    """The default is never asked for: a plain dict will do."""
    return {}


class _Dtype(Unfinished):
    """numpy.dtype(text, align, copy), whose byte order is its state."""

    def __init__(self, text: str, *_: Any) -> None:
        if text not in _DTYPES:
            raise Refused(f"holds an array of dtype {shown(text)}; expected floating-point numbers, whole numbers or booleans")
        self.dtype = np.dtype(text)

    def finish(self, state: Any) -> np.dtype:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise Refused("holds a dtype whose state is none")
        return self.dtype.newbyteorder(state[1])


def _dtype(value: Any) -> np.dtype:
    if isinstance(value, _Dtype):  # It was given no state.
        value = value.dtype
    if not isinstance(value, np.dtype):
        raise Refused(f"holds an array whose dtype is {shown(value)}")
    return value


class _Arrays:
    """Arrays whose bytes lie in one file."""

    def __init__(self, file: MappedFile, copied: _Budget) -> None:
        self.file, self.copied = file, copied

    def reconstruct(self, cls: Any, shape: Any, typecode: Any) -> _Array:
        del shape, typecode  # the state says the real ones
        if cls != _NDARRAY:
            raise Refused(f"makes an array of class {shown(cls)}; expected {_NDARRAY.name}")
        return _Array(self)

    def from_buffer(self, data: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> LazyTensor:
        """Order "K": the axes of an array [*shape] in C order are permuted to `axis_order`."""
        if order not in ("C", "F", "K") or (order == "K") != (axis_order is not None):
            raise Refused(f"holds an array in order {shown(order)}; expected C, F, or K with the order of its axes")
        array = self.array(data, dtype, shape, "F" if order == "F" else "C")
        if axis_order is None:
            return array
        axes = checked_shape(axis_order)
        if sorted(axes) != list(range(len(array.shape))):
            raise Refused("holds an array whose axes are not those of its shape")
        return dataclasses.replace(array, shape=tuple(array.shape[axis] for axis in axes), load=lambda: array.load().transpose(axes))

    def scalar(self, dtype: Any, data: Any) -> np.generic:
        dtype, data = _dtype(dtype), self.as_bytes(data)
        if len(data) != dtype.itemsize:
            raise Refused(f"holds a number of {len(data)} bytes; expected {dtype.itemsize}")
        return np.frombuffer(data, dtype)[0].astype(dtype.newbyteorder("="))

    def array(self, data: Any, dtype: Any, shape: Any, order: str) -> LazyTensor:
        dtype, data, shape = _dtype(dtype), self.as_bytes(data), checked_shape(shape)
        if math.prod(shape) * dtype.itemsize != len(data):
            raise Refused(f"holds an array {list(shape)} of {dtype.name} in {len(data):,} bytes")
        native = dtype.newbyteorder("=")
        return LazyTensor("", shape, native, functools.partial(_load, data, dtype, shape, order), (self.file,))

    def as_bytes(self, data: Any) -> bytes | memoryview:
        if isinstance(data, str):
            return self.copied.encode(data, _LATIN_1[0])
        if not isinstance(data, bytes | memoryview):
            raise Refused(f"holds an array whose bytes are {shown(data)}")
        return data


class _Array(Unfinished):
    """numpy.ndarray, waiting for its state."""

    def __init__(self, arrays: _Arrays) -> None:
        self.arrays = arrays

    def finish(self, state: Any) -> LazyTensor:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("holds an array whose state is none")
        _, shape, dtype, fortran, data = state
        return self.arrays.array(data, dtype, shape, "F" if fortran else "C")


def _load(data: bytes | memoryview, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if 0 in shape:
        return np.zeros(shape, dtype.newbyteorder("="))
    array = np.ndarray(shape, dtype, buffer=data, order=order)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))
