"""The labels of one picture in the form that the grammar speaks of, from rasters of classes, instances and parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipeline.compose.classes import ClassTable
from data_pipeline.compose.rasters import components, holes, read_classes, read_numbers
from data_pipeline.grammar.facts import Facts
from data_pipeline.grammar.labels import LabelledObject
from data_pipeline.grammar.lexicon import Entry, PartWord
from segearth_r2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Labels:
    """`object_map` and `part_map` int32 [h, w]; the object with number n is `objects[n - 1]`. `unknown` bool [h, w]: may show anything."""

    object_map: np.ndarray
    part_map: np.ndarray
    objects: tuple[LabelledObject, ...]
    unknown: np.ndarray

    def facts(self, entries: Mapping[str, Entry], parts: tuple[PartWord, ...]) -> Facts:
        """Measures them; `entries` are all categories that the data set labels."""
        return Facts(self, entries, parts, self.unknown)


@dataclasses.dataclass(frozen=True)
class RasterFiles:
    """The label files of one picture."""

    classes: Path
    instances: Path | None = None
    parts: Path | None = None


class RasterLabels:
    """Labels from rasters: `files` are those of each picture, by its name."""

    def __init__(self, table: ClassTable, files: Mapping[str, RasterFiles]):
        self.table, self.files = table, dict(files)
        self.entries = table.entries
        self.parts = table.parts

    def of_picture(self, name: str) -> RasterLabels:
        """What a process that reads the labels of `name` needs."""
        return RasterLabels(self.table, {name: self.files[name]})

    def read(self, name: str, image: np.ndarray) -> Labels:
        """The labels of the picture `name`, `image` uint8 [h, w, 3]. Raises UserError naming the file that is wrong or does not fit."""
        files = self.files[name]
        classes = read_classes(files.classes, self.table)
        _check_fit(classes, image, files.classes)
        instances = read_numbers(files.instances) if files.instances else None
        if instances is not None:
            _check_fit(instances, image, files.instances)
        object_map, objects = self._objects(classes, instances)
        return Labels(object_map, self._parts(files.parts, image, object_map), objects, self._unknown(classes, image))

    def _objects(self, classes: np.ndarray, instances: np.ndarray | None) -> tuple[np.ndarray, tuple[LabelledObject, ...]]:
        object_map = np.zeros(classes.shape, np.int32)
        objects: list[LabelledObject] = []
        for number, info in enumerate(self.table.classes, 1):
            mask = classes == number
            if info.entry is None or not mask.any():
                continue
            if not info.entry.instances:
                found, count = mask.astype(np.int32), 1
            elif instances is None:
                found, count = components(mask)
            else:
                found, count = _numbered(mask, instances)
            object_map[mask] = found[mask] + len(objects)
            objects += [LabelledObject(len(objects) + one, info.category) for one in range(1, count + 1)]
        return object_map, tuple(objects)

    def _parts(self, path: Path | None, image: np.ndarray, object_map: np.ndarray) -> np.ndarray:
        if path is None:
            return np.zeros(object_map.shape, np.int32)
        part_map = read_numbers(path)
        _check_fit(part_map, image, path)
        known = {number for word in self.parts for number in word.numbers}
        unknown = set(np.unique(part_map).tolist()) - known - {0}
        if unknown:
            raise UserError(f"{path}: holds the part {min(unknown)}, which --classes does not name; known are {sorted(known)}")
        return np.where(object_map > 0, part_map, 0).astype(np.int32)

    def _unknown(self, classes: np.ndarray, image: np.ndarray) -> np.ndarray:
        return holes(classes == 0, image, self.table.ignore_strip)


def _numbered(mask: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, int]:
    """The instances within one class, numbered from 1; pixels of the class that no instance has are parted into connected regions."""
    values, places = np.unique(np.where(mask, instances, 0), return_inverse=True)
    given = np.cumsum(values != 0) * (values != 0)
    found = given[places].reshape(mask.shape).astype(np.int32)
    count = int((values != 0).sum())
    rest, more = components(mask & (found == 0))
    found[rest > 0] = rest[rest > 0] + count
    return found, count + more


def _check_fit(raster: np.ndarray, image: np.ndarray, path: Path) -> None:
    if raster.shape != image.shape[:2]:
        raise UserError(f"{path}: is {raster.shape[1]} x {raster.shape[0]} pixels, its image {image.shape[1]} x {image.shape[0]}")
