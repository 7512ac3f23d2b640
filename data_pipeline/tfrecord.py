"""TFRecord files with random access: every read is verified, every damaged byte is found and named.

A record is `length (8 bytes, little endian), checksum of the length, data, checksum of the data`, checksums being masked CRC-32C.
Beside a shard `x.tfrecord` lies `x.tfrecord.index`: the byte offsets of its records and of its end (8 bytes each, little endian),
closed by their own checksum. The index only saves time: where it is absent, damaged or of another size, the shard is scanned.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import google_crc32c
import numpy as np

from segearth_r2_jax.errors import UserError

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CHECKSUM.size
_FRAME_BYTES = _HEADER_BYTES + _CHECKSUM.size


def masked_crc32c(data: bytes) -> bytes:
    """The four bytes TFRecord stores: CRC-32C rotated and shifted, so that checksums of data with checksums in it stay useful."""
    crc = google_crc32c.value(data)
    return _CHECKSUM.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(data: bytes) -> bytes:
    """`data` as one record of a TFRecord file."""
    length = _LENGTH.pack(len(data))
    return length + masked_crc32c(length) + data + masked_crc32c(data)


def index_path(shard: Path) -> Path:
    """Where the index of `shard` lies."""
    return shard.with_name(shard.name + ".index")


def write_shard(path: Path, records: Iterable[bytes]) -> int:
    """Writes `records` and their index, each under a temporary name first; returns how many they were."""
    offsets = [0]
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial_index = index_path(partial)
    try:
        with partial.open("wb") as file:
            for record in records:
                offsets.append(offsets[-1] + file.write(frame(record)))
            file.flush()
            os.fsync(file.fileno())
        content = np.asarray(offsets, "<u8").tobytes()
        partial_index.write_bytes(content + masked_crc32c(content))
        os.replace(partial_index, index_path(path))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        partial_index.unlink(missing_ok=True)
    return len(offsets) - 1


def read_offsets(shard: Path) -> np.ndarray:
    """Byte offsets int64 [records + 1] of a shard's records and of its end: from its index, or else from the shard itself.

    Raises UserError naming the shard if it is absent or its framing is damaged.
    """
    try:
        size = shard.stat().st_size
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror})") from None
    try:
        content = index_path(shard).read_bytes()
    except OSError:
        return scan_offsets(shard)
    numbers, checksum = content[: -_CHECKSUM.size], content[-_CHECKSUM.size :]
    if len(numbers) % 8 or not numbers or masked_crc32c(numbers) != checksum:
        return scan_offsets(shard)
    offsets = np.frombuffer(numbers, "<u8").astype(np.int64)
    return offsets if offsets[-1] == size else scan_offsets(shard)


def scan_offsets(shard: Path) -> np.ndarray:
    """The offsets of `read_offsets`, found by walking over the shard's record headers."""
    offsets = [0]
    with shard.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while offsets[-1] < size:
            header = os.pread(file.fileno(), _HEADER_BYTES, offsets[-1])
            end = offsets[-1] + _record_length(header, shard, len(offsets) - 1) + _FRAME_BYTES
            if end > size:
                raise UserError(f"{shard}: record {len(offsets) - 1} is cut short; build the shard again")
            offsets.append(end)
    return np.asarray(offsets, np.int64)


class TFRecordSource:
    """The records of several shards as one sequence: `source[i]` -> bytes, from any thread, in any order, after pickling too."""

    def __init__(self, shards: Sequence[str | os.PathLike[str]]):
        self._shards = [Path(shard) for shard in shards]
        self._offsets = [read_offsets(shard) for shard in self._shards]
        # First record of each shard, and how many there are.
        self._starts = np.cumsum([0, *(len(offsets) - 1 for offsets in self._offsets)])
        self._files: dict[int, int] = {}
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> bytes:
        """The data of record `index`; UserError naming shard and record if a single bit of it is wrong."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        path, number = self._shards[shard], index - int(self._starts[shard])
        start, end = (int(offset) for offset in self._offsets[shard][number : number + 2])
        # pread keeps no position, so threads can share one descriptor.
        content = os.pread(self._file(shard), end - start, start)
        length = _record_length(content[:_HEADER_BYTES], path, number)
        if len(content) != length + _FRAME_BYTES:
            raise UserError(f"{path}: record {number} is cut short; build the shard again")
        data = content[_HEADER_BYTES:-4]
        if masked_crc32c(data) != content[-4:]:
            raise UserError(f"{path}: record {number} is damaged (its checksum does not fit); build the shard again")
        return data

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        with self._opening:
            while self._files:
                os.close(self._files.popitem()[1])

    def _file(self, shard: int) -> int:
        with self._opening:
            if shard not in self._files:
                try:
                    self._files[shard] = os.open(self._shards[shard], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                except OSError as error:
                    raise UserError(f"{self._shards[shard]}: cannot be read ({error.strerror})") from None
            return self._files[shard]

    def __getstate__(self) -> dict[str, object]:
        state = dict(self.__dict__)
        del state["_files"], state["_opening"]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._files = {}
        self._opening = threading.Lock()

    def __del__(self):
        if "_files" in self.__dict__:
            self.close()


def _record_length(header: bytes, shard: Path, number: int) -> int:
    length, checksum = header[: _LENGTH.size], header[_LENGTH.size :]
    if len(header) != _HEADER_BYTES or masked_crc32c(length) != checksum:
        raise UserError(f"{shard}: record {number} is damaged (the checksum of its length does not fit); build the shard again")
    return _LENGTH.unpack(length)[0]
