"""Files of gigabytes that go through this process once: written whole, known to be on the disk, and out of the system's memory.

The system's copies of their pages are let go of as soon as they have served, so that the next pages take their room. Otherwise it finds
and clears new memory for all of them, and other programs lose theirs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

# Smaller files are not worth requests to the system beyond reading and writing them.
LARGE_BYTES = 1 << 20


def write_all(file: Any, data: bytes | np.ndarray) -> None:
    """Write all of `data` (bytes, or an array of uint8) to an unbuffered file, which may take less than it is given."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def to_disk(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def let_go(descriptor: int) -> None:
    """Drop the pages of an open file; what is not on the disk yet begins to be written, and stays. Nothing happens where the system
    knows no such request."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
