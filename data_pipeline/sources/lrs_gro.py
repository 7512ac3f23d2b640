"""LRS-GRO, the questions about very large images that ZoomEarth is trained and tested on: `LRS-GRO.jsonl` or `rl.jsonl`, and the images.

A row is `{question_id, image_name, category, type, question, ground_truth, bbox, split}`. `split` is sft, RL or test, in any case.
`bbox` is empty, or in pixels of the image shrunk so that its longer side is 1024. Whether a question needs a closer look (`cut` in some
rows) is whether it has a box. There are no masks: the answer is the ground truth, without any [SEG].

Three traps of the published files, and what is done about each:

* `rl.jsonl` calls all its 6,622 rows RL, but only the first 2,500 are; the others belong to the test split. It is read up to there.
* A row of sft or rl whose image occurs in the test split is rejected.
* `question_id` names different questions in different files. A row that repeats image, question and box of an earlier one is rejected.

The 17 published kinds of question keep their names (tag `category`: "object/Object color / pattern"); the few rows of another kind are
"global/other" and the like.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.annotation import (
    Annotation,
    Box,
    Rejection,
    attempt,
    check_count,
    file_inside,
    read_json_lines,
    shown,
    text_field,
)
from data_pipeline.schema import Tags
from data_pipeline.sources.source import Source
from segearth_r2_jax.errors import UserError

SPLITS = ("sft", "rl", "test")
WHOLE_FILE = "LRS-GRO.jsonl"
RL_FILE = "rl.jsonl"
RL_ROWS = 2500
LONG_SIDE = 1024
CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "global": ("Scene Type", "Urban-Rural", "Counting", "Season"),
    "region": ("Counting", "Object category", "Object existence", "Other visual features", "Region function", "Region status"),
    "object": (
        "Object category refinement",
        "Object color / pattern",
        "Object function / usage",
        "Object material / surface",
        "Object relative position / context",
        "Object shape / structure",
        "Object state / motion / activity",
    ),
}


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of a file by split: (name, row or why it is none). `test_images` are the names of the images of the test split."""

    file: Path
    by_split: dict[str, list[tuple[str, Mapping[str, Any] | Rejection]]]
    test_images: frozenset[str]


def present(folder: Path) -> tuple[str, ...]:
    """The splits that the folder's file holds."""
    rows = _load(folder)
    return tuple(split for split in SPLITS if rows.by_split[split])


def read(folder: Path, split: str) -> Iterator[Annotation | Rejection]:
    """Every question of a split, in the file's order. Lines of no known split are rejected with the first split that is there."""
    rows = _load(folder)
    images = folder / "images" if (folder / "images").is_dir() else folder
    seen: dict[tuple[Any, ...], str] = {}
    if not rows.by_split[split]:
        raise UserError(f"{rows.file}: holds no row of the split {split!r}")
    for name, row in rows.by_split[split]:
        if isinstance(row, Rejection):
            yield row
        else:
            yield attempt(name, functools.partial(_check, row, name, split, rows, images, seen))


def _load(folder: Path) -> _Rows:
    file = next((folder / name for name in (WHOLE_FILE, RL_FILE) if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: holds neither {WHOLE_FILE} nor {RL_FILE}; expected one of them beside the images")
    by_split: dict[str, list[tuple[str, Mapping[str, Any] | Rejection]]] = {split: [] for split in SPLITS}
    wrong, test_images = [], set()
    for number, (name, row) in enumerate(read_json_lines(file)):
        if isinstance(row, Rejection):
            wrong.append((name, row))
            continue
        split = row["split"].lower() if isinstance(row.get("split"), str) else None
        if split not in SPLITS:
            wrong.append((name, Rejection(name, f"split must be one of {', '.join(SPLITS)}, it is {shown(row.get('split'))}")))
            continue
        beyond = file.name == RL_FILE and number >= RL_ROWS
        if beyond or split == "test":
            test_images.add(row["image_name"] if isinstance(row.get("image_name"), str) else None)
        if not beyond:
            by_split[split].append((name, row))
    first = next((split for split in SPLITS if by_split[split]), None)
    if first is None:
        raise UserError(f"{file}: holds no row of a known split ({', '.join(SPLITS)})")
    by_split[first] = [*wrong, *by_split[first]]
    return _Rows(file, by_split, frozenset(test_images))


def _check(row: Mapping[str, Any], name: str, split: str, rows: _Rows, images: Path, seen: dict[tuple[Any, ...], str]) -> Annotation:
    question_id = text_field(row, "question_id", name, empty=False)
    image_name = text_field(row, "image_name", name, empty=False)
    if split != "test" and image_name in rows.test_images:
        raise UserError(f"{name}: image {image_name!r} belongs to the test split; it must not be trained on")
    question = text_field(row, "question", name, empty=False).strip()
    box = _box(row, name)
    key = (image_name, question, box)
    if seen.setdefault(key, name) != name:
        raise UserError(f"{name}: repeats image, question and box of {seen[key].removeprefix(f'{rows.file}: ')}")
    level = text_field(row, "type", name).lower()
    if level not in CATEGORIES:
        raise UserError(f"{name}: type must be one of {', '.join(CATEGORIES)}, it is {level!r:.60}")
    category = text_field(row, "category", name).strip()
    answer = text_field(row, "ground_truth", name, empty=False).strip()
    check_count(answer, (), name)
    return Annotation(
        name=name,
        record_id=f"{rows.file.stem}/{question_id}",
        source=rows.file.name,
        image_name=image_name,
        image_path=file_inside(images, image_name, name),
        instruction=question,
        answer=answer,
        targets=(),
        tags=Tags(category=f"{level}/{category if category in CATEGORIES[level] else 'other'}"),
        box=box,
    )


def _box(row: Mapping[str, Any], name: str) -> Box | None:
    corners = row.get("bbox")
    if corners == []:
        return None
    if not (isinstance(corners, list) and len(corners) == 4 and all(type(corner) in (int, float) for corner in corners)):
        raise UserError(f"{name}: bbox must be [] or four numbers [x1, y1, x2, y2], it is {shown(corners)}")
    x1, y1, x2, y2 = corners
    if not (0 <= x1 < x2 <= LONG_SIDE and 0 <= y1 < y2 <= LONG_SIDE):
        raise UserError(f"{name}: bbox {corners!s:.80} is no box within 0..{LONG_SIDE}")
    return Box((x1, y1, x2, y2), LONG_SIDE)


SOURCE = Source(
    name="lrs_gro",
    title="LRS-GRO",
    home="https://huggingface.co/datasets/HappyBug/LRS-GRO",
    licence="Apache-2.0",
    splits=SPLITS,
    present=present,
    read=read,
)
