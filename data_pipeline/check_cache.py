"""What a validation pass found, kept while the shards are being written: a build that is killed need not open every image again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.annotation import Annotation
from data_pipeline.atomic import write_bytes
from data_pipeline.validation import RowCheck, Validated
from segearth_r2_jax.errors import UserError


class AnnotationFiles:
    """The SHA-256 of each annotation file of a data set, computed once."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._digests: dict[str, str] = {}

    def digest(self, name: str) -> str:
        """Of the file that `Annotation.source` calls `name`."""
        if name not in self._digests:
            path = self._folder / name
            try:
                with path.open("rb") as file:
                    self._digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        return self._digests[name]


class CheckCache:
    """The results of a finished pass, as far as they still hold; a file that is absent or damaged holds none."""

    def __init__(self, path: Path, files: AnnotationFiles):
        self._files = files
        self._content = _read(path)

    def get(self, split: str, number: int, row: Annotation) -> RowCheck | None:
        """What was found for row `number` of `split`, if neither its annotation file nor its image nor its mask files have changed."""
        if self._content["annotations"].get(row.source) != self._files.digest(row.source):
            return None
        stamp, check = self._content["rows"].get(split, {}).get(str(number), (None, None))
        if stamp is None or stamp != _stamp(row):
            return None
        reason, image_sha256, height, width, areas, digest = check
        return RowCheck(reason, image_sha256, height, width, None if areas is None else tuple(areas), digest)


def write_cache(path: Path, validated: Validated, files: AnnotationFiles) -> None:
    """Writes what was found about the rows that can be used, under a temporary name first."""
    rows = {
        split: {str(row.number): [_stamp(row.annotation), list(row.check)] for row in members} for split, members in validated.rows.items()
    }
    sources = {row.annotation.source for members in validated.rows.values() for row in members}
    content = json.dumps({"annotations": {name: files.digest(name) for name in sorted(sources)}, "rows": rows}).encode()
    write_bytes(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def _read(path: Path) -> dict[str, Any]:
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        digest = content = b""
    if digest != hashlib.sha256(content).hexdigest().encode():
        return {"annotations": {}, "rows": {}}
    return json.loads(content)


def _stamp(row: Annotation) -> list[int] | None:
    """Changes when a file changes that the row needs beside its annotation file; None if one is gone."""
    try:
        status = [os.stat(path) for path in _files_of(row)]
    except OSError:
        return None
    return [number for entry in status for number in (entry.st_size, entry.st_mtime_ns)]


def _files_of(row: Annotation) -> Iterator[Path]:
    yield row.image_path
    yield from row.also_from
    for target in row.targets or ():
        path = getattr(target, "path", None)
        if path is not None:
            yield path
