"""LaSeRS as published: `train/images`, `train/annotations/train_ann.json`, `test/images`, `test/annotations/*.json`.

Mirrors `LaSeRSDataset` of the official SegEarth-R2. A row is `{image_name, description, answer, id, mask}`: `description` is the
instruction, `answer` holds one `[SEG]` per mask, `mask` is a list of COCO compressed RLEs at the image's own size. Each file under
`test/annotations` is one benchmark; the files of a contest withhold `mask`. A row of the sets that this project makes has `tags`, too.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.annotation import (
    Annotation,
    Rejection,
    accepted,
    check_count,
    checked,
    file_inside,
    read_json,
    row_id,
    tags_field,
    text_field,
)
from data_pipeline.schema import Tags
from data_pipeline.sources.source import Source
from data_pipeline.targets import RunLengths
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.image_reading import decode_image
from segearth_r2_jax.raster.rle import decode

SPLITS = ("train", "test")
# Upstream's documentation and its code disagree on the name.
TRAIN_FILES = ("train_ann.json", "train_data.json")

# What a row of each published test file is known to be ("sematic" is how the published name spells it).
BENCHMARK_TAGS = {
    "test_sematic_level": Tags(granularity="semantic"),
    "test_instance_level": Tags(granularity="instance"),
    "test_part_level": Tags(granularity="part"),
    "test_single_cate": Tags(multiplicity="single"),
    "test_multi_cate": Tags(multiplicity="multi"),
    "test_explicit": Tags(reasoning="explicit"),
    "test_implicit": Tags(reasoning="implicit"),
    "test_short_query": Tags(language="short"),
    "test_long_query": Tags(language="long"),
}


@dataclasses.dataclass(frozen=True)
class EvaluationRecord:
    """A test record: what evaluation asks, and where it reads what it compares with."""

    record_id: str
    benchmark: str
    image_name: str
    instruction: str
    answer: str | None
    row: Annotation

    def load(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The image uint8 [h, w, 3] and the masks uint8 [k, h, w], None where they are withheld; UserError if one cannot be read."""
        record = self.row.load()
        image = decode_image(record.image_bytes, str(self.row.image_path))
        if record.masks is None:
            return image, None
        masks = np.zeros((len(record.masks), record.height, record.width), np.uint8)
        for number, mask in enumerate(record.masks):
            masks[number] = decode(mask, self.row.name)
        return image, masks


def annotation_files(folder: Path, split: str) -> list[Path]:
    """The annotation files of a split; UserError naming the folder if there is none or the choice is not clear."""
    annotations = folder / split / "annotations"
    if split == "test":
        files = sorted(annotations.glob("*.json"))
        if not files:
            raise UserError(f"{annotations}: holds no annotation file; expected the LaSeRS layout (test/annotations/*.json, test/images)")
        return files
    files = [annotations / name for name in TRAIN_FILES if (annotations / name).is_file()]
    if len(files) != 1:
        found = "both" if files else "neither"
        raise UserError(f"{annotations}: holds {found} of {' and '.join(TRAIN_FILES)}; expected one of them")
    return files


def benchmarks(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the test files, without `.json`."""
    return [file.stem for file in annotation_files(Path(folder), "test")]


def present(folder: Path) -> tuple[str, ...]:
    """The splits that `folder` holds; UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a data set in the LaSeRS layout")
    found = tuple(split for split in SPLITS if (folder / split / "annotations").is_dir())
    if not found:
        raise UserError(f"{folder}: holds neither train/annotations nor test/annotations; expected the LaSeRS layout")
    return found


def read(folder: Path, split: str) -> Iterator[Annotation | Rejection]:
    """Every annotation of a split, in the order of the files, or the reason why it cannot be used.

    A benchmark may be empty (a small set has no rows of some kind), a split may not. UserError where a whole file is wrong.
    """
    present(folder)
    empty = True
    for file in annotation_files(folder, split):
        for annotation in _read_file(folder, split, file):
            empty = False
            yield annotation
    if empty:
        raise UserError(f"{folder / split / 'annotations'}: the annotations hold no row")


def evaluation_records(folder: str | os.PathLike[str], benchmark: str) -> list[EvaluationRecord]:
    """The test records of one benchmark (a name of `benchmarks`); all rows are checked, images and masks not read yet.

    Raises UserError if there is no such benchmark or a row is wrong.
    """
    folder = Path(folder)
    names = benchmarks(folder)
    if benchmark not in names:
        raise UserError(f"{folder}: no benchmark is called {benchmark!r}; there are {', '.join(names)}")
    rows = accepted(_read_file(folder, "test", folder / "test" / "annotations" / f"{benchmark}.json"))
    return [EvaluationRecord(row.record_id, benchmark, row.image_name, row.instruction, row.answer, row) for row in rows]


def _read_file(folder: Path, split: str, file: Path) -> Iterator[Annotation | Rejection]:
    rows = read_json(file, list, "a JSON list of annotations")
    # Rows without an id are named by their place in the file.
    rows = [{"id": number, **row} if isinstance(row, Mapping) else row for number, row in enumerate(rows)]
    return checked(rows, file, functools.partial(_check_row, folder=folder, split=split, file=file))


def _check_row(row: Mapping[str, Any], name: str, *, folder: Path, split: str, file: Path) -> Annotation:
    instruction = text_field(row, "description", name, empty=False)
    masks = row.get("mask")
    if masks is None and split == "train":
        raise UserError(f"{name}: has no mask; training needs one per [SEG] of the answer")
    answer = text_field(row, "answer", name) if masks is not None or "answer" in row else None
    targets = None
    if masks is not None:
        if not isinstance(masks, list):
            raise UserError(f"{name}: mask must be a list of run-length encoded masks")
        targets = tuple(RunLengths(mask) for mask in masks)
        check_count(answer, targets, name)
    image_name = text_field(row, "image_name", name)
    return Annotation(
        name=name,
        record_id=row_id(row, 0, name),
        source=file.relative_to(folder).as_posix(),
        image_name=image_name,
        image_path=file_inside(folder / split / "images", image_name, name),
        instruction=instruction,
        answer=answer,
        targets=targets,
        tags=tags_field(row, name, BENCHMARK_TAGS.get(file.stem, Tags()) if split == "test" else Tags()),
    )


SOURCE = Source(
    name="lasers",
    title="LaSeRS",
    home="https://huggingface.co/datasets/earth-insights/LaSeRS",
    licence="Apache-2.0",
    splits=SPLITS,
    present=present,
    read=read,
)
