"""A folder of one's own: images, and beside them one or more `*.jsonl` files with an annotation per line.

    {"image": "a.tif", "instruction": "the pier", "answer": "It is the [SEG].", "masks": [...], "id": ..., "split": ..., "tags": ...}

`image`, `instruction` and `masks` are needed, the other fields are not:

* `masks`: one per [SEG] of the answer, in order, each in the form that is at hand:
  a COCO run-length encoding `{"size": [h, w], "counts": ...}`; a mask image `"masks/a.png"` (foreground is what is not zero), or
  `{"image": "classes.png", "values": [3, 7]}`; polygons in pixels `{"polygon": [[x, y], ...]}` or `{"polygons": [...]}`; GeoJSON, as
  an object or `"a.geojson"` (several features are one mask). An empty list says that the image holds no target.
* `answer`: where it is absent, "Sure, it is [SEG]." with one [SEG] per mask, or "There is no target object in the image.".
* `split`: train (where it is absent), val or test. Rows of val and test may lack `masks`: they can be answered, not scored.
* `tags`: `{"granularity": ..., "multiplicity": ..., "reasoning": ..., "language": ..., "category": ...}`, or a list of such values.
* `id`: where it is absent, the name of the file and the number of the line.

Paths are relative to the folder and must stay within it. Other fields are ignored.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.annotation import (
    Annotation,
    Rejection,
    attempt,
    check_count,
    check_text,
    file_inside,
    read_json,
    read_json_lines,
    row_id,
    shown,
    tags_field,
    text_field,
)
from data_pipeline.geo_polygons import check_installed, is_geojson, parse_geojson
from data_pipeline.schema import DIMENSIONS
from data_pipeline.sources.answers import masks_answer
from data_pipeline.sources.source import Source
from data_pipeline.targets import MaskImage, Polygons, RunLengths, Target
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.conversation import count_masks

SPLITS = ("train", "val", "test")
_GEOJSON_SUFFIX = ".geojson"


def present(folder: Path) -> tuple[str, ...]:
    """The splits of the folder's rows; UserError if there is no JSONL file or no row."""
    found = {split for file in _files(folder) for _, row in read_json_lines(file) if (split := _split(row)) is not None}
    if not found:
        raise UserError(f"{folder}: its *.jsonl files hold no row of a split {', '.join(SPLITS)}")
    return tuple(split for split in SPLITS if split in found)


def read(folder: Path, split: str) -> Iterator[Annotation | Rejection]:
    """Every row of a split, in the order of the files' names and lines. Lines that belong to no split are rejected with the first one."""
    splits = present(folder)
    if split not in splits:
        raise UserError(f"{folder}: its *.jsonl files hold no row of the split {split!r}")
    for file in _files(folder):
        for name, row in read_json_lines(file):
            given = _split(row)
            if given is None and split == splits[0]:
                reason = f"split must be one of {', '.join(SPLITS)}"
                yield row if isinstance(row, Rejection) else Rejection(name, f"{reason}, it is {shown(row['split'])}")
            elif given == split:
                if any(_is_map_mask(mask) for mask in _listed(row.get("masks"))):
                    check_installed(name)
                yield attempt(name, functools.partial(_check, folder, file, row, split, name))


def _files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.glob("*.jsonl") if file.is_file())
    if not files:
        raise UserError(f"{folder}: holds no *.jsonl file; expected one with an annotation per line, beside the images")
    return files


def _split(row: Mapping[str, Any] | Rejection) -> str | None:
    split = None if isinstance(row, Rejection) else row.get("split", SPLITS[0])
    return split if isinstance(split, str) and split in SPLITS else None


def _check(folder: Path, file: Path, row: Mapping[str, Any], split: str, line: str) -> Annotation:
    record_id = row_id(row, 0, line) if row.get("id") is not None else f"{file.stem}/{line.rpartition(' ')[2]}"
    name = line if row.get("id") is None else f"{line}: row {record_id!r}"
    instruction = text_field(row, "instruction", name, empty=False)
    answer = None if row.get("answer") is None else text_field(row, "answer", name)
    targets = _targets(folder, row.get("masks"), name)
    if targets is None and answer is not None and not count_masks(answer):
        targets = ()
    if targets is None and split == "train":
        raise UserError(f"{name}: has no masks; training needs a list of one per [SEG] of the answer, empty if there is no target")
    if targets is not None:
        answer = masks_answer(len(targets)) if answer is None else answer
        check_count(answer, targets, name)
    image_name = text_field(row, "image", name, empty=False)
    return Annotation(
        name=name,
        record_id=record_id,
        source=file.name,
        image_name=image_name,
        image_path=file_inside(folder, image_name, name, "image"),
        instruction=instruction,
        answer=answer,
        targets=targets,
        tags=tags_field(_named_tags(row, name), name),
    )


def _targets(folder: Path, masks: Any, name: str) -> tuple[Target, ...] | None:
    if masks is None:
        return None
    if not isinstance(masks, list):
        raise UserError(f"{name}: masks must be a list, it is {type(masks).__name__}")
    return tuple(_target(folder, mask, f"{name}: mask {number}") for number, mask in enumerate(masks))


def _target(folder: Path, mask: Any, name: str) -> Target:
    if isinstance(mask, str):
        check_text(mask, "the path", name)
        if mask.lower().endswith(_GEOJSON_SUFFIX):
            return _map_target(file_inside(folder, mask, name, "masks", "file"))
        return MaskImage(file_inside(folder, mask, name, "masks", "mask"))
    if not isinstance(mask, Mapping):
        raise UserError(f"{name}: must be a path, an object or a run-length encoding, it is {type(mask).__name__}")
    if "counts" in mask:
        return RunLengths(dict(mask))
    if "image" in mask:
        path = file_inside(folder, text_field(mask, "image", name, empty=False), name, "image", "mask")
        return MaskImage(path, _values(mask.get("values"), name))
    if "polygon" in mask:
        return Polygons((mask["polygon"],))
    if "polygons" in mask:
        if not isinstance(mask["polygons"], list):
            raise UserError(f"{name}: polygons must be a list of polygons, it is {type(mask['polygons']).__name__}")
        return Polygons(tuple(mask["polygons"]))
    if "geojson" in mask:
        if isinstance(mask["geojson"], str):
            return _map_target(file_inside(folder, text_field(mask, "geojson", name), name, "geojson", "file"))
        return parse_geojson(mask["geojson"], name)
    if is_geojson(mask):
        return parse_geojson(mask, name)
    raise UserError(f"{name}: has none of counts, image, polygon, polygons, geojson, type")


def _map_target(path: Path) -> Target:
    return dataclasses.replace(parse_geojson(read_json(path, dict, "a GeoJSON object"), str(path)), path=path)


def _is_map_mask(mask: Any) -> bool:
    if isinstance(mask, str):
        return mask.lower().endswith(_GEOJSON_SUFFIX)
    return isinstance(mask, Mapping) and ("geojson" in mask or ("counts" not in mask and is_geojson(mask)))


def _listed(masks: Any) -> list[Any]:
    return masks if isinstance(masks, list) else []


def _values(values: Any, name: str) -> tuple[int, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not values or not all(type(value) is int and 0 <= value < 2**16 for value in values):
        raise UserError(f"{name}: values must be a list of whole numbers, the foreground's in the mask image")
    return tuple(values)


def _named_tags(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The row with tags as an object. In a list each value names its own dimension; other words of a list are ignored."""
    tags = row.get("tags")
    if tags is None:
        return {}
    if not isinstance(tags, list):
        return row
    named: dict[str, str] = {}
    for dimension, values in DIMENSIONS.items():
        chosen = [value for value in values if value in tags]
        if len(chosen) > 1:
            raise UserError(f"{name}: tags name more than one {dimension}: {', '.join(chosen)}")
        if chosen:
            named[dimension] = chosen[0]
    return {"tags": named}


SOURCE = Source(
    name="folder",
    title="a folder of one's own",
    home="",
    licence="your own",
    splits=SPLITS,
    present=present,
    read=read,
)
