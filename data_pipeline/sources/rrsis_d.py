"""RRSIS-D as published: `rrsisd/refs(unc).p`, `rrsisd/instances.json`, `images/rrsisd/JPEGImages`.

The form of RefCOCO, as `refer/refer.py` of the official RMSIN reads it. `refs(unc).p` is a pickle, a list of
`{ref_id, ann_id, image_id, category_id, split, sentences: [{raw, sent, ...}]}`; it is read as plain values only. `instances.json` is a
COCO file whose `segmentation` is a list of run-length encodings (polygons are read, too). The XML files of `images/rrsisd/ann_split` are
not read, as in the official loader: they hold further expressions, but no masks for them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.annotation import Annotation, Rejection, attempt, file_inside, read_json, shown, text_field
from data_pipeline.schema import Tags
from data_pipeline.sources.answers import masks_answer
from data_pipeline.sources.plain_pickle import load_plain_pickle
from data_pipeline.sources.source import Source
from data_pipeline.targets import Polygons, RunLengths, Target, Union
from segearth_r2_jax.errors import UserError

SPLITS = ("train", "val", "test")
REFERENCES = "rrsisd/refs(unc).p"
INSTANCES = "rrsisd/instances.json"
IMAGES = "images/rrsisd/JPEGImages"


def present(folder: Path) -> tuple[str, ...]:
    """The three splits; UserError if a file of the layout is missing."""
    for part in (REFERENCES, INSTANCES, IMAGES):
        if not (folder / part).exists():
            raise UserError(f"{folder / part}: does not exist; expected the RRSIS-D layout ({REFERENCES}, {INSTANCES}, {IMAGES})")
    return SPLITS


def read(folder: Path, split: str) -> Iterator[Annotation | Rejection]:
    """One annotation per sentence of every reference of a split, in the file's order; mostly a reference has one sentence.

    References of no known split are rejected with the first split. UserError where a whole file is wrong.
    """
    present(folder)
    file = folder / REFERENCES
    references = load_plain_pickle(file)
    if not isinstance(references, list):
        raise UserError(f"{file}: expected a list of references, it holds {type(references).__name__}")
    instances = read_json(folder / INSTANCES, dict, "a COCO file, an object of images, annotations and categories")
    by_id = {what: _by_id(instances, what, folder / INSTANCES) for what in ("images", "annotations", "categories")}
    empty = True
    for number, reference in enumerate(references):
        given = reference.get("split") if isinstance(reference, Mapping) else None
        if given != split and (split != SPLITS[0] or given in SPLITS):
            continue
        empty = False
        name = f"{file}: entry {number}"
        if not isinstance(reference, Mapping):
            yield Rejection(name, f"expected a dict, it is {type(reference).__name__}")
            continue
        if isinstance(reference.get("ref_id"), int | str):
            name = f"{file}: row '{reference['ref_id']}'"
        if given != split:
            yield Rejection(name, f"split must be one of {', '.join(SPLITS)}, it is {shown(given)}")
            continue
        sentences = reference.get("sentences")
        if not isinstance(sentences, list) or not sentences:
            yield Rejection(name, "sentences must be a list of at least one sentence")
            continue
        for index in range(len(sentences)):
            yield attempt(name, functools.partial(_check, folder, reference, index, by_id, name))
    if empty:
        raise UserError(f"{file}: holds no reference of the split {split!r}")


def _check(folder: Path, reference: Mapping[str, Any], index: int, by_id: dict[str, dict[int, Any]], name: str) -> Annotation:
    reference_id = _whole_number(reference, "ref_id", name)
    sentence = reference["sentences"][index]
    if not isinstance(sentence, Mapping):
        raise UserError(f"{name}: sentence {index} must be a dict, it is {type(sentence).__name__}")
    image = by_id["images"].get(_whole_number(reference, "image_id", name))
    annotation = by_id["annotations"].get(_whole_number(reference, "ann_id", name))
    for found, key in ((image, "image_id"), (annotation, "ann_id")):
        if found is None:
            raise UserError(f"{name}: {INSTANCES} holds no {key} {reference[key]}")
    if "image_id" in annotation and annotation["image_id"] != reference["image_id"]:
        raise UserError(f"{name}: its ann_id lies on image {shown(annotation['image_id'])}, its image_id is {reference['image_id']}")
    category_id = reference.get("category_id")
    category = by_id["categories"].get(category_id) if isinstance(category_id, int) else None
    image_name = text_field(image, "file_name", name, empty=False)
    return Annotation(
        name=name,
        record_id=f"{reference_id}/{index}" if index else str(reference_id),
        source=REFERENCES,
        image_name=image_name,
        image_path=file_inside(folder / IMAGES, image_name, name, "file_name"),
        # `raw` is what the official loader reads; `sent` is the same in lower case.
        instruction=text_field(sentence, "raw" if "raw" in sentence else "sent", name, empty=False).strip(),
        answer=masks_answer(1),
        targets=(_target(annotation.get("segmentation"), name),),
        tags=Tags(
            granularity="instance",
            multiplicity="single",
            reasoning="explicit",
            category=None if category is None else text_field(category, "name", name),
        ),
        also_from=(folder / INSTANCES,),
    )


def _target(segmentation: Any, name: str) -> Target:
    """A COCO `segmentation`: a run-length encoding, or a list of them, or a list of polygons [x1, y1, x2, y2, ...]."""
    parts = [segmentation] if isinstance(segmentation, Mapping) else segmentation
    if not isinstance(parts, list) or not parts:
        raise UserError(f"{name}: segmentation must be a list of run-length encodings or polygons, it is {shown(segmentation)}")
    if all(isinstance(part, Mapping) for part in parts):
        targets = tuple(RunLengths(part) for part in parts)
        return targets[0] if len(targets) == 1 else Union(targets)
    if all(isinstance(part, list) and len(part) % 2 == 0 for part in parts):
        return Polygons(tuple(tuple(zip(part[::2], part[1::2], strict=True)) for part in parts))
    raise UserError(f"{name}: segmentation must be a list of run-length encodings or of polygons [x1, y1, x2, y2, ...]")


def _by_id(instances: Mapping[str, Any], what: str, file: Path) -> dict[int, Any]:
    entries = instances.get(what)
    if not isinstance(entries, list):
        raise UserError(f"{file}: {what} must be a list, it is {'missing' if entries is None else type(entries).__name__}")
    found: dict[int, Any] = {}
    for number, entry in enumerate(entries):
        name = f"{file}: {what} {number}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{name}: expected an object of named fields, it is {type(entry).__name__}")
        if found.setdefault(_whole_number(entry, "id", name), entry) is not entry:
            raise UserError(f"{name}: the id {entry['id']} occurs twice")
    return found


def _whole_number(row: Mapping[str, Any], key: str, name: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name}: {key} must be a whole number, it is {'missing' if value is None else shown(value)}")
    return value


SOURCE = Source(
    name="rrsis_d",
    title="RRSIS-D",
    home="https://github.com/Lsan2401/RMSIN",
    licence="not stated",
    splits=SPLITS,
    present=present,
    read=read,
)
