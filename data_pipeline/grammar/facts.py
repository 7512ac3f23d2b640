"""What is true of a drawn scene, measured on its visible pixels: sizes, places, neighbours."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from data_pipeline.grammar.labels import AIRCRAFT_PARTS, LabelledImage, LabelledObject

# How clear a comparison must be before an instruction may rest on it.
LARGER = 1.3  # times the area of the next
NEARER = 1.3  # times closer than the next
APART = 0.07  # of the picture's side

# The nine places of a picture by column and row, and how each is said.
PLACES = (("upper left", "top", "upper right"), ("left", "centre", "right"), ("lower left", "bottom", "lower right"))
_PREPOSITIONS = {"top": "at", "bottom": "at", "left": "on", "right": "on"}


def at_place(place: str) -> str:
    """`place` with its preposition: "in the upper left", "at the top", "on the left"."""
    return f"{_PREPOSITIONS.get(place, 'in')} the {place}"


@dataclasses.dataclass(frozen=True)
class Fact:
    """An object as it is seen: `area` in pixels, `x`, `y` of its middle and all lengths in shares of the picture's side."""

    thing: LabelledObject
    area: int
    x: float
    y: float
    cut: bool  # by the picture's edge

    @functools.cached_property
    def ninth(self) -> tuple[int, int] | None:
        """Column and row of the ninth of the picture in which it lies, or None if it is too near to a border between two."""
        column, row = _third(self.x), _third(self.y)
        return None if column is None or row is None else (column, row)

    @property
    def place(self) -> str | None:
        """How its ninth of the picture is said."""
        return None if self.ninth is None else PLACES[self.ninth[1]][self.ninth[0]]

    def near_ninth(self, ninth: tuple[int, int]) -> bool:
        """Whether it lies in a ninth of the picture or close to it."""
        return _near_third(self.x, ninth[0]) and _near_third(self.y, ninth[1])


def _third(value: float, margin: float = 0.04) -> int | None:
    third = min(2, int(value * 3))
    low, high = third / 3, (third + 1) / 3
    if (third > 0 and value < low + margin) or (third < 2 and value > high - margin):
        return None
    return third


class Facts:
    """Measures every object of `scene` that is visible at all."""

    def __init__(self, scene: LabelledImage):
        self.scene = scene
        size = scene.object_map.shape[0]
        count = len(scene.objects) + 1
        flat = scene.object_map.ravel()
        areas = np.bincount(flat, minlength=count)
        steps = (np.arange(size) + 0.5) / size
        x = np.bincount(flat, np.tile(steps, size), minlength=count) / np.maximum(areas, 1)
        y = np.bincount(flat, np.repeat(steps, size), minlength=count) / np.maximum(areas, 1)
        border = np.concatenate([scene.object_map[0], scene.object_map[-1], scene.object_map[:, 0], scene.object_map[:, -1]])
        cut = np.zeros(count, bool)
        cut[border] = True
        self.facts = {
            thing.number: Fact(thing, int(areas[thing.number]), float(x[thing.number]), float(y[thing.number]), bool(cut[thing.number]))
            for thing in scene.objects
            if areas[thing.number]
        }
        self.by_category: dict[str, list[Fact]] = {}
        for fact in self.facts.values():
            self.by_category.setdefault(fact.thing.category, []).append(fact)
        part_codes = flat * (len(AIRCRAFT_PARTS) + 1) + scene.part_map.ravel()
        self._part_areas = np.bincount(part_codes, minlength=count * (len(AIRCRAFT_PARTS) + 1)).reshape(count, -1)
        self.pixels = size * size

    @property
    def smallest_target(self) -> int:
        """Pixels below which nothing is asked for: it could not be seen."""
        return max(14, min(40, round(0.0004 * self.pixels)))

    def of(self, *categories: str) -> list[Fact]:
        """The visible objects of the categories."""
        return [fact for category in categories for fact in self.by_category.get(category, [])]

    def part_area(self, number: int, part: int) -> int:
        """Visible pixels of a part of an object."""
        return int(self._part_areas[number, part])

    def alone_at(self, fact: Fact, rivals: list[Fact]) -> bool:
        """Whether no rival lies in the same ninth of the picture, or near to it."""
        return fact.ninth is not None and not any(rival.near_ninth(fact.ninth) for rival in rivals if rival is not fact)

    def nearest_to(self, candidates: list[Fact], anchor: Fact) -> Fact | None:
        """The candidate that is clearly nearest to the visible pixels of `anchor`, or None."""
        rows, columns = np.nonzero(self.scene.object_map == anchor.thing.number)
        step = max(1, len(rows) // 200)
        size = self.scene.object_map.shape[0]
        pixels = np.stack([columns[::step] + 0.5, rows[::step] + 0.5], axis=1) / size
        middles = np.array([(c.x, c.y) for c in candidates])
        distances = np.sqrt(((middles[:, None] - pixels[None]) ** 2).sum(-1)).min(1)
        order = np.argsort(distances, kind="stable")
        if len(order) > 1 and distances[order[1]] < max(NEARER * distances[order[0]], distances[order[0]] + 0.03):
            return None
        return candidates[int(order[0])]


def _near_third(value: float, third: int) -> bool:
    return third / 3 - 0.08 < value < (third + 1) / 3 + 0.08
