"""TFRecord files with random access: every read is verified, every damaged byte is found and named.

A record is `length (8 bytes, little endian), checksum of the length, data, checksum of the data`, checksums being masked CRC-32C.
Beside a shard `x.tfrecord` lies `x.tfrecord.index`: the byte offsets of its records and of its end (8 bytes each, little endian),
closed by their own checksum. The index only saves time: where it is absent, damaged or of another size, the shard is scanned.
"""

from __future__ import annotations

import concurrent.futures
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import google_crc32c
import numpy as np
from etils import epath

from data_pipeline.atomic import cannot_write, partial_path
from data_pipeline.random_access import RandomAccess, file_size
from segearth_r2_jax.errors import UserError

AnyPath = TypeVar("AnyPath", Path, epath.Path)

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CHECKSUM.size
_FRAME_BYTES = _HEADER_BYTES + _CHECKSUM.size
_INDEX_THREADS = 16


def masked_crc32c(data: bytes) -> bytes:
    """The four bytes TFRecord stores: CRC-32C rotated and shifted, so that checksums of data with checksums in it stay useful."""
    crc = google_crc32c.value(data)
    return _CHECKSUM.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(data: bytes) -> bytes:
    """`data` as one record of a TFRecord file."""
    length = _LENGTH.pack(len(data))
    return length + masked_crc32c(length) + data + masked_crc32c(data)


def index_path(shard: AnyPath) -> AnyPath:
    """Where the index of `shard` lies."""
    return shard.with_name(shard.name + ".index")


def index_content(offsets: Sequence[int] | np.ndarray) -> bytes:
    """The bytes of an index file, for the offsets of a shard's records and of its end."""
    content = np.asarray(offsets, "<u8").tobytes()
    return content + masked_crc32c(content)


def write_shard(path: Path, records: Iterable[bytes]) -> int:
    """Writes `records` and their index, each under a temporary name first; returns how many they were.

    Raises UserError naming the shard if it cannot be written; neither file is left then.
    """
    offsets = [0]
    partial, partial_index = partial_path(path), partial_path(index_path(path))
    with cannot_write(path, partial, partial_index):
        with partial.open("wb") as file:
            for record in records:
                offsets.append(offsets[-1] + file.write(frame(record)))
            file.flush()
            os.fsync(file.fileno())
        partial_index.write_bytes(index_content(offsets))
        os.replace(partial_index, index_path(path))
        os.replace(partial, path)
    return len(offsets) - 1


def read_offsets(shard: str | os.PathLike[str]) -> np.ndarray:
    """Byte offsets int64 [records + 1] of a shard's records and of its end: from its index, or else from the shard itself.

    Raises UserError naming the shard if it is absent or its framing is damaged.
    """
    size = file_size(shard)
    try:
        content = index_path(epath.Path(shard)).read_bytes()
    except OSError:
        return scan_offsets(shard)
    numbers, checksum = content[: -_CHECKSUM.size], content[-_CHECKSUM.size :]
    if len(numbers) % 8 or not numbers or masked_crc32c(numbers) != checksum:
        return scan_offsets(shard)
    offsets = np.frombuffer(numbers, "<u8").astype(np.int64)
    return offsets if offsets[-1] == size else scan_offsets(shard)


def scan_offsets(shard: str | os.PathLike[str]) -> np.ndarray:
    """The offsets of `read_offsets`, found by walking over the shard's record headers."""
    path, size, files = os.fspath(shard), file_size(shard), RandomAccess()
    offsets = [0]
    while offsets[-1] < size:
        number, start = len(offsets) - 1, offsets[-1]
        end = start + _record_length(files.read(path, start, _HEADER_BYTES), path, number, start) + _FRAME_BYTES
        if end > size:
            raise UserError(f"{path}: record {number} is cut short at byte {size}; build the shard again")
        offsets.append(end)
    return np.asarray(offsets, np.int64)


class TFRecordSource:
    """The records of several shards as one sequence: `source[i]` -> bytes, from any thread, in any order, after pickling too.

    Shards may lie in cloud storage (`gs://bucket/...`).
    """

    def __init__(self, shards: Sequence[str | os.PathLike[str]]):
        self._shards = [os.fspath(shard) for shard in shards]
        # In threads: in cloud storage every index is a request.
        with concurrent.futures.ThreadPoolExecutor(_INDEX_THREADS) as pool:
            self._offsets = list(pool.map(read_offsets, self._shards))
        # First record of each shard, and how many there are.
        self._starts = np.cumsum([0, *(len(offsets) - 1 for offsets in self._offsets)])
        self._files = RandomAccess()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> bytes:
        """The data of record `index`; UserError naming shard and record if a single bit of it is wrong."""
        path, number, start, end = self._find(index)
        content = self._files.read(path, start, end - start)
        length = _record_length(content[:_HEADER_BYTES], path, number, start)
        if len(content) != length + _FRAME_BYTES:
            raise UserError(f"{path}: record {number} is cut short at byte {start + len(content)}; build the shard again")
        data = content[_HEADER_BYTES : -_CHECKSUM.size]
        if masked_crc32c(data) != content[-_CHECKSUM.size :]:
            raise UserError(f"{path}: record {number} is damaged at byte {start} (its checksum does not fit); build the shard again")
        return data

    def head(self, index: int, size: int) -> bytes:
        """The first `size` bytes, at most, of the data of record `index`, which no checksum vouches for."""
        path, _, start, end = self._find(index)
        return self._files.read(path, start + _HEADER_BYTES, min(size, end - start - _FRAME_BYTES))

    def place(self, index: int) -> str:
        """Where record `index` lies: its shard and the offset of its first byte, in words."""
        path, number, start, _ = self._find(index)
        return f"{path}: record {number} at byte {start}"

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        self._files.close()

    def _find(self, index: int) -> tuple[str, int, int, int]:
        """Shard, number within it, first byte and end of record `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        number = index - int(self._starts[shard])
        start, end = (int(offset) for offset in self._offsets[shard][number : number + 2])
        return self._shards[shard], number, start, end


def _record_length(header: bytes, shard: str, number: int, start: int) -> int:
    length, checksum = header[: _LENGTH.size], header[_LENGTH.size :]
    if len(header) != _HEADER_BYTES or masked_crc32c(length) != checksum:
        raise UserError(
            f"{shard}: record {number} is damaged at byte {start} (the checksum of its length does not fit); build the shard again"
        )
    return _LENGTH.unpack(length)[0]
