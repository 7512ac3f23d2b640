"""Writing a dict of tensors as PyTorch's `.bin`, without torch: `torch.load(path, weights_only=True)` reads it.

The format of torch 1.6 and later, as its `torch/serialization.py` documents it: a zip archive, nothing in it compressed, of

    archive/data.pkl      a pickle of the dict, in which a tensor is a call of `torch._utils._rebuild_tensor_v2` and its values are a
                          reference to another entry
    archive/data/<n>      the values of tensor n, C order
    archive/byteorder     "little"
    archive/version       "3"

The pickle's instructions are put together here, since Python's own pickler names only functions that it can import. Values begin at
multiples of 64 bytes, as torch places them, so that they can be mapped.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

from segearth_r2_jax.checkpoints.torch_files.safetensors_writer import (
    Layout,
    check_entry,
    contiguous_chunks,
    disk_errors_in_one_line,
    require_space,
)
from segearth_r2_jax.errors import UserError

_STORAGES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}
_ROOT = "archive"
_ALIGNMENT = 64
# Of an entry with its sizes in the extra field that zip needs above 4 GiB.
_ZIP64 = 1 << 31
_ZIP64_EXTRA = 20


def write_torch_file(path: str | Path, tensors: Iterable[tuple[str, np.ndarray]], layout: Layout) -> int:
    """Write `tensors` as the dict that the file `path` holds; the file appears when it is whole and on disk.

    tensors: (name, array) for every name of `layout`, once and in its order, with the shape and dtype that it says; one at a time is in
    memory. Returns the bytes of all tensors.

    Raises:
        UserError: the disk is full or cannot be written to; a dtype that PyTorch does not have.
        ValueError: `tensors` and `layout` differ.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    pickle = _pickle(layout)
    total = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    order = {name: str(number) for number, name in enumerate(layout)}
    written: set[str] = set()
    try:
        with disk_errors_in_one_line(path.parent, total):
            require_space(path.parent, total + len(pickle))
            with partial.open("wb") as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                    _write_entry(archive, "data.pkl", [pickle], len(pickle))
                    _write_entry(archive, "byteorder", [b"little"], 6)
                    for name, array in tensors:
                        check_entry(name, array, layout, written)
                        _write_entry(archive, f"data/{order[name]}", contiguous_chunks(array), array.nbytes)
                    if missing := sorted(layout.keys() - written):
                        raise ValueError(f"{missing[0]} is in the layout and did not come ({len(missing)} in all)")
                    _write_entry(archive, "version", [b"3\n"], 2)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return total


def _write_entry(archive: zipfile.ZipFile, name: str, chunks: Iterable[bytes | np.ndarray], size: int) -> None:
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")  # dated 1980, so that the same tensors give the same file
    large = size >= _ZIP64
    # The fixed part of a local header has 30 bytes, an extra field's own head has 4; its contents mean nothing ("FB", as torch names it).
    begin = archive.fp.tell() + 30 + len(info.filename) + (_ZIP64_EXTRA if large else 0) + 4
    padding = -begin % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=large) as entry:
        for chunk in chunks:
            entry.write(chunk)


def _pickle(layout: Layout) -> bytes:
    """Protocol 2: {name: _rebuild_tensor_v2(("storage", type, number, "cpu", size), 0, shape, strides, False, OrderedDict())}."""
    parts = [b"\x80\x02}("]
    for number, (name, (shape, dtype)) in enumerate(layout.items()):
        if np.dtype(dtype) not in _STORAGES:
            raise UserError(f"key {name}: PyTorch files cannot hold {np.dtype(dtype).name}")
        size = math.prod(shape)
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        storage = [_text("storage"), _global("torch", _STORAGES[np.dtype(dtype)]), _text(str(number)), _text("cpu"), _integer(size)]
        parts += [
            _text(name),
            _global("torch._utils", "_rebuild_tensor_v2"),
            b"(" + _tuple(storage) + b"Q" + _integer(0),
            _tuple([_integer(length) for length in shape]),
            _tuple([_integer(stride) for stride in strides]),
            b"\x89" + _global("collections", "OrderedDict") + b")R",
            b"tR",
        ]
    return b"".join(parts) + b"u."


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _tuple(items: list[bytes]) -> bytes:
    return b"(" + b"".join(items) + b"t"
