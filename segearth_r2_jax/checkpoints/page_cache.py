"""Files of gigabytes that go through this process once: the system's copies of their pages are let go of as soon as they have served, so
that the next pages take their room. Otherwise the system finds and clears new memory for all of them, and other programs lose theirs."""

from __future__ import annotations

import os


def let_go(file: int | os.PathLike[str]) -> None:
    """Drop the pages of a file, by its descriptor or path; what is not on the disk yet begins to be written, and stays. Nothing happens
    where the system knows no such request."""
    if not hasattr(os, "posix_fadvise"):
        return
    if isinstance(file, int):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
