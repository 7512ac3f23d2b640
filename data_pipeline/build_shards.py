"""Builds TFRecord shards from a data set in its published layout.

    python -m data_pipeline.build_shards --source lasers --input DIR --output DIR [--split train|test|all] [--shards N] [--workers N]

The same input gives the same bytes, whatever the number of workers. A build that was interrupted, or that stopped at a wrong image
which has been put right since, is continued by the same command: finished shards whose input is still the same are kept after their
checksums have been verified. `manifest.json`, written last, says what the folder holds; a folder without it is not read.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tqdm

from data_pipeline.annotation import Annotation, accepted
from data_pipeline.schema import FEATURES, MANIFEST, Record
from data_pipeline.shard_folder import decode_mask_counts, encode_mask_counts
from data_pipeline.sources.registry import SOURCES, get_source
from data_pipeline.sources.source import Source
from data_pipeline.tfrecord import TFRecordSource, index_path, write_shard
from segearth_r2_jax.errors import UserError

_PLAN = "plan.json"
_FORMAT = "tf.train.Example in TFRecord"
# Small enough to spread over processes and to lose little in an interrupted build, large enough to be few files.
_RECORDS_PER_SHARD = 512


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One shard to write: its file and the rows it is to hold."""

    path: Path
    split: str
    rows: tuple[Annotation, ...]

    def input_digest(self) -> str:
        """Changes when an annotation or an image file of this shard changes."""
        digest = hashlib.sha256()
        for row in self.rows:
            status = row.image_path.stat()
            digest.update(repr((row, status.st_size, status.st_mtime_ns)).encode())
        return digest.hexdigest()


def build_shards(
    source: str,
    folder: Path,
    output: Path,
    *,
    split: str = "all",
    shards: int | None = None,
    workers: int = 1,
    command: str = "",
) -> dict[str, Any]:
    """Writes the shards of `folder` to `output` and returns the manifest; see the module's docstring.

    Args:
      source: the layout of `folder`; "lasers".
      split: "train", "test" or "all" (the ones that are there).
      shards: files per split; by default one per 512 records.
      workers: processes that decode and check images.
      command: the command line, noted in the manifest.
    Raises UserError naming the file and the row if something in the input is wrong; nothing half-written carries a final name.
    """
    reader = get_source(source)
    if workers < 1 or (shards is not None and shards < 1):
        raise UserError("--workers and --shards must be at least 1")
    rows = {name: list(accepted(reader.read(folder, name))) for name in _splits(reader, folder, split)}
    _make_folder(output)
    tasks = [task for name in rows for task in _divide(output, name, rows[name], shards)]
    digests = {task.path.name: task.input_digest() for task in tasks}
    _claim(output, digests)
    built = _run(tasks, workers)

    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "source": source,
        "command": command,
        "features": {name: {"kind": kind, "meaning": meaning} for name, (kind, meaning) in FEATURES.items()},
        "annotations": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in sorted({row.source for task in tasks for row in task.rows})
        },
        "inputs": digests,
        "splits": {},
    }
    for name in rows:
        entries = [entry for task, entry in zip(tasks, built, strict=True) if task.split == name]
        manifest["splits"][name] = {
            "records": sum(entry["records"] for entry in entries),
            "images": len({row.image_path for row in rows[name]}),
            "masks": sum(int(decode_mask_counts(entry["mask_counts"]).clip(0).sum()) for entry in entries),
            "shards": entries,
        }
    _write_json(output / MANIFEST, manifest)
    (output / _PLAN).unlink(missing_ok=True)
    return manifest


def _splits(reader: Source, folder: Path, split: str) -> tuple[str, ...]:
    present = reader.present(folder)
    if split == "all":
        return present
    if split not in present:
        raise UserError(f"{folder}: has no split {split!r}; it has {', '.join(present)}")
    return (split,)


def _divide(output: Path, split: str, rows: Sequence[Annotation], shards: int | None) -> list[ShardTask]:
    """Neighbouring rows stay together, so that a shard's images are read once while they are in the file cache."""
    count = min(len(rows), shards or -(-len(rows) // _RECORDS_PER_SHARD))
    bounds = [len(rows) * number // count for number in range(count + 1)]
    return [
        ShardTask(output / f"{split}-{number:05d}-of-{count:05d}.tfrecord", split, tuple(rows[start:end]))
        for number, (start, end) in enumerate(itertools.pairwise(bounds))
    ]


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be made a folder ({error.strerror})") from None


def _claim(output: Path, digests: dict[str, str]) -> None:
    """Notes what is being built, and removes what an unfinished build made of another input, so that the two never mix."""
    found = sorted(entry.name for entry in output.iterdir())
    if MANIFEST in found:
        if _read_json(output / MANIFEST).get("inputs") != digests:
            raise UserError(f"{output}: holds the finished shards of another input; choose a new folder")
        return
    if _PLAN in found:
        for name, digest in _read_json(output / _PLAN).items():
            if name in found and digests.get(name) != digest:
                (output / name).unlink(missing_ok=True)
                index_path(output / name).unlink(missing_ok=True)
        for leftover in output.glob("*.partial"):
            leftover.unlink()
    elif found:
        raise UserError(f"{output}: is not empty (it holds {found[0]}); choose a new folder")
    _write_json(output / _PLAN, digests)


def _run(tasks: Sequence[ShardTask], workers: int) -> list[dict[str, Any]]:
    """Builds the shards in `workers` processes; entries of the manifest in the order of `tasks`."""
    records = sum(len(task.rows) for task in tasks)
    terminal = sys.stderr.isatty()
    entries: list[dict[str, Any]] = []
    with tqdm.tqdm(total=records, unit="record", disable=not terminal) as bar:
        if workers == 1:
            results = map(_build, tasks)
            pool = None
        else:
            pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
            results = pool.map(_build, tasks)
        try:
            for entry in results:
                entries.append(entry)
                bar.update(entry["records"])
                if not terminal:
                    print(f"{entry['file']}: {entry['records']} records ({len(entries)} of {len(tasks)} shards)", file=sys.stderr)
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
    return entries


def _build(task: ShardTask) -> dict[str, Any]:
    """Writes one shard unless an earlier run has finished it; returns its entry of the manifest."""
    masks = [None if row.targets is None else len(row.targets) for row in task.rows]
    if not _is_finished(task):
        write_shard(task.path, (row.load().to_example() for row in task.rows))
    with task.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": task.path.name,
        "records": len(task.rows),
        "bytes": task.path.stat().st_size,
        "sha256": digest,
        "mask_counts": encode_mask_counts(masks),
    }


def _is_finished(task: ShardTask) -> bool:
    if not (task.path.exists() and index_path(task.path).exists()):
        return False
    try:
        records = TFRecordSource([task.path])
        found = [Record.from_example(records[index], "record").record_id for index in range(len(records))]
    except UserError:
        return False
    return found == [row.record_id for row in task.rows]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is damaged; choose a new folder")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.build_shards", description="Builds TFRecord shards from a data set.")
    parser.add_argument("--source", required=True, choices=sorted(SOURCES), help="the layout of the input")
    parser.add_argument("--input", required=True, type=Path, metavar="DIR", help="the data set's folder")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder, or one whose build was interrupted")
    parser.add_argument("--split", default="all", metavar="NAME", help="what to build (default: all that is there)")
    parser.add_argument("--shards", type=int, metavar="N", help=f"files per split (default: one per {_RECORDS_PER_SHARD} records)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that decode and check images (default: 1)")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    try:
        manifest = build_shards(
            options.source,
            options.input,
            options.output,
            split=options.split,
            shards=options.shards,
            workers=options.workers,
            command=shlex.join(["python", "-m", "data_pipeline.build_shards", *given]),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, split in manifest["splits"].items():
        print(f"{name}: {split['records']} records, {split['masks']} masks, {split['images']} images in {len(split['shards'])} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
