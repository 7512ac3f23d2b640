"""The pickle inside a file of `torch.save`: tensors that refer to storages, which lie elsewhere in the file.

A tensor is pickled as `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)` with a storage as the persistent id
("storage", type, key, device, number of elements). torch/_utils.py, torch/serialization.py (PyTorch 2.13 was read for this).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor, MappedFile, are_sizes
from segearth_r2_jax.checkpoints.torch_files.pickle_constructors import checked_shape, python_and_numpy_constructors
from segearth_r2_jax.restricted_pickle import Constructor, Named, Refused, load_pickle, shown

_DTYPES = {
    "float64": np.dtype(np.float64),
    "double": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "half": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint64": np.dtype(np.uint64),
    "uint32": np.dtype(np.uint32),
    "uint16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
_TENSOR_CLASSES = (("torch", "Tensor"), ("torch.nn.parameter", "Parameter"), ("torch.nn.parameter", "Buffer"))


@dataclasses.dataclass(frozen=True)
class _StorageType:
    name: str
    dtype: np.dtype


@dataclasses.dataclass(eq=False)
class Storage:
    """`count` elements of `dtype` that lie in a file from byte `start` on; None as long as that is not known.

    offset: of its first element in the storage of this key, for a part of it.
    """

    key: str
    dtype: np.dtype
    whole_count: int
    offset: int
    count: int
    start: int | None = None


class TensorPickle:
    """Reads the pickles of one file; its tensors are `LazyTensor`s without a name."""

    def __init__(
        self, file: MappedFile, inert: tuple[str, ...], place: Callable[[Storage], int] | None = None, *, big_endian: bool = False
    ) -> None:
        """`place` gives the first byte of a storage; without it they are placed afterwards, all those in `storages`."""
        self.file, self.inert, self.place, self.big_endian = file, inert, place, big_endian
        self.storages: list[Storage] = []
        rebuild = {
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor_v2,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_v3,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        }
        self.rebuild = {names: Constructor(".".join(names), function) for names, function in rebuild.items()}
        self.table = {
            **python_and_numpy_constructors(file),
            **self.rebuild,
            ("torch._tensor", "_rebuild_from_type_v2"): Constructor("torch._tensor._rebuild_from_type_v2", self._from_type),
            ("torch", "Size"): Constructor("torch.Size", lambda size=(): checked_shape(size)),
            ("torch", "device"): Constructor("torch.device", _device),
            **{names: Named(".".join(names)) for names in _TENSOR_CLASSES},
            **{("torch", name): dtype for name, dtype in _DTYPES.items()},
            **{
                (module, name): _StorageType(name, _DTYPES[dtype])
                for module in ("torch", "torch.cuda", "torch.storage")
                for name, dtype in _STORAGES.items()
            },
        }

    def load(self, data: bytes | Any, name: str, start: int = 0) -> tuple[Any, int]:
        """The value of the pickle at byte `start` of `data`, and the byte after it; `restricted_pickle.load_pickle`'s errors."""
        return load_pickle(data, name, start=start, constructors=self.table, inert=self.inert, persistent=self._storage)

    def _storage(self, identity: Any) -> Storage:
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise Refused("refers to something outside of the pickle that is no storage")
        _, storage_type, key, _, count, *view = identity
        if not isinstance(storage_type, _StorageType) or not isinstance(key, str) or not are_sizes((count,)):
            raise Refused("refers to a storage whose type, key or size is none")
        offset, part = self._part(view[0], count) if view and view[0] is not None else (0, count)
        storage = Storage(key, storage_type.dtype, count, offset, part)
        if self.place is not None:
            storage.start = self.place(storage)
        self.storages.append(storage)
        return storage

    @staticmethod
    def _part(view: Any, count: int) -> tuple[int, int]:
        """Offset and size of a part of a storage, which PyTorch before 0.4 had: (key of the part, offset, size)."""
        if not isinstance(view, tuple) or len(view) != 3:
            raise Refused("refers to a part of a storage that is none")
        _, offset, size = view
        if not are_sizes((offset, size)) or offset + size > count:
            raise Refused(f"refers to a part of a storage of {count} elements that is not in it")
        return offset, size

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> LazyTensor:
        return self._tensor_v3(storage, offset, size, stride, False, None, getattr(storage, "dtype", None))

    def _tensor_v2(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
    ) -> LazyTensor:
        return self._tensor_v3(storage, offset, size, stride, requires_grad, hooks, getattr(storage, "dtype", None), metadata)

    def _tensor_v3(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
    ) -> LazyTensor:
        del requires_grad, hooks
        if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
            raise Refused("builds a tensor on something that is no storage")
        if metadata:  # such as "this is the conjugate of what is stored"
            raise Refused("holds a tensor with metadata; expected the values themselves")
        if self.big_endian and dtype != storage.dtype:
            raise Refused(f"holds big-endian {dtype.name} in a storage of {storage.dtype.name}, which PyTorch does not read either")
        size = checked_shape(size)
        if not isinstance(stride, tuple) or len(stride) != len(size) or not are_sizes((offset, *stride)):
            raise Refused("holds a tensor whose offset or stride is none")
        elements = math.prod(size)
        # The strides of axes of one element say nothing and may be any number.
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if elements else offset - 1
        there = storage.count * storage.dtype.itemsize // dtype.itemsize
        if last >= there or offset > there:
            raise Refused(f"holds a tensor that reaches to element {last} of storage {shown(storage.key)}, which has {there}")
        if elements * dtype.itemsize > self.file.size:
            raise Refused(f"holds a tensor {list(size)} of repeated elements that is larger than the file")
        steps = tuple(step * dtype.itemsize if n > 1 else dtype.itemsize for n, step in zip(size, stride, strict=True))
        return LazyTensor("", size, dtype, functools.partial(self._load, storage, offset, size, steps, dtype), (self.file,))

    def _load(self, storage: Storage, offset: int, size: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        start = storage.start + storage.offset * storage.dtype.itemsize + offset * dtype.itemsize
        if not self.big_endian:
            return self.file.view(dtype, size, start, strides=strides)
        # By way of whole numbers: not every dtype has a big-endian form in numpy.
        bits = np.dtype(f">u{dtype.itemsize}")
        return self.file.view(bits, size, start, strides=strides).astype(bits.newbyteorder("<")).view(dtype)

    def _from_type(self, function: Any, cls: Any, arguments: Any, state: Any) -> Any:
        """What a tensor with Python attributes is pickled as; the attributes (`state`) are left out."""
        del state
        if function not in self.rebuild.values() or not isinstance(cls, Named) or not isinstance(arguments, tuple):
            raise Refused("builds a tensor of a class of its own")
        return function.function(*arguments)


def _parameter(tensor: Any, requires_grad: Any, hooks: Any, state: Any = None) -> LazyTensor:
    del requires_grad, hooks, state
    if not isinstance(tensor, LazyTensor):
        raise Refused("holds a parameter that is no tensor")
    return tensor


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise Refused("holds a device that is none")
    return kind if index is None else f"{kind}:{index}"
