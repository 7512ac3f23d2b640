"""Labels from a COCO instance file: polygons or run lengths by category, categories of parts with the category of their whole.

A category of a part names its whole: {"id": 7, "name": "wing", "parent": "plane"} (a name or an id). Where annotations overlap, the
smaller one lies on top, as a car on its parking lot. A crowd (`iscrowd`) is a region that may show anything.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.compose.classes import ClassTable, spoken_entry
from data_pipeline.compose.labels import Labels
from data_pipeline.grammar.labels import LabelledObject
from data_pipeline.grammar.lexicon import Entry, PartWord, regular_plural
from data_pipeline.targets import ImageFile, Polygons, RunLengths
from segearth_r2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Category:
    entry: Entry | None
    parent: int | None = None  # of a part, its whole's category
    number: int = 0  # of a part: `number` where a whole has one of it, `number` + 1 where it has several


@dataclasses.dataclass(frozen=True)
class _Patch:
    """A mask bool [h, w] of a small part of a picture, and where it lies."""

    place: tuple[slice, slice]
    mask: np.ndarray


class CocoLabels:
    """Labels from one COCO file. `table` (or None) says of which kind its categories are, by name: without it all are things."""

    def __init__(self, path: Path, table: ClassTable | None):
        self.path = path
        content = _read(path)
        self._categories = self._read_categories(content["categories"], table)
        self.entries = {c.entry.singular: c.entry for c in self._categories.values() if c.entry is not None and c.parent is None}
        if not self.entries:
            raise UserError(f"{path}: no category is a thing or stuff, so there is nothing to ask for")
        self.parts = tuple(word for category in self._categories.values() for word in _words(category))
        self._images = self._read_images(content["images"])
        self._annotations: dict[Any, list[Mapping[str, Any]]] = {}
        ids = {image["id"] for image in self._images.values()}
        for number, annotation in enumerate(content["annotations"]):
            where = f"{path}: annotation {number}"
            if not isinstance(annotation, Mapping) or not {"image_id", "category_id", "segmentation"} <= annotation.keys():
                raise UserError(f"{where}: expected an object with image_id, category_id and segmentation")
            if _key(annotation["image_id"]) not in ids:
                raise UserError(f"{where}: no image has the id {annotation['image_id']!r:.40}")
            if _key(annotation["category_id"]) not in self._categories:
                raise UserError(f"{where}: no category has the id {annotation['category_id']!r:.40}")
            self._annotations.setdefault(_key(annotation["image_id"]), []).append(annotation | {"where": where})

    @property
    def names(self) -> list[str]:
        """The file names of the images, as the file has them."""
        return list(self._images)

    def of_picture(self, name: str) -> CocoLabels:
        """What a process that reads the labels of `name` needs."""
        found = copy.copy(self)
        image = self._images[name]
        found._images = {name: image}
        found._annotations = {image["id"]: self._annotations.get(image["id"], [])}
        return found

    def read(self, name: str, image: np.ndarray) -> Labels:
        """The labels of the picture `name`, `image` uint8 [h, w, 3]. Raises UserError naming the annotation that is wrong."""
        entry = self._images[name]
        h, w = image.shape[:2]
        if (entry["height"], entry["width"]) != (h, w):
            raise UserError(f"{self.path}: image {name!r} is {entry['width']} x {entry['height']} pixels there, the file is {w} x {h}")
        wholes, parts, unknown = [], [], np.zeros((h, w), bool)
        for annotation in self._annotations.get(entry["id"], []):
            key = _key(annotation["category_id"])
            category = self._categories[key]
            patch = _patch(annotation, ImageFile(self.path, h, w))
            if category.parent is not None:
                parts.append((key, patch))
            elif category.entry is not None and annotation.get("iscrowd"):
                unknown[patch.place] |= patch.mask
            elif category.entry is not None:
                wholes.append((key, patch))
        object_map, objects, owners = self._paint(wholes, unknown)
        return Labels(object_map, self._paint_parts(parts, object_map, owners), objects, unknown)

    def _paint(self, wholes: list[tuple[Any, _Patch]], unknown: np.ndarray) -> tuple[np.ndarray, tuple[LabelledObject, ...], list[Any]]:
        """The object map, the objects, and the category id of each; what the crowds cover belongs to none."""
        object_map = np.zeros(unknown.shape, np.int32)
        objects: list[LabelledObject] = []
        owners: list[Any] = []
        stuff: dict[Any, int] = {}
        for key, patch in sorted(wholes, key=lambda whole: -int(whole[1].mask.sum())):
            entry = self._categories[key].entry
            number = len(objects) + 1 if entry.instances else stuff.setdefault(key, len(objects) + 1)
            if number > len(objects):
                objects.append(LabelledObject(number, entry.singular))
                owners.append(key)
            object_map[patch.place][patch.mask] = number
        object_map[unknown] = 0
        return object_map, tuple(objects), owners

    def _paint_parts(self, parts: list[tuple[Any, _Patch]], object_map: np.ndarray, owners: list[Any]) -> np.ndarray:
        """The part map: each part belongs to the object of its whole's category that has most of its pixels."""
        part_map = np.zeros(object_map.shape, np.int32)
        found: dict[tuple[int, Any], list[_Patch]] = {}
        for key, patch in parts:
            below = np.bincount(object_map[patch.place][patch.mask], minlength=len(owners) + 1)
            wanted = np.array([False] + [owner == self._categories[key].parent for owner in owners])
            below = np.where(wanted, below, 0)
            if below.any():
                found.setdefault((int(below.argmax()), key), []).append(patch)
        for (owner, key), patches in found.items():
            for patch in patches:
                own = patch.mask & (object_map[patch.place] == owner)
                part_map[patch.place][own] = self._categories[key].number + (len(patches) > 1)
        return part_map

    def _read_categories(self, rows: list[Any], table: ClassTable | None) -> dict[Any, _Category]:
        kinds = {} if table is None else {_plain(info.name): info for info in table.classes}
        names: dict[str, Any] = {}
        for number, row in enumerate(rows):
            where = f"{self.path}: category {number}"
            if not isinstance(row, Mapping) or not isinstance(row.get("name"), str) or _key(row.get("id")) is None:
                raise UserError(f'{where}: expected an object such as {{"id": 1, "name": "ship"}}')
            if row["name"] in names or _key(row["id"]) in names.values():
                raise UserError(f"{where}: its name or id stands there twice")
            names[row["name"]] = _key(row["id"])
        found: dict[Any, _Category] = {}
        for number, row in enumerate(rows):
            where = f"{self.path}: category {number} ({row['name']:.40})"
            parent = row.get("parent")
            if parent is not None:
                parent = names.get(parent, parent) if isinstance(parent, str) else parent
                if parent not in names.values() or parent == _key(row["id"]):
                    raise UserError(f"{where}: its parent {row['parent']!r:.40} is no other category")
                found[_key(row["id"])] = _Category(spoken_entry(row["name"], "thing", where), parent, 2 * len(found) + 1)
            elif table is None:
                # Instances are what such a file is for.
                found[_key(row["id"])] = _Category(spoken_entry(row["name"], None, where, unknown_kind="thing"))
            elif _plain(row["name"]) in kinds:
                found[_key(row["id"])] = _Category(kinds[_plain(row["name"])].entry)
            else:
                raise UserError(f"{where}: --classes does not name it; give it a kind there (thing, stuff or other)")
        for key, category in found.items():
            if category.parent is not None and found[category.parent].parent is not None:
                raise UserError(f"{self.path}: the parent of category {key!r:.40} is a part itself; expected the category of the whole")
        return found

    def _read_images(self, rows: list[Any]) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for number, row in enumerate(rows):
            where = f"{self.path}: image {number}"
            fields = ("id", "file_name", "height", "width")
            if not isinstance(row, Mapping) or any(field not in row for field in fields) or not isinstance(row["file_name"], str):
                raise UserError(f"{where}: expected an object with {', '.join(fields)}")
            if row["file_name"] in found or _key(row["id"]) in {image["id"] for image in found.values()}:
                raise UserError(f"{where}: its file_name or id stands there twice")
            found[row["file_name"]] = {**row, "id": _key(row["id"])}
        return found


def _words(category: _Category) -> list[PartWord]:
    if category.parent is None or category.entry is None:
        return []
    name = category.entry.singular
    if name.endswith("s") and not name.endswith("ss"):
        # The name is a plural already.
        return [PartWord(name, (category.number + several,), plural=True) for several in (0, 1)]
    side = name.split()[0] if name.split()[0] in ("left", "right") and " " in name else None
    return [PartWord(name, (category.number,), side=side), PartWord(regular_plural(name), (category.number + 1,), True, side)]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def _key(value: Any) -> Any:
    """An id that can be looked up, None for anything else."""
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _patch(annotation: Mapping[str, Any], image: ImageFile) -> _Patch:
    segmentation, where = annotation["segmentation"], f"{annotation['where']}: segmentation"
    if isinstance(segmentation, Mapping):
        mask = RunLengths(segmentation).rasterize(image, where).astype(bool)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not rows.size:
            return _Patch((slice(0, 1), slice(0, 1)), np.zeros((1, 1), bool))
        place = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        return _Patch(place, mask[place].copy())
    if not isinstance(segmentation, list) or not segmentation:
        raise UserError(f"{where} must be a list of polygons or a run-length encoding")
    rings = []
    for ring in segmentation:
        if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2 or not all(_finite(value) for value in ring):
            raise UserError(f"{where}: a polygon is a list x1, y1, x2, y2, ... of at least three points")
        rings.append(np.array(ring, np.float64).reshape(-1, 2))
    # Drawn in its own box: a scene may hold thousands of small things.
    points = np.concatenate(rings)
    left, top = (int(max(0, np.floor(low))) for low in points.min(0))
    right, bottom = (int(min(side, np.ceil(high))) for side, high in zip((image.width, image.height), points.max(0), strict=True))
    if left >= right or top >= bottom:
        Polygons(tuple(rings)).rasterize(image, where)  # says what is wrong
        return _Patch((slice(0, 1), slice(0, 1)), np.zeros((1, 1), bool))
    own = ImageFile(image.path, bottom - top, right - left)
    mask = Polygons(tuple(ring - (left, top) for ring in rings)).rasterize(own, where)
    return _Patch((slice(top, bottom), slice(left, right)), mask.astype(bool))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _read(path: Path) -> Mapping[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error!s:.120})") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(content, Mapping) or not all(isinstance(content.get(key), list) for key in keys):
        raise UserError(f"{path}: expected a COCO instance file, an object with the lists {', '.join(keys)}")
    return content
