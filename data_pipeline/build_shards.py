"""Builds TFRecord shards from a data set in its published layout.

    python -m data_pipeline.build_shards --source lasers --input DIR --output DIR [--split train|test|all] [--shards N] [--workers N]
    python -m data_pipeline.build_shards --source lasers --input DIR --validate-only --report DIR

Every row is checked before anything is written. Rows that are wrong are left out and listed, with the reason, in `report.json` and
`report.html`; `--strict` refuses the whole data set instead. The same input gives the same bytes, whatever the number of workers. A build
that was interrupted is continued by the same command: finished shards whose input is still the same are kept after they have been
verified. `manifest.json`, written last, says what the folder holds; a folder without it is not read.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import multiprocessing
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.check_cache import AnnotationFiles, CheckCache, write_cache
from data_pipeline.command_line import run_command
from data_pipeline.progress import Progress
from data_pipeline.report import REPORT, make_report, write_report
from data_pipeline.shard_output import CHECKS, claim, finish, make_manifest
from data_pipeline.shard_task import RECORDS_PER_SHARD, InputChanged, ShardTask, build_shard, divide
from data_pipeline.sources.registry import SOURCES, get_source
from data_pipeline.sources.source import Source
from data_pipeline.validation import Mapper, Validated, validate
from segearth_r2_jax.errors import UserError

# Rejections that the command line shows; the report has all of them.
_SHOWN = 5
# What an interruption leaves.
RESUMES = "the same command goes on from here"


def build_shards(
    source: str,
    folder: Path,
    output: Path,
    *,
    split: str = "all",
    shards: int | None = None,
    workers: int = 1,
    command: str = "",
    strict: bool = False,
    allow_shared_images: bool = False,
    mapper: Mapper | None = None,
) -> dict[str, Any]:
    """Writes the shards of `folder` to `output` and returns the manifest; see the module's docstring.

    Args:
      source: the layout of `folder`, a name of `sources.registry`.
      split: one of the source's splits, or "all" (the ones that are there).
      shards: files per split; by default one per 512 records.
      workers: processes that decode and check images.
      command: the command line, noted in the manifest.
      strict: raise UserError at the first row that is wrong, instead of leaving it out.
      allow_shared_images: keep training rows whose image is in another split, too.
      mapper: does the work in place of processes of this machine.
    Raises UserError if a whole file of the input is wrong or no row of a split can be used, before anything is written; and if the
    output cannot be written, in which case nothing half-written carries a final name.
    """
    if workers < 1 or (shards is not None and shards < 1):
        raise UserError("--workers and --shards must be at least 1")
    reader = get_source(source)
    with contextlib.ExitStack() as stack:
        mapper = mapper or stack.enter_context(local_processes(workers))
        files = AnnotationFiles(folder)
        validated = validate(
            reader,
            folder,
            chosen_splits(reader, folder, split),
            mapper,
            strict=strict,
            allow_shared_images=allow_shared_images,
            known=CheckCache(output / CHECKS, files).get,
        )
        _require_rows(validated)
        tasks = {name: divide(output, name, rows, shards) for name, rows in validated.rows.items()}
        inputs = {task.path.name: task.digest() for members in tasks.values() for task in members}
        claim(output, inputs)
        write_cache(output / CHECKS, validated, files)
        entries = _write_shards(tasks, mapper, output)
        manifest = make_manifest(reader, command, validated, entries, inputs, files)
    write_report(make_report(reader, folder, validated, command), output)
    finish(output, manifest)
    return manifest


def chosen_splits(reader: Source, folder: Path, split: str) -> tuple[str, ...]:
    """The splits that `split` names ("all": those that are there); UserError if the folder does not have it."""
    present = reader.present(folder)
    if split == "all":
        return present
    if split not in present:
        raise UserError(f"{folder}: has no split {split!r}; it has {', '.join(present)}")
    return (split,)


@contextlib.contextmanager
def local_processes(workers: int) -> Iterator[Mapper]:
    """A mapper that runs tasks in `workers` processes of this machine, in this one if there is to be one."""
    if workers == 1:
        yield map
        return
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:

        def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
            try:
                yield from pool.map(function, tasks)
            except concurrent.futures.process.BrokenProcessPool:
                raise UserError(
                    "a worker process was killed, perhaps for want of memory; run the command again with fewer --workers"
                ) from None

        try:
            yield run
        finally:
            pool.shutdown(cancel_futures=True)


def _require_rows(validated: Validated) -> None:
    for split, rows in validated.rows.items():
        if not rows and (count := validated.rejected_in(split)):
            first = next(entry.rejection for entry in validated.rejected if entry.split == split)
            raise UserError(f"{first} (none of the {count} rows of the split {split!r} can be used; this is the first)")


def _write_shards(tasks: Mapping[str, Sequence[ShardTask]], mapper: Mapper, output: Path) -> dict[str, list[dict[str, Any]]]:
    """Builds the shards; their entries of the manifest by split."""
    every = [task for members in tasks.values() for task in members]
    entries: dict[str, list[dict[str, Any]]] = {split: [] for split in tasks}
    splits = [split for split, members in tasks.items() for _ in members]
    with Progress("wrote", sum(len(task.rows) for task in every)) as progress:
        try:
            for number, (split, entry) in enumerate(zip(splits, mapper(build_shard, every), strict=True), start=1):
                entries[split].append(entry)
                progress.add(entry["records"], f"{entry['file']}: {entry['records']} records ({number} of {len(every)} shards)")
        except InputChanged:
            # What was found before may not hold any more.
            (output / CHECKS).unlink(missing_ok=True)
            raise
    return entries


def validate_only(
    source: str,
    folder: Path,
    report: Path,
    *,
    split: str = "all",
    workers: int = 1,
    command: str = "",
    strict: bool = False,
    allow_shared_images: bool = False,
) -> dict[str, Any]:
    """Checks every row as `build_shards` does, writes the report into the folder `report`, and returns it.

    Raises UserError if a whole file of the input is wrong; then, and with `strict` at the first wrong row, no report is written.
    """
    if workers < 1:
        raise UserError("--workers must be at least 1")
    reader = get_source(source)
    with local_processes(workers) as mapper:
        splits = chosen_splits(reader, folder, split)
        validated = validate(reader, folder, splits, mapper, strict=strict, allow_shared_images=allow_shared_images)
    content = make_report(reader, folder, validated, command)
    write_report(content, report)
    _require_rows(validated)
    return content


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every command of the build has."""
    parser.add_argument("--source", required=True, choices=sorted(SOURCES), help="the layout of the input")
    parser.add_argument("--input", required=True, type=Path, metavar="DIR", help="the data set's folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new folder, or one whose build was interrupted")
    parser.add_argument("--split", default="all", metavar="NAME", help="what to build (default: all that is there)")
    parser.add_argument("--shards", type=int, metavar="N", help=f"files per split (default: one per {RECORDS_PER_SHARD} records)")
    parser.add_argument("--strict", action="store_true", help="stop at the first row that is wrong; nothing is written")
    parser.add_argument("--allow-shared-images", action="store_true", help="keep training rows whose image is in another split, too")


def run_build(options: argparse.Namespace, command: str, *, workers: int = 1, mapper: Mapper | None = None) -> None:
    """Builds what the options of `add_arguments` say, and prints what has been written and what has been left out."""
    if options.output is None:
        raise UserError("--output is missing: the folder to write the shards to")
    manifest = build_shards(
        options.source,
        options.input,
        options.output,
        split=options.split,
        shards=options.shards,
        workers=workers,
        command=command,
        strict=options.strict,
        allow_shared_images=options.allow_shared_images,
        mapper=mapper,
    )
    for name, split in manifest["splits"].items():
        rejected = f", {split['rejected']} rejected" if split["rejected"] else ""
        counts = f"{split['records']} records, {split['masks']} masks, {split['images']} images"
        print(f"{name}: {counts} in {len(split['shards'])} shards{rejected}")
    _print_rejections(options.output)


def _print_rejections(folder: Path) -> None:
    report = json.loads((folder / REPORT).read_bytes())
    for note in report["notes"]:
        print(f"note: {note}", file=sys.stderr)
    rejected = report["rejected"]
    for entry in rejected[:_SHOWN]:
        print(f"rejected: {entry['name']}: {entry['reason']}", file=sys.stderr)
    if rejected:
        print(f"rejected {len(rejected)} rows in all; every reason is in {folder / REPORT}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.build_shards", description="Builds TFRecord shards from a data set.")
    add_arguments(parser)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that decode and check images (default: 1)")
    parser.add_argument("--validate-only", action="store_true", help="write no shards, only the report")
    parser.add_argument("--report", type=Path, metavar="DIR", help="with --validate-only: the folder for report.json and report.html")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    command = shlex.join(["python", "-m", "data_pipeline.build_shards", *given])
    if options.validate_only:
        return run_command(lambda: _run_validation(options, command))
    return run_command(lambda: run_build(options, command, workers=options.workers), RESUMES)


def _run_validation(options: argparse.Namespace, command: str) -> None:
    if options.report is None:
        raise UserError("--report is missing: the folder to write the report to")
    report = validate_only(
        options.source,
        options.input,
        options.report,
        split=options.split,
        workers=options.workers,
        command=command,
        strict=options.strict,
        allow_shared_images=options.allow_shared_images,
    )
    for name, split in report["splits"].items():
        print(f"{name}: {split['records']} of {split['annotations']} rows can be used, {split['masks']} masks, {split['images']} images")
    _print_rejections(options.report)


if __name__ == "__main__":
    sys.exit(main())
