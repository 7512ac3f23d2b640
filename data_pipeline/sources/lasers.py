"""LaSeRS as published: `train/images`, `train/annotations/train_ann.json`, `test/images`, `test/annotations/*.json`.

Mirrors `LaSeRSDataset` of the official SegEarth-R2. A row is `{image_name, description, answer, id, mask}`: `description` is the
instruction, `answer` holds one `[SEG]` per mask, `mask` is a list of COCO compressed RLEs at the image's own size. Each file under
`test/annotations` is one benchmark; the files of a contest withhold `mask`.

Every row is checked before it is used, and what is wrong is said with the file and the row's id.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.masks import check_masks
from data_pipeline.schema import Record
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.conversation import count_masks
from segearth_r2_jax.inputs.image_reading import decode_image
from segearth_r2_jax.raster.rle import decode

SPLITS = ("train", "test")
# Upstream's documentation and its code disagree on the name.
TRAIN_FILES = ("train_ann.json", "train_data.json")


@dataclasses.dataclass(frozen=True)
class Row:
    """One annotation, checked as far as it can be without opening the image."""

    name: str  # "FILE: row ID", the beginning of every message about it
    record_id: str
    source: str  # annotation file relative to the data set's folder
    image_name: str
    image_path: Path
    instruction: str
    answer: str | None
    mask: Any  # None where withheld; otherwise a list of RLEs, checked by `load`

    def load(self) -> Record:
        """Reads the image and checks the masks against it; UserError naming the row or the image if something is wrong."""
        try:
            image_bytes = self.image_path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.name}: image {self.image_path} cannot be read ({error.strerror})") from None
        height, width = decode_image(image_bytes, str(self.image_path)).shape[:2]
        return Record(
            record_id=self.record_id,
            source=self.source,
            image_name=self.image_name,
            image_bytes=image_bytes,
            height=height,
            width=width,
            instruction=self.instruction,
            answer=self.answer,
            masks=None if self.mask is None else check_masks(self.mask, height, width, self.name),
        )


@dataclasses.dataclass(frozen=True)
class EvaluationRecord:
    """What evaluation asks and compares with: `image` uint8 [h, w, 3], `masks` uint8 [k, h, w] or None where withheld."""

    record_id: str
    benchmark: str
    image_name: str
    image: np.ndarray
    instruction: str
    answer: str | None
    masks: np.ndarray | None


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


def read_rows(folder: str | os.PathLike[str], split: str, file: Path | None = None) -> list[Row]:
    """The checked rows of a split, in the order of the files, or of one annotation file of it.

    A benchmark may be empty (a small set has no rows of some kind), a split may not. Raises UserError naming the file and the row.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a data set in the LaSeRS layout")
    images = folder / split / "images"
    files = annotation_files(folder, split) if file is None else [file]
    rows = []
    for annotation in files:
        for number, content in enumerate(_read_list(annotation)):
            rows.append(_check_row(content, number, annotation, folder, images, masks_required=split == "train"))
    if not rows and file is None:
        raise UserError(f"{folder / split / 'annotations'}: the annotations hold no row")
    return rows


def evaluation_records(folder: str | os.PathLike[str], benchmark: str) -> Iterator[EvaluationRecord]:
    """The test records of one benchmark (a name of `benchmarks`), image and masks decoded, one at a time.

    All rows are checked before the first is given. Raises UserError if there is no such benchmark or a row is wrong.
    """
    folder = Path(folder)
    names = benchmarks(folder)
    if benchmark not in names:
        raise UserError(f"{folder}: no benchmark is called {benchmark!r}; there are {', '.join(names)}")
    rows = read_rows(folder, "test", folder / "test" / "annotations" / f"{benchmark}.json")
    return (_decode(row, benchmark) for row in rows)


def _decode(row: Row, benchmark: str) -> EvaluationRecord:
    record = row.load()
    image = decode_image(record.image_bytes, str(row.image_path))
    masks = None
    if record.masks is not None:
        masks = np.zeros((len(record.masks), record.height, record.width), np.uint8)
        for number, mask in enumerate(record.masks):
            masks[number] = decode(mask, row.name)
    return EvaluationRecord(record.record_id, benchmark, record.image_name, image, record.instruction, record.answer, masks)


def _read_list(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a JSON file ({error})") from None
    if not isinstance(content, list):
        raise UserError(f"{file}: expected a JSON list of annotations")
    return content


def _check_row(content: Any, number: int, file: Path, folder: Path, images: Path, *, masks_required: bool) -> Row:
    name = f"{file}: entry {number}"
    if not isinstance(content, dict):
        raise UserError(f"{name}: expected an object with image_name, description, answer, id and mask")
    record_id = content.get("id", number)
    if isinstance(record_id, bool) or not isinstance(record_id, str | int):
        raise UserError(f"{name}: id must be a text or a whole number")
    name = f"{file}: row {str(record_id)!r}"
    instruction = _text(content, "description", name)
    if not instruction.strip():
        raise UserError(f"{name}: description is empty")
    mask = content.get("mask")
    if mask is None and masks_required:
        raise UserError(f"{name}: has no mask; training needs one per [SEG] of the answer")
    answer = _text(content, "answer", name) if mask is not None or "answer" in content else None
    if mask is not None:
        if not isinstance(mask, list):
            raise UserError(f"{name}: mask must be a list of run-length encoded masks")
        if len(mask) != count_masks(answer):
            raise UserError(f"{name}: the answer has {count_masks(answer)} [SEG], but there are {len(mask)} masks")
    image_name = _text(content, "image_name", name)
    return Row(
        name=name,
        record_id=str(record_id),
        source=file.relative_to(folder).as_posix(),
        image_name=image_name,
        image_path=_image_path(images, image_name, name),
        instruction=instruction,
        answer=answer,
        mask=mask,
    )


def _text(content: dict[str, Any], key: str, name: str) -> str:
    value = content.get(key)
    if not isinstance(value, str):
        raise UserError(f"{name}: {key} must be a text, it is {'missing' if value is None else type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: {key} holds characters that are no text (lone surrogates)") from None
    return value


def _image_path(images: Path, image_name: str, name: str) -> Path:
    """The image file, which has to lie in `images`: a data set from elsewhere must not make this machine read other files."""
    path = images / image_name
    try:
        inside = path.resolve().is_relative_to(images.resolve())
    except (OSError, ValueError):  # e.g. a zero byte, a loop of links
        inside = False
    if not inside:
        raise UserError(f"{name}: image_name {image_name!r} leaves the folder {images}")
    if not path.is_file():
        raise UserError(f"{name}: image {path} does not exist")
    return path
