"""One shard as a piece of work that any process can do: the rows it is to hold, and what the validation pass has found about them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.annotation import Annotation
from data_pipeline.schema import Record
from data_pipeline.shard_folder import encode_mask_counts
from data_pipeline.tfrecord import TFRecordSource, index_content, index_path, scan_offsets, write_shard
from data_pipeline.validation import CheckedRow, record_digest
from segearth_r2_jax.errors import UserError

# Small enough to spread over processes and to lose little in an interrupted build, large enough to be few files.
RECORDS_PER_SHARD = 512


class InputChanged(UserError):
    """A row is not what it was when it was checked."""


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One shard to write.

    `places` are the splits and numbers of `rows`. `sizes` (height, width) and `digests` are what the validation pass found for each row:
    images are not decoded a second time, but a row that is not what it was is noticed.
    """

    path: Path
    places: tuple[tuple[str, int], ...]
    rows: tuple[Annotation, ...]
    sizes: tuple[tuple[int, int], ...]
    digests: tuple[str, ...]

    def digest(self) -> str:
        """Changes when anything that this shard is to hold does."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    def examples(self) -> Iterator[bytes]:
        """The serialized records; InputChanged, naming the row, if one has changed since it was checked."""
        for row, (height, width), digest in zip(self.rows, self.sizes, self.digests, strict=True):
            record = row.record(row.read_image_bytes(), height, width)
            if _digest(record) != digest:
                raise InputChanged(
                    f"{row.name}: it, or its image {row.image_path}, has changed since it was checked; run the command again"
                )
            yield record.to_example()


def divide(output: Path, split: str, rows: Sequence[CheckedRow], shards: int | None) -> list[ShardTask]:
    """The shards of a split. Neighbouring rows stay together, so that a shard's images are read once while they are in the file cache."""
    count = min(len(rows), shards or -(-len(rows) // RECORDS_PER_SHARD))
    bounds = [len(rows) * number // count for number in range(count + 1)] if count else [0]
    tasks = []
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = rows[start:end]
        tasks.append(
            ShardTask(
                output / f"{split}-{number:05d}-of-{count:05d}.tfrecord",
                tuple((split, row.number) for row in part),
                tuple(row.annotation for row in part),
                tuple((row.check.height, row.check.width) for row in part),
                tuple(row.check.digest for row in part),
            )
        )
    return tasks


def build_shard(task: ShardTask) -> dict[str, Any]:
    """Writes one shard unless an earlier run has finished it; returns its entry of the manifest."""
    if not _is_finished(task):
        write_shard(task.path, task.examples())
    with task.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": task.path.name,
        "records": len(task.rows),
        "bytes": task.path.stat().st_size,
        "sha256": digest,
        "mask_counts": encode_mask_counts([None if row.targets is None else len(row.targets) for row in task.rows]),
    }


def _is_finished(task: ShardTask) -> bool:
    if not (task.path.exists() and index_path(task.path).exists()):
        return False
    try:
        records = TFRecordSource([task.path])
        found = tuple(_digest(Record.from_example(records[index], "record")) for index in range(len(records)))
        whole = index_path(task.path).read_bytes() == index_content(scan_offsets(task.path))
    except (UserError, OSError):
        return False
    return whole and found == task.digests


def _digest(record: Record) -> str:
    image_sha256 = hashlib.sha256(record.image_bytes).hexdigest()
    return record_digest(dataclasses.replace(record, image_bytes=b"").to_example(), image_sha256)
