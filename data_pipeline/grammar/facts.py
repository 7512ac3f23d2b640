"""What is true of a labelled picture, measured on its visible pixels: sizes, places, neighbours, and what its labels leave open."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.grammar.labels import LabelledImage, LabelledObject
from data_pipeline.grammar.lexicon import AIRCRAFT_PART_WORDS, GENERAL, NAMESAKES, SIMPLE_WORLD, Entry, PartWord, entries_of
from data_pipeline.grammar.outlines import Outlines

# How clear a comparison must be before an instruction may rest on it.
LARGER = 1.3  # times the area of the next
NEARER = 1.3  # times closer than the next
APART = 0.07  # of the picture's side
# A thing lies in a place only if it does not stretch over the picture: the standard deviation of its pixels, in shares of a side.
# A strip across the whole picture has 0.29.
_COMPACT = 0.2

# The nine places of a picture by column and row, and how each is said.
PLACES = (("upper left", "top", "upper right"), ("left", "centre", "right"), ("lower left", "bottom", "lower right"))
_PREPOSITIONS = {"top": "at", "bottom": "at", "left": "on", "right": "on"}
_THIRDS = np.arange(3)


def at_place(place: str) -> str:
    """`place` with its preposition: "in the upper left", "at the top", "on the left"."""
    return f"{_PREPOSITIONS.get(place, 'in')} the {place}"


@dataclasses.dataclass(frozen=True)
class Fact:
    """An object as it is seen: `area` in pixels, `x`, `y` of its middle in shares of the picture's width and height."""

    thing: LabelledObject
    area: int
    x: float
    y: float
    cut: bool  # by the picture's edge, or by pixels of which nothing is known
    compact: bool  # whether its middle says where it is

    @functools.cached_property
    def ninth(self) -> tuple[int, int] | None:
        """Column and row of the ninth of the picture in which it lies, or None if it is too near to a border between two or too long."""
        column, row = _third(self.x), _third(self.y)
        return None if column is None or row is None or not self.compact else (column, row)

    @property
    def place(self) -> str | None:
        """How its ninth of the picture is said."""
        return None if self.ninth is None else PLACES[self.ninth[1]][self.ninth[0]]


def _third(value: float, margin: float = 0.04) -> int | None:
    third = min(2, int(value * 3))
    low, high = third / 3, (third + 1) / 3
    if (third > 0 and value < low + margin) or (third < 2 and value > high - margin):
        return None
    return third


class Facts:
    """Measures every object of `image` that is visible at all.

    entries: the categories that the labels know, seen here or not, and how each is spoken of (None: those of the drawn world's simple
      form and of the image's objects). A thing of another category may stand in the picture without being labelled, but no object has one.
    parts: the nouns of the numbers of the part map.
    unknown: bool [h, w], pixels that may show anything (None: there are none). Where there are some, nothing is said that speaks of
      the whole picture: not "all", not "the largest", not "there is no".
    """

    def __init__(
        self,
        image: LabelledImage,
        entries: Mapping[str, Entry] | None = None,
        parts: Sequence[PartWord] = AIRCRAFT_PART_WORDS,
        unknown: np.ndarray | None = None,
    ):
        self.image = image
        self.entries = dict(entries) if entries is not None else entries_of([*SIMPLE_WORLD, *(thing.category for thing in image.objects)])
        unspoken = {thing.category for thing in image.objects} - self.entries.keys()
        if unspoken:
            raise ValueError(f"the picture has objects of {', '.join(sorted(unspoken))}, which have no entry")
        self.parts = tuple(parts)
        self.complete = unknown is None or not unknown.any()
        self.height, self.width = image.object_map.shape
        self.pixels = self.height * self.width
        self._unknown_near = np.zeros((3, 3), bool) if self.complete else _near_ninths(unknown)
        self.facts = self._measure(unknown)
        self.by_category: dict[str, list[Fact]] = {}
        for fact in self.facts.values():
            self.by_category.setdefault(fact.thing.category, []).append(fact)

    def _measure(self, unknown: np.ndarray | None) -> dict[int, Fact]:
        count = len(self.image.objects) + 1
        flat = self.image.object_map.ravel()
        areas = np.bincount(flat, minlength=count)
        divisor = np.maximum(areas, 1)
        columns, rows = (np.arange(self.width) + 0.5) / self.width, (np.arange(self.height) + 0.5) / self.height
        middles, spreads = [], []
        for steps in (np.tile(columns, self.height), np.repeat(rows, self.width)):
            middle = np.bincount(flat, steps, minlength=count) / divisor
            square = np.bincount(flat, steps**2, minlength=count) / divisor
            middles.append(middle)
            spreads.append(np.sqrt(np.maximum(0.0, square - middle**2)))
        compact = np.maximum(*spreads) < _COMPACT
        cut = np.zeros(count, bool)
        objects = self.image.object_map
        cut[np.concatenate([objects[0], objects[-1], objects[:, 0], objects[:, -1]])] = True
        if not self.complete:
            cut[np.unique(objects[_grown(unknown)])] = True
        return {
            thing.number: Fact(
                thing,
                int(areas[thing.number]),
                float(middles[0][thing.number]),
                float(middles[1][thing.number]),
                bool(cut[thing.number]),
                bool(compact[thing.number]),
            )
            for thing in self.image.objects
            if areas[thing.number]
        }

    @property
    def smallest_target(self) -> int:
        """Pixels below which nothing is asked for: it could not be seen."""
        return max(14, min(40, round(0.0004 * self.pixels)))

    def of(self, *categories: str) -> list[Fact]:
        """The visible objects of the categories."""
        return [fact for category in categories for fact in self.by_category.get(category, [])]

    def clear(self, category: str) -> bool:
        """Whether no other category is seen that its name could mean, or whose labels may hold some of its things."""
        if self.of(*GENERAL.get(category, ()), *NAMESAKES.get(category, ())):
            return False
        return not any(self.of(general) for general, special in GENERAL.items() if category in special)

    @functools.cached_property
    def _part_areas(self) -> np.ndarray:
        """Visible pixels int [objects + 1, parts + 1]."""
        count = 1 + max((max(word.numbers) for word in self.parts), default=0)
        count = max(count, int(self.image.part_map.max()) + 1)
        codes = self.image.object_map.ravel().astype(np.int64) * count + self.image.part_map.ravel()
        return np.bincount(codes, minlength=(len(self.image.objects) + 1) * count).reshape(-1, count)

    def part_area(self, number: int, part: int) -> int:
        """Visible pixels of a part of an object."""
        return int(self._part_areas[number, part])

    def has_parts(self, number: int) -> bool:
        """Whether any part of the object is seen."""
        return bool(self._part_areas[number, 1:].any())

    def alone_at(self, facts: list[Fact]) -> list[bool]:
        """Of each whether it lies in a place, and no other of them lies in that ninth of the picture or near to it."""
        if not facts:
            return []
        x, y = np.array([fact.x for fact in facts]), np.array([fact.y for fact in facts])
        near = _near_third(y)[:, :, None] & _near_third(x)[:, None, :]  # [facts, row, column]
        # What stretches over the picture is near to all of it.
        near[[not fact.compact for fact in facts]] = True
        crowd = near.sum(0)
        return [
            fact.ninth is not None and crowd[fact.ninth[1], fact.ninth[0]] == 1 and not self._unknown_near[fact.ninth[1], fact.ninth[0]]
            for fact in facts
        ]

    @functools.cached_property
    def outlines(self) -> Outlines:
        """The outlines of the objects."""
        return Outlines(self.image.object_map)

    def nearest_to(self, candidates: list[Fact], anchor: Fact) -> Fact | None:
        """The candidate that is clearly nearest to `anchor`, by its middle and by its edge alike, or None."""
        middles = np.array([(c.x * self.width, c.y * self.height) for c in candidates])
        side = max(self.height, self.width)
        by_middle = self.outlines.distances_of_points(middles, anchor.thing.number)
        nearest = int(np.argmin(by_middle))
        others = [n for n in range(len(candidates)) if n != nearest]
        if any(by_middle[n] < _clearly_more(by_middle[nearest], side) for n in others):
            return None
        bound = _clearly_more(self.outlines.distance(candidates[nearest].thing.number, anchor.thing.number), side)
        for n in others:
            number = candidates[n].thing.number
            # No pixel of it is nearer than its middle by more than its radius.
            may_be_near = by_middle[n] - self.outlines.radius(number, middles[n]) < bound
            if may_be_near and self.outlines.distance(number, anchor.thing.number) < bound:
                return None
        return candidates[nearest]


def _clearly_more(distance: float, side: int) -> float:
    return max(NEARER * distance, distance + 0.03 * side)


def _near_third(values: np.ndarray) -> np.ndarray:
    """Shares of a side [n] -> bool [n, 3]: in a third of it, or close to it."""
    values = values[:, None]
    return (values > _THIRDS / 3 - 0.08) & (values < (_THIRDS + 1) / 3 + 0.08)


def _near_ninths(unknown: np.ndarray) -> np.ndarray:
    """bool [3 rows, 3 columns]: whether unknown pixels lie in a ninth of the picture or near to it."""
    h, w = unknown.shape
    rows, columns = _near_third((np.arange(h) + 0.5) / h), _near_third((np.arange(w) + 0.5) / w)
    return np.array([[bool(unknown[np.ix_(rows[:, r], columns[:, c])].any()) for c in range(3)] for r in range(3)])


def _grown(mask: np.ndarray) -> np.ndarray:
    """`mask` and its eight neighbours of every pixel: bool [h, w]."""
    padded = np.pad(mask, 1)
    tall = padded[:-2] | padded[1:-1] | padded[2:]
    return tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]
