"""What a worker process of the loader sets up before it makes rows."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading

# glibc's mallopt parameters.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 256 << 20
# The largest value that glibc takes.
_HEAP_BYTES = 32 << 20


def start_worker(worker_index: int, worker_count: int) -> None:
    """Called by Grain in every worker process."""
    _keep_memory()
    _end_with_parent()


def _keep_memory() -> None:
    """Lets freed memory be used again.

    A row passes through half a dozen buffers of some megabytes. By default glibc asks the system for each and gives it back, so that
    every page is cleared and mapped anew for every row: a third of the time that a row takes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # Not glibc: its allocator has no such settings.
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, _HEAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _end_with_parent() -> None:
    """Grain's workers wait for ever for the next order when the process that gives them was killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()
