"""Ranges of bytes of many files, from any thread and after pickling: local files by `pread`, cloud storage by range requests.

A path with a scheme (`gs://`, `s3://`, `az://`) is read through fsspec, which asks for the bytes that are needed and no more; whole
small files and sizes come through `etils.epath`. Local files are kept open, but never so many that the system's limit is met.
"""

from __future__ import annotations

import collections
import os
import threading
from typing import Any

from etils import epath

from segearth_r2_jax.errors import UserError

# The usual limit of open files is 1024 per process; a data set of millions of records has thousands of shards.
_MAX_OPEN = 128


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names something in cloud storage."""
    return "://" in os.fspath(path)


def file_size(path: str | os.PathLike[str]) -> int:
    """Bytes of the file; UserError naming it if there is none."""
    try:
        return epath.Path(path).stat().length
    except (OSError, ImportError) as error:
        raise cannot_read(path, error) from None


def cannot_read(path: str | os.PathLike[str], error: Exception) -> UserError:
    """The one-line form of an error that reading `path` met."""
    if isinstance(error, ImportError):
        scheme = os.fspath(path).split("://")[0]
        return UserError(f"{path}: reading {scheme}:// needs another package ({error}); for gs:// it is gcsfs")
    reason = getattr(error, "strerror", None) or ("No such file or directory" if isinstance(error, FileNotFoundError) else str(error))
    return UserError(f"{path}: cannot be read ({reason or type(error).__name__})")


class _OpenFile:
    """A descriptor that closes when the last thread has let go of it."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class RandomAccess:
    """Reads ranges of files. Copies that travel to other processes open the files anew."""

    def __init__(self):
        self._open: collections.OrderedDict[str, _OpenFile] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, start: int, size: int) -> bytes:
        """At most `size` bytes from byte `start` on, fewer at the end of the file; UserError naming the file if it cannot be read."""
        try:
            if is_remote(path):
                file_system, name = _file_system(path)
                return file_system.cat_file(name, start=start, end=start + size)
            # pread keeps no position, so threads can share one descriptor.
            return os.pread(self._file(path).descriptor, size, start)
        except (OSError, ImportError) as error:
            raise cannot_read(path, error) from None

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        with self._lock:
            self._open.clear()

    def _file(self, path: str) -> _OpenFile:
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
            else:
                self._open[path] = _OpenFile(path)
                if len(self._open) > _MAX_OPEN:
                    self._open.popitem(last=False)
            return self._open[path]

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()


def _file_system(path: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(path)
