"""Writing safetensors, tensor by tensor, without torch.

The format (https://huggingface.co/docs/safetensors, "Format"): the length of a header as 8 bytes, little endian; the header, a JSON
object that gives every tensor's dtype, shape and range of bytes; the bytes of the tensors, without holes. The header comes first, so
everything is planned from shapes and dtypes, and the tensors then go to their places one at a time: no more than one is in memory.

A folder holds `model.safetensors`, or shards and `model.safetensors.index.json`, as transformers reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from segearth_r2_jax.checkpoints.disk_files import LARGE_BYTES, let_go, to_disk, write_all
from segearth_r2_jax.checkpoints.json_files import write_json
from segearth_r2_jax.checkpoints.torch_files.safetensors_file import DTYPES
from segearth_r2_jax.checkpoints.torch_files.state_dict import INDEX, SINGLE
from segearth_r2_jax.errors import UserError

# {name: (shape, dtype)} of the tensors of a file or a folder.
Layout = Mapping[str, tuple[tuple[int, ...], np.dtype]]

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# transformers refuses a file whose metadata does not name the framework.
_METADATA = {"format": "pt"}
# What of a tensor that does not lie in one piece is copied at a time.
_CHUNK = 1 << 26


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A file that is going to be written: its header and where the bytes of every tensor begin."""

    header: bytes
    starts: dict[str, int]
    size: int


def write_safetensors(
    folder: str | Path, tensors: Iterable[tuple[str, np.ndarray]], layout: Layout, *, max_shard_bytes: float = 5e9
) -> int:
    """Write `tensors` into `folder` as `model.safetensors`, or as shards with an index if they exceed `max_shard_bytes`.

    tensors: (name, array) for every name of `layout`, once, with the shape and dtype that it says; the order of `layout` is the quickest.
    Files get their final names when all of them are whole and on disk, the index last; a failure leaves none. Returns the bytes of all
    tensors.

    Raises:
        UserError: the disk is full or cannot be written to.
        ValueError: `tensors` and `layout` differ.
    """
    folder = Path(folder)
    shards: list[list[str]] = [[]]
    filled = 0
    for name in layout:
        if shards[-1] and filled + _nbytes(layout, name) > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += _nbytes(layout, name)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    total = sum(_nbytes(layout, name) for name in layout)
    _write_files({folder / name: {key: layout[key] for key in shard} for name, shard in zip(names, shards, strict=True)}, tensors)
    if count > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        with disk_errors_in_one_line(folder, total):
            write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return total


def write_safetensors_file(path: str | Path, tensors: Iterable[tuple[str, np.ndarray]], layout: Layout) -> int:
    """The same, as the one file `path`."""
    _write_files({Path(path): layout}, tensors)
    return sum(_nbytes(layout, name) for name in layout)


def contiguous_chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of an array in the order of its indices, as uint8 arrays of limited size; what lies in one piece is not copied."""
    array = np.atleast_1d(array)
    if not array.size:
        return
    rows = len(array) if array.flags.c_contiguous else max(1, _CHUNK // (array.nbytes // len(array)))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8)


def check_entry(name: str, array: np.ndarray, layout: Layout, written: set[str]) -> None:
    """Whether `array` is what `layout` says of `name`, and came for the first time; remembers it in `written`.

    Raises:
        ValueError: it is not.
    """
    if name in written:
        raise ValueError(f"{name} comes twice")
    if name not in layout:
        raise ValueError(f"{name} is not in the layout")
    shape, dtype = layout[name]
    if array.shape != tuple(shape) or array.dtype != dtype:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}; the layout says {dtype}{list(shape)}")
    written.add(name)


def require_space(folder: Path, needed: int) -> None:
    """Raises UserError if the disk of `folder` has less than `needed` bytes left: better now than after most of the work."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{folder}: {needed:,} bytes are needed there, {free:,} are free; make room or choose another target")


@contextlib.contextmanager
def disk_errors_in_one_line(folder: Path, needed: int) -> Iterator[None]:
    """What the operating system says about writing `needed` bytes to `folder`, as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); {needed:,} bytes are needed there") from error


def _write_files(files: Mapping[Path, Layout], tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    plans = {path: _plan(layout) for path, layout in files.items()}
    place = {name: path for path, layout in files.items() for name in layout}
    layout = {name: entry for part in files.values() for name, entry in part.items()}
    partial = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in files}
    folder, needed = next(iter(files)).parent, sum(plan.size for plan in plans.values())
    written: set[str] = set()
    with disk_errors_in_one_line(folder, needed):
        folder.mkdir(parents=True, exist_ok=True)
        require_space(folder, needed)
    # Only the writer's own errors are about this folder; those of the source that `tensors` reads keep their words.
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [path.unlink(missing_ok=True) for path in partial.values()])
        with disk_errors_in_one_line(folder, needed):
            # Unbuffered, so that closing a file writes nothing and cannot fail for want of room.
            opened = {path: stack.enter_context(partial[path].open("wb", buffering=0)) for path in files}
            for path, file in opened.items():
                write_all(file, plans[path].header)
        beside, started = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="to_disk")), None
        for name, array in tensors:
            check_entry(name, array, layout, written)
            with disk_errors_in_one_line(folder, needed):
                file, start = opened[place[name]], plans[place[name]].starts[name]
                if file.tell() != start:
                    file.seek(start)
                for chunk in contiguous_chunks(array):
                    write_all(file, chunk)
                if array.nbytes >= LARGE_BYTES:
                    # Meanwhile the next tensor comes.
                    if started is not None:
                        started.result()
                    started = beside.submit(let_go, file.fileno())
        if missing := sorted(layout.keys() - written):
            raise ValueError(f"{missing[0]} is in the layout and did not come ({len(missing)} in all)")
        with disk_errors_in_one_line(folder, needed):
            for file in opened.values():
                os.fsync(file.fileno())
                file.close()
            for path in files:
                os.replace(partial[path], path)
            to_disk(folder)


def _plan(layout: Layout) -> _Plan:
    # A reader that maps the file looks at the bytes as numbers where they lie, so each begins at a multiple of its item size: the
    # header's length is a multiple of 8, and tensors with larger items come first.
    order = sorted(layout, key=lambda name: -np.dtype(layout[name][1]).itemsize)
    entries: dict[str, object] = {"__metadata__": _METADATA}
    ranges, end = {}, 0
    for name in order:
        shape, dtype = layout[name]
        if np.dtype(dtype) not in _DTYPE_NAMES:
            raise UserError(f"key {name}: safetensors files cannot hold {np.dtype(dtype).name}")
        start, end = end, end + _nbytes(layout, name)
        entries[name] = {"dtype": _DTYPE_NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [start, end]}
        ranges[name] = start
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return _Plan(header, {name: len(header) + start for name, start in ranges.items()}, len(header) + end)


def _nbytes(layout: Layout, name: str) -> int:
    shape, dtype = layout[name]
    return math.prod(shape) * np.dtype(dtype).itemsize
