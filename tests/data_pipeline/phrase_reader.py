"""Reads the grammar's noun phrases back: what a phrase means in a picture, found pixel by pixel and without the grammar's own measures."""

from __future__ import annotations

import re

import numpy as np

from data_pipeline.grammar.lexicon import AIRCRAFT_PART_WORDS, ENTRIES, GROUPS

PLACES = {
    "in the upper left": (0, 0),
    "at the top": (0, 1),
    "in the upper right": (0, 2),
    "on the left": (1, 0),
    "in the centre": (1, 1),
    "on the right": (1, 2),
    "in the lower left": (2, 0),
    "at the bottom": (2, 1),
    "in the lower right": (2, 2),
}
_SINGULAR = {entry.singular: name for name, entry in ENTRIES.items()}
_PLURAL = {entry.plural: name for name, entry in ENTRIES.items() if entry.counted}
_GROUPS = {group.noun: set(group.members) for group in GROUPS}
_ALSO = {"buildings": {"house"}, "ships": {"boat"}}
_PARTS = {word.noun: word.numbers for word in AIRCRAFT_PART_WORDS}
_ADJECTIVES = ("red|green|blue|white|yellow|grey|brown|black", "damaged|intact|flooded|moving|moored")
_ADJECTIVE = rf"(?:({'|'.join(_ADJECTIVES)}) )?"
_NAMES = "|".join(sorted(_SINGULAR, key=len, reverse=True))
_MANY = "|".join(sorted({**_PLURAL, **_GROUPS}, key=len, reverse=True))
_PLACE = "|".join(PLACES)


class Reader:
    """The objects of a labelled picture as masks."""

    def __init__(self, image):
        self.image = image
        self.h, self.w = image.object_map.shape
        self.masks = {t.number: image.object_map == t.number for t in image.objects}
        self.masks = {number: mask for number, mask in self.masks.items() if mask.any()}
        self.things = {t.number: t for t in image.objects if t.number in self.masks}
        self.places = {number: np.argwhere(mask) for number, mask in self.masks.items()}

    def of(self, categories, adjective=None) -> list[int]:
        return [n for n, t in self.things.items() if t.category in categories and (adjective is None or adjective in (t.colour, t.state))]

    def middle(self, number: int) -> tuple[float, float]:
        """Row and column in shares of the sides."""
        row, column = self.places[number].mean(0) + 0.5
        return float(row / self.h), float(column / self.w)

    def inside(self, number: int, place: str) -> bool:
        row, column = self.middle(number)
        return (min(2, int(row * 3)), min(2, int(column * 3))) == PLACES[place]

    def reaches(self, number: int, place: str) -> float:
        """The share of an object's box that lies in the two thirds of the picture around a place."""
        row, column = PLACES[place]
        rows, columns = self.places[number][:, 0] / self.h, self.places[number][:, 1] / self.w
        close = (abs(rows - (2 * row + 1) / 6) < 1 / 3) & (abs(columns - (2 * column + 1) / 6) < 1 / 3)
        return float(close.mean())

    def distance(self, a: int, b: int) -> float:
        """Between the nearest pixels of two objects."""
        one, other = self.places[a].astype(np.float32), self.places[b].astype(np.float32)
        one = one[:: max(1, len(one) // 400)]
        return float(np.sqrt(((one[:, None] - other[None, :: max(1, len(other) // 400)]) ** 2).sum(-1)).min())

    def meaning(self, phrase: str) -> list[set[int]]:
        """One set of object numbers per mask; AssertionError where the phrase is not clear and true, ValueError if it cannot be read."""
        if m := re.fullmatch(rf"all {_ADJECTIVE}({_MANY})", phrase):
            categories = _GROUPS.get(m[2], set()) | ({_PLURAL[m[2]]} if m[2] in _PLURAL else set())
            return [set(self.of(categories, m[1]))]
        if m := re.fullmatch(rf"each ({_NAMES}) from left to right", phrase):
            row = sorted(self.of({_SINGULAR[m[1]]}), key=lambda n: self.middle(n)[1])
            gaps = np.diff([self.middle(n)[1] for n in row])
            assert (gaps > 0.06).all()
            return [{n} for n in row]
        if m := re.fullmatch(rf"the two largest ({_MANY}), the larger one first", phrase):
            row = self._by_size({_PLURAL[m[1]]})
            assert self.masks[row[0]].sum() > 1.25 * self.masks[row[1]].sum() > 1.25**2 * self.masks[row[2]].sum()
            return [{row[0]}, {row[1]}]
        if (m := re.fullmatch(r"the (.+)", phrase)) and m[1] in ("water", *(n for n, e in ENTRIES.items() if not e.counted)):
            return [set(self.of(_GROUPS.get(m[1], set()) | ({m[1]} & _SINGULAR.keys())))]
        return [{self._one(phrase)}]

    def _by_size(self, categories) -> list[int]:
        return sorted(self.of(categories), key=lambda n: -self.masks[n].sum())

    def _one(self, phrase: str) -> int:
        if m := re.fullmatch(rf"the largest ({_NAMES})", phrase):
            row = self._by_size({_SINGULAR[m[1]]})
            assert self.masks[row[0]].sum() > 1.25 * self.masks[row[1]].sum()
            return row[0]
        if m := re.fullmatch(rf"the (leftmost|rightmost|uppermost|lowest) ({_NAMES})", phrase):
            axis, sign = {"leftmost": (1, 1), "rightmost": (1, -1), "uppermost": (0, 1), "lowest": (0, -1)}[m[1]]
            row = sorted(self.of({_SINGULAR[m[2]]}), key=lambda n: sign * self.middle(n)[axis])
            assert sign * (self.middle(row[1])[axis] - self.middle(row[0])[axis]) > 0.06
            return row[0]
        if m := re.fullmatch(rf"the ({_NAMES}) nearest to the ({_NAMES})", phrase):
            (anchor,) = self.of({_SINGULAR[m[2]]})
            distances = {n: self.distance(n, anchor) for n in self.of({_SINGULAR[m[1]]})}
            first, second = sorted(distances, key=distances.get)[:2]
            assert distances[second] > distances[first] + 0.01 * max(self.h, self.w)
            return first
        if m := re.fullmatch(rf"the {_ADJECTIVE}({_NAMES})(?: ({_PLACE}))?", phrase):
            found = self.of({_SINGULAR[m[2]]}, m[1])
            if m[3]:
                found = [n for n in found if self.inside(n, m[3])]
                assert all(self.reaches(n, m[3]) > 0.5 for n in found), phrase
            assert len(found) == 1, (phrase, found)
            return found[0]
        raise ValueError(f"a phrase that cannot be read: {phrase!r}")

    def part(self, phrase: str) -> tuple[int, tuple[int, ...]]:
        """The object and the part numbers of "the PART of WHOLE"."""
        m = re.fullmatch(rf"the ({'|'.join(_PARTS)}) of (the .+)", phrase)
        return self._one(m[2]), _PARTS[m[1]]

    def noun_categories(self, noun: str) -> set[str]:
        """The categories that a noun of an answer stands for, whatever else it says."""
        bare = re.sub(rf"^(?:largest|leftmost|rightmost|uppermost|lowest|{'|'.join(_ADJECTIVES)}) ", "", noun)
        if bare in _PARTS:
            return {"aircraft"}
        found = (
            _GROUPS.get(bare, set())
            | _ALSO.get(bare, set())
            | {name for table in (_SINGULAR, _PLURAL) for key, name in table.items() if key == bare}
        )
        if not found:
            raise ValueError(f"a noun that is not in the lexicon: {noun!r}")
        return found
