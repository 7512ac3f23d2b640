"""Composes a data set in the layout of LaSeRS from pictures and their labels: the same files for the same input, settings and seed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.atomic import whole_folder
from data_pipeline.compose.coco import CocoLabels
from data_pipeline.compose.labels import RasterLabels
from data_pipeline.compose.pairing import split_by_image
from data_pipeline.grammar.records import CELLS, EMPTY_FILE, TEST_FILES, Shares, make_empty_instruction, make_instructions
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.image_reading import decode_image

SUMMARY = "compose.json"
SPLITS = ("train", "test")
# Where no terminal shows a bar, a line is printed this often.
_LOG_SECONDS = 20
# Evenly over the cells where a picture allows it; the wordings that are held out are the test set's alone.
SHARES = {
    "train": Shares(instance=0.35, part=0.2, multiple=0.25, implicit=0.3, long=0.35, empty=0.04, held_out=0.0),
    "test": Shares(instance=0.35, part=0.2, multiple=0.3, implicit=0.4, long=0.4, empty=0.0, held_out=0.3),
}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the rows besides the files: how many a picture gets, the share of pictures in the test set, the seed."""

    records: int = 8
    test_share: float = 0.1
    seed: int = 0

    def __post_init__(self):
        if self.records < 1:
            raise UserError(f"--records {self.records}: expected one or more")
        if not 0 <= self.test_share <= 1:
            raise UserError(f"--test-share {self.test_share}: expected a share from 0 to 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: expected zero or more")


@dataclasses.dataclass(frozen=True)
class Composed:
    """The rows of one picture; `complete` is False where pixels may show anything, so that nothing was said of the whole picture."""

    rows: tuple[tuple[tuple[str, ...], Row], ...]  # (test files of the row, row)
    complete: bool


@dataclasses.dataclass(frozen=True)
class _Job:
    name: str
    path: Path
    labels: RasterLabels | CocoLabels
    split: str
    index: int  # within its split
    settings: Settings


def compose(
    images: Mapping[str, Path],
    labels: RasterLabels | CocoLabels,
    output: str | os.PathLike[str],
    settings: Settings,
    notes: Mapping[str, Any],
    workers: int = 0,
    rewrite: Callable[[list[Row]], Mapping[str, Any]] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes the data set to the folder `output`, which appears when it is complete, and returns what `compose.json` holds.

    images: the pictures by name; each is copied as it is. notes: goes into `compose.json` (sources, licence). workers: processes (0: this
    one); the files are the same for any number. rewrite: may change the words of rows in place, and returns what it did.
    Raises UserError if `output` is not new or empty, or if a picture or a label file is wrong.
    """
    output = Path(output).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: is not empty; expected a new or empty folder")
    digests = {name: hashlib.sha256(_read(path)).hexdigest() for name, path in images.items()}
    sides = split_by_image(digests, settings.test_share, settings.seed)
    counters = {split: iter(range(len(images))) for split in SPLITS}
    jobs = [_Job(name, path, labels.of_picture(name), sides[name], next(counters[sides[name]]), settings) for name, path in images.items()]
    made = dict(zip(images, _progressing(_mapped(workers, jobs), len(jobs), progress), strict=True))
    rows = [row for name in images for _, row in made[name].rows]
    if not rows:
        raise UserError(f"--output {output}: not one row could be composed; no picture shows a category that is large and clear enough")
    rewritten = None if rewrite is None else rewrite(rows)
    summary = _summary(settings, notes, made, sides, digests) | ({} if rewritten is None else {"rewriting": dict(rewritten)})
    with whole_folder(output) as partial:
        _write(partial, images, made, sides, digests)
        (partial / SUMMARY).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def compose_picture(job: _Job) -> Composed:
    """The rows of one picture."""
    image = decode_image(_read(job.path), str(job.path))
    labels = job.labels.read(job.name, image)
    facts = labels.facts(job.labels.entries, job.labels.parts)
    # A picture's rows do not depend on which others there are.
    rng = np.random.default_rng(list(hashlib.sha256(f"{job.settings.seed}:{job.name}".encode()).digest()))
    first_cell = CELLS[job.index % len(CELLS)] if job.split == "test" else None
    instructions = make_instructions(facts, job.settings.records, SHARES[job.split], rng, first_cell, distinct=True)
    if job.split == "test" and (empty := make_empty_instruction(facts, SHARES["test"], rng)):
        instructions.append(empty)
    stem = job.name.rsplit(".", 1)[0]
    rows = tuple((made.files, made.record(f"{stem}_{number}", job.name)) for number, made in enumerate(instructions))
    return Composed(rows, facts.complete)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    # Not fork: the caller may run threads.
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _mapped(workers: int, jobs: list[_Job]) -> Iterator[Composed]:
    """The results of all jobs in their order."""
    if workers == 0:
        yield from map(compose_picture, jobs)
        return
    with _pool(workers) as pool:
        yield from pool.map(compose_picture, jobs, chunksize=max(1, min(8, len(jobs) // (4 * workers))))


def _progressing(results: Iterator[Composed], total: int, progress: bool) -> Iterator[Composed]:
    terminal, told = sys.stderr.isatty(), time.monotonic()
    with tqdm(total=total, desc="composing", unit=" pictures", disable=not (progress and terminal)) as bar:
        for done, result in enumerate(results, 1):
            yield result
            bar.update()
            if progress and not terminal and time.monotonic() - told > _LOG_SECONDS:
                told = time.monotonic()
                print(f"composing: {done} of {total} pictures", file=sys.stderr, flush=True)


def _write(
    folder: Path, images: Mapping[str, Path], made: Mapping[str, Composed], sides: Mapping[str, str], digests: Mapping[str, str]
) -> None:
    files: dict[str, dict[str, list[Row]]] = {"train": {"train_data": []}, "test": {name: [] for name in (*TEST_FILES, EMPTY_FILE)}}
    for name, composed in made.items():
        split = sides[name]
        if composed.rows:
            target = folder / split / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            data = _read(images[name])
            if hashlib.sha256(data).hexdigest() != digests[name]:
                raise UserError(f"{images[name]}: was changed while it was read")
            target.write_bytes(data)
        for tests, row in composed.rows:
            for file in ("train_data",) if split == "train" else tests:
                files[split][file].append(row)
    for split in SPLITS:
        if not any(files[split].values()):
            continue
        (folder / split / "annotations").mkdir()
        for file, rows in files[split].items():
            path = folder / split / "annotations" / f"{file}.json"
            path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _summary(
    settings: Settings, notes: Mapping[str, Any], made: Mapping[str, Composed], sides: Mapping[str, str], digests: Mapping[str, str]
) -> dict[str, Any]:
    counts: dict[str, Counter[str]] = {}
    for name, composed in made.items():
        for tests, row in composed.rows:
            cell = " ".join(row["tags"][key] for key in ("granularity", "multiplicity", "reasoning", "language"))
            counts.setdefault(sides[name], Counter())["empty" if tests == (EMPTY_FILE,) else cell] += 1
    return {
        "settings": dataclasses.asdict(settings),
        **notes,
        "pictures": {split: sum(side == split for side in sides.values()) for split in SPLITS},
        "rows": {split: dict(sorted(counts.get(split, Counter()).items())) for split in SPLITS},
        # Nothing was said of the whole of these pictures, because some of their pixels are not labelled.
        "partly_labelled": [name for name, composed in made.items() if not composed.complete],
        # These are not copied: nothing in them could be asked for.
        "without_rows": [name for name, composed in made.items() if not composed.rows],
        "images": dict(digests),
    }
