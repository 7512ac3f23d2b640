"""CRC-32C of arrays and files, the checksum that tells a disk's or a copy's error."""

from __future__ import annotations

from collections.abc import Iterator

import google_crc32c
import numpy as np
from etils import epath

from segearth_r2_jax.checkpoints.torch_files.safetensors_writer import contiguous_chunks

# Summed at a time: enough for a disk, and little enough to stay in a processor's cache.
_ROOM_BYTES = 1 << 20


def array_checksum(values: np.ndarray, before: int = 0) -> int:
    """Of an array's bytes in C order, going on from that of what came `before`."""
    room = np.empty(_ROOM_BYTES, np.uint8)
    for chunk in contiguous_chunks(values):
        for start in range(0, len(chunk), len(room)):
            # Python's lock is held while a checksum is computed, but not during a copy: whoever waits for the disk holds up nobody else.
            part = room[: len(chunk) - start]
            np.copyto(part, chunk[start : start + len(part)])
            before = google_crc32c.extend(before, part)
    return before


def file_checksum(path: epath.Path) -> tuple[int, int]:
    """(bytes, checksum) of a file, on a disk or in a bucket."""
    size, crc = 0, 0
    for part in _parts(path):
        size += len(part)
        crc = google_crc32c.extend(crc, part)
    return size, crc


def _parts(path: epath.Path) -> Iterator[bytes | np.ndarray]:
    if "://" in str(path):
        with path.open("rb") as file:
            while part := file.read(16 * _ROOM_BYTES):
                yield part
        return
    # Into the same room again and again: memory that a process never had before is dear.
    room = np.empty(_ROOM_BYTES, np.uint8)
    with open(path, "rb", buffering=0) as file:
        while read := file.readinto(room):
            yield room[:read]
