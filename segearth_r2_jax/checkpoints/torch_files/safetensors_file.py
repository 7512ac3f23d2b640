"""Reads the header of a `.safetensors` file; tensors are views of the mapped file.

The format: 8 bytes, the length of the header as a little-endian integer; the header, a JSON object that gives dtype, shape and the
first and last byte of every tensor (and texts under `__metadata__`); the tensors' bytes, in C order, without holes.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor, MappedFile, are_sizes, is_shape
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.restricted_pickle import shown

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# The format's own limit.
_LONGEST_HEADER = 100_000_000


class _Broken(Exception):
    """The file is not what its header says, or has none."""


def read_safetensors_file(path: str | Path) -> dict[str, LazyTensor]:
    """The tensors of a `.safetensors` file by name, in the order of their bytes, unread.

    Raises:
        UserError: no such file; not a whole safetensors file: the header is longer than the file, no JSON, has a key twice, an unknown
            dtype, a shape that does not give the bytes, bytes outside the file, in two tensors or in none.
    """
    file = MappedFile(path)
    try:
        header, start = _header(file)
        spans = {name: _span(name, entry) for name, entry in header.items() if name != "__metadata__"}
        _check_spans({name: span[2:] for name, span in spans.items()}, file.size - start)
    except _Broken as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None
    return {
        name: LazyTensor(name, shape, dtype, functools.partial(file.view, dtype, shape, start + begin), (file,))
        for name, (dtype, shape, begin, _) in sorted(spans.items(), key=lambda item: item[1][2:])
    }


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The header, and the byte after it."""
    if file.size < 8:
        raise _Broken(f"it has {file.size} bytes; expected at least 8")
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > min(file.size - 8, _LONGEST_HEADER):
        raise _Broken(f"its header claims {length:,} bytes, the file has {file.size:,}")
    text = file.bytes(8, 8 + length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_object_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _Broken(f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise _Broken(f"its header is a JSON {type(header).__name__}; expected an object")
    return header, 8 + length


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise _Broken(f"duplicate key {shown(key)}")
        content[key] = value
    return content


def _span(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Dtype, shape, first byte and the byte after the last one of a tensor."""
    what = f"key {shown(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Broken(f"{what}: expected its dtype, shape and data_offsets")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise _Broken(f"{what} has dtype {entry['dtype']!r:.40}; expected one of {', '.join(DTYPES)}")
    dtype, shape, offsets = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not is_shape(shape):
        raise _Broken(f"{what}: its shape is none")
    if not isinstance(offsets, list) or len(offsets) != 2 or not are_sizes(offsets):
        raise _Broken(f"{what}: its data_offsets are not two positions")
    begin, end = offsets
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise _Broken(f"{what}: {end - begin:,} bytes for {shape} of {entry['dtype']}")
    return dtype, tuple(shape), begin, end


def _check_spans(spans: dict[str, tuple[int, int]], size: int) -> None:
    """Every one of `size` bytes belongs to one tensor."""
    done = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != done:
            raise _Broken(f"key {shown(name)} begins at byte {begin:,} of the data; expected {done:,}, where the one before it ends")
        done = end
    if done != size:
        raise _Broken(f"its tensors take {done:,} bytes, {size:,} are there")
