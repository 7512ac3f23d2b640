"""The validation pass: every annotation is checked against its image before anything is written.

The reader has checked what the annotation files tell. Here each image is opened once and hashed, the masks are drawn at its size, ids
are compared within each annotation file, and images across splits: a training row whose image is also in another split would make the
other split's figures worth nothing. What is wrong becomes a `Rejection` with its reason.

Kept per row are the annotation as its reader made it and a few numbers (`RowCheck`), never pixels: `docs/shards.md` says how much that
is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data_pipeline.annotation import Annotation, Rejection
from data_pipeline.checksums import Checksums, check_png
from data_pipeline.progress import Progress
from data_pipeline.review_decisions import FILE_NAME as REVIEW
from data_pipeline.review_decisions import apply_decisions, load_decisions
from data_pipeline.shard_folder import encode_mask_counts
from data_pipeline.sources.source import Source
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.image_reading import decode_image
from segearth_r2_jax.raster.rle import area

TRAIN = "train"
# Rows per task: enough to make a message between processes worth its while, few enough that no process is left with most of the work.
_ROWS_PER_TASK = 32


class RowCheck(NamedTuple):
    """What the check of one row found. `reason` says why the row cannot be used; the other fields then mean nothing."""

    reason: str | None
    image_sha256: str = ""
    height: int = 0
    width: int = 0
    # Pixels of each target; None where the targets are withheld.
    areas: tuple[int, ...] | None = None
    # Of everything that the record will hold.
    digest: str = ""


class CheckedRow(NamedTuple):
    """A row that can be used, its number among the annotations of its split, and what was found."""

    number: int
    annotation: Annotation
    check: RowCheck


@dataclasses.dataclass(frozen=True)
class CheckTask:
    """Rows to check, those on one image next to each other. `places` are their splits and numbers: what tells them apart."""

    places: tuple[tuple[str, int], ...]
    rows: tuple[Annotation, ...]


class Mapper(Protocol):
    """Runs a function over tasks, in whatever processes: the results in the order of the tasks, each made of JSON values."""

    def __call__(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]: ...


class Rejected(NamedTuple):
    """A row that cannot be used, and its number among the annotations of its split."""

    split: str
    number: int
    rejection: Rejection


@dataclasses.dataclass(frozen=True)
class Validated:
    """What the pass has found: by split the rows that can be used, every rejection in order, and remarks that reject nothing."""

    rows: Mapping[str, list[CheckedRow]]
    rejected: list[Rejected]
    notes: list[str]

    def rejected_in(self, split: str) -> int:
        """How many rows of a split were rejected."""
        return sum(entry.split == split for entry in self.rejected)


def validate(
    source: Source,
    folder: Path,
    splits: Sequence[str],
    mapper: Mapper,
    *,
    strict: bool = False,
    allow_shared_images: bool = False,
    known: Callable[[str, int, Annotation], RowCheck | None] | None = None,
) -> Validated:
    """Checks every annotation of `splits`.

    Args:
      mapper: runs `check_rows` over tasks.
      strict: raise UserError for the first row that is wrong, instead of going on.
      allow_shared_images: only remark on training rows whose image is in another split, too.
      known: `known(split, number, row)` is what an earlier pass found, if that still holds.
    Raises UserError naming the file if a whole annotation file, or the data set's `review.json` or `SHA256SUMS`, is damaged.
    """
    rejected: list[Rejected] = []

    def reject(split: str, number: int, rejection: Rejection) -> None:
        if strict:
            raise UserError(str(rejection))
        rejected.append(Rejected(split, number, rejection))

    sums = Checksums(folder)
    rows: dict[str, list[tuple[int, Annotation]]] = {split: [] for split in splits}
    checks: dict[tuple[str, int], RowCheck] = {}
    for split in splits:
        for number, row in enumerate(read_rows(source, folder, split)):
            if isinstance(row, Rejection):
                reject(split, number, row)
                continue
            if (reason := sums.wrong(folder / row.source)) is not None:
                raise UserError(f"{folder / row.source}: {reason}")
            rows[split].append((number, row))
            if known is not None and (check := known(split, number, row)) is not None:
                checks[split, number] = check
    tasks = list(_tasks(rows, checks))
    with Progress("checked", sum(len(task.rows) for task in tasks)) as progress:
        for task, results in zip(tasks, mapper(check_rows, tasks), strict=True):
            for (split, number), row, result in zip(task.places, task.rows, results, strict=True):
                check = RowCheck(*result)
                checks[split, number] = check._replace(areas=None if check.areas is None else tuple(check.areas))
                if check.reason is not None and strict:
                    reject(split, number, Rejection(row.name, check.reason))
            progress.add(len(task.rows))

    notes: list[str] = []
    usable: dict[str, list[CheckedRow]] = {split: [] for split in splits}
    elsewhere = _first_outside_training(rows, checks)
    for split in splits:
        shared = 0
        for number, row in rows[split]:
            check = checks[split, number]
            reason = check.reason or _against_sums(row, check, sums)
            if reason is not None:
                reject(split, number, Rejection(row.name, reason))
                continue
            if split == TRAIN and check.image_sha256 in elsewhere:
                shared += 1
                if not allow_shared_images:
                    reason = f"its image {row.image_name} is also that of {elsewhere[check.image_sha256]}"
                    reject(split, number, Rejection(row.name, reason))
                    continue
            usable[split].append(CheckedRow(number, row, check))
        if shared and allow_shared_images:
            notes.append(f"{split}: {shared} rows have images that are in another split, too; they are kept, as asked for")
    rejected.sort(key=lambda entry: (splits.index(entry.split), entry.number))
    return Validated(usable, rejected, notes)


def read_rows(source: Source, folder: Path, split: str) -> Iterator[Annotation | Rejection]:
    """The annotations of a split as its reader gives them, rows that a review or another row of their name excludes being rejected."""
    review = folder / REVIEW
    decisions = load_decisions(review) if review.exists() else {}
    seen: set[tuple[str, str]] = set()
    for row in apply_decisions(source.read(folder, split), decisions):
        if isinstance(row, Annotation):
            key = (row.source, row.record_id)
            if key in seen:
                row = Rejection(row.name, "an earlier row of the file has the same id")
            seen.add(key)
        yield row


def check_rows(task: CheckTask) -> list[RowCheck]:
    """The checks of a task's rows. An image that several neighbouring rows lie on is opened once."""
    results, opened, image = [], None, RowCheck("")
    for row in task.rows:
        if row.image_path != opened:
            opened, image = row.image_path, _check_image(row)
        results.append(image if image.reason is not None else _check_targets(row, image))
    return results


def record_digest(example: bytes, image_sha256: str) -> str:
    """Tells two records apart; `example` is the record's serialized form without the image's bytes."""
    return hashlib.sha256(example + image_sha256.encode()).hexdigest()


def _check_image(row: Annotation) -> RowCheck:
    name = f"image {row.image_path}"
    try:
        content = row.read_image_bytes()
        check_png(content, name)
        # Decoders remark on oddities, without the file's name, of pictures that they read all the same.
        with warnings.catch_warnings(action="ignore"):
            height, width = decode_image(content, name).shape[:2]
    except UserError as error:
        return RowCheck(Rejection.from_error(row.name, error).reason)
    return RowCheck(None, hashlib.sha256(content).hexdigest(), int(height), int(width))


def _check_targets(row: Annotation, image: RowCheck) -> RowCheck:
    try:
        encode_mask_counts([None if row.targets is None else len(row.targets)])
        record = row.record(b"", image.height, image.width)
    except ValueError as error:
        return RowCheck(str(error))
    except UserError as error:
        return RowCheck(Rejection.from_error(row.name, error).reason)
    areas = None if record.masks is None else tuple(area(mask) for mask in record.masks)
    return image._replace(areas=areas, digest=record_digest(record.to_example(), image.image_sha256))


def _against_sums(row: Annotation, check: RowCheck, sums: Checksums) -> str | None:
    if (reason := sums.wrong(row.image_path, check.image_sha256)) is not None:
        return f"image {row.image_path}: {reason}"
    for path in (target.path for target in row.targets or () if hasattr(target, "path")):
        if (reason := sums.wrong(path)) is not None:
            return f"{path}: {reason}"
    return None


def _tasks(rows: Mapping[str, Sequence[tuple[int, Annotation]]], known: Mapping[tuple[str, int], RowCheck]) -> Iterator[CheckTask]:
    """The rows that are not `known` yet, all rows on one image in one task, images in the order in which they are met."""
    by_image: dict[Path, list[tuple[str, int, Annotation]]] = {}
    for split, members in rows.items():
        for number, row in members:
            if (split, number) not in known:
                by_image.setdefault(row.image_path, []).append((split, number, row))
    waiting: list[tuple[str, int, Annotation]] = []
    for group in by_image.values():
        waiting += group
        if len(waiting) >= _ROWS_PER_TASK:
            yield _task(waiting)
            waiting = []
    if waiting:
        yield _task(waiting)


def _task(rows: Sequence[tuple[str, int, Annotation]]) -> CheckTask:
    return CheckTask(tuple((split, number) for split, number, _ in rows), tuple(row for _, _, row in rows))


def _first_outside_training(
    rows: Mapping[str, Sequence[tuple[int, Annotation]]], checks: Mapping[tuple[str, int], RowCheck]
) -> dict[str, str]:
    """SHA-256 of every image outside of the training split -> the first row on it, in words."""
    found: dict[str, str] = {}
    for split in rows:
        if split != TRAIN:
            for number, row in rows[split]:
                check = checks[split, number]
                if check.reason is None:
                    found.setdefault(check.image_sha256, f"{row.name} in the split {split!r}")
    return found
