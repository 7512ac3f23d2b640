"""Reading and writing PyTorch weights as safetensors, without torch.

A folder holds `model.safetensors`, or shards with `model.safetensors.index.json`. Reading is lazy: the headers are read and checked
at once, a tensor's bytes when somebody asks for them, so that a checkpoint larger than memory can pass through.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from segearth_r2_jax.checkpoints.json_files import read_json, write_json
from segearth_r2_jax.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A stored tensor; `numpy.asarray` reads its bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: Any = dataclasses.field(repr=False)

    def __array__(self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        array = self.file.get_tensor(self.name)
        return array if dtype is None else array.astype(dtype, copy=False)


def read_safetensors(path: str | Path) -> dict[str, LazyTensor]:
    """The tensors of a `.safetensors` file or of a folder that holds one (or shards with an index), by name, unread.

    Raises:
        UserError: nothing to read at `path`; a file is no safetensors file or is cut off; the index names a file outside its folder,
            a tensor that is not where it says, or leaves one out; a tensor is stored twice.
    """
    path = Path(path)
    if path.is_file():
        return _read_file(path)
    if (path / INDEX).is_file():
        return _read_shards(path)
    if (path / SINGLE).is_file():
        return _read_file(path / SINGLE)
    raise UserError(f"{path}: no {SINGLE} and no {INDEX} there")


def _read_shards(folder: Path) -> dict[str, LazyTensor]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX}: no weight_map; expected one that gives the file of every tensor")
    tensors: dict[str, LazyTensor] = {}
    for file_name in sorted(set(map(str, weight_map.values()))):
        # A plain name only: an index is data from elsewhere and must not make us open any other file of this machine.
        if file_name in ("", ".", "..") or "/" in file_name or "\\" in file_name:
            raise UserError(f"{folder / INDEX}: names {file_name!r}; expected the name of a file in the same folder")
        for name, tensor in _read_file(folder / file_name).items():
            if name in tensors:
                raise UserError(f"{folder / file_name}: duplicate key {name}: another shard has it too")
            if weight_map.get(name) != file_name:
                raise UserError(f"{folder / file_name}: has key {name}, which {INDEX} places in {weight_map.get(name, 'no file')}")
            tensors[name] = tensor
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise UserError(f"{folder / INDEX}: places key {missing[0]} in {weight_map[missing[0]]}, which does not have it")
    return tensors


def _read_file(path: Path) -> dict[str, LazyTensor]:
    try:
        file = safe_open(path, "np")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error
    tensors = {}
    for name in file.keys():  # noqa: SIM118 (a safe_open is no mapping)
        header = file.get_slice(name)
        if header.get_dtype() not in _DTYPES:
            raise UserError(f"{path}: key {name} has dtype {header.get_dtype()}; expected one of {', '.join(_DTYPES)}")
        tensors[name] = LazyTensor(name, tuple(header.get_shape()), _DTYPES[header.get_dtype()], file)
    return tensors


def write_safetensors(folder: str | Path, tensors: Iterable[tuple[str, np.ndarray]], *, max_shard_bytes: int = 5 * 10**9) -> int:
    """Write `tensors` into `folder` as `model.safetensors`, or as shards with an index if they exceed `max_shard_bytes`.

    One shard at a time is in memory. Files appear under their final names when all of them are whole. Returns the bytes of all tensors.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[tuple[Path, list[str]]] = []
    shard: dict[str, np.ndarray] = {}
    total = shard_bytes = 0

    def flush() -> None:
        temporary = folder / f".{SINGLE}.{len(parts)}.partial"
        parts.append((temporary, list(shard)))
        # transformers refuses a file whose metadata does not name the framework.
        save_file(shard, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # the library makes files that only their owner reads
        shard.clear()

    try:
        for name, array in tensors:
            if shard and shard_bytes + array.nbytes > max_shard_bytes:
                flush()
                shard_bytes = 0
            shard[name] = np.asarray(array, order="C")
            shard_bytes += array.nbytes
            total += array.nbytes
        flush()
        if len(parts) == 1:
            os.replace(parts[0][0], folder / SINGLE)
            return total
        weight_map = {}
        for number, (temporary, names) in enumerate(parts, start=1):
            final = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            os.replace(temporary, folder / final)
            weight_map.update(dict.fromkeys(names, final))
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        return total
    finally:
        for temporary, _ in parts:
            temporary.unlink(missing_ok=True)
