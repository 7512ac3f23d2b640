"""A bucket in memory that stands in for `gs://`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FakeBucket(MemoryFileSystem):
    """`gs://` in memory; remembers what was asked for."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    ranges: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, *args, finalize_on_close: bool = True, **options):
        super().__init__(*args, **options)

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").removeprefix("gcs://").strip("/")

    def cat_file(self, path, start=None, end=None, **options):
        content = super().cat_file(path, start=start, end=end, **options)
        self.ranges.append((start, len(content)))
        return content


@contextlib.contextmanager
def bucket_in_memory() -> Iterator[FakeBucket]:
    """While it is open, `gs://` is a bucket with nothing in it."""
    from etils.epath import backend

    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, FakeBucket, clobber=True)
    FakeBucket.store.clear()
    FakeBucket.ranges.clear()
    FakeBucket.clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield FakeBucket()
    FakeBucket.store.clear()
