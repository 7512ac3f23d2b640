"""Distances between the objects of a map, measured between the pixels of their outlines."""

from __future__ import annotations

import numpy as np

# Pixels of an outline that are looked at: a longer one is thinned to them. Comparisons allow for much more than that loses.
_MOST = 256


class Outlines:
    """The outlines of all objects of `object_map` int [h, w]: the pixels of an object that touch another number or the picture's edge."""

    def __init__(self, object_map: np.ndarray):
        inner = np.zeros(object_map.shape, bool)
        middle = object_map[1:-1, 1:-1]
        inner[1:-1, 1:-1] = (
            (middle == object_map[:-2, 1:-1])
            & (middle == object_map[2:, 1:-1])
            & (middle == object_map[1:-1, :-2])
            & (middle == object_map[1:-1, 2:])
        )
        self._width = object_map.shape[1]
        places = np.flatnonzero(~inner)
        numbers = object_map.ravel()[places]
        order = np.argsort(numbers, kind="stable")
        self._places, self._numbers = places[order], numbers[order]

    def pixels(self, number: int) -> np.ndarray:
        """The middles of an object's outline pixels, float [n, 2] as x, y; at most 256 of them."""
        first, last = np.searchsorted(self._numbers, [number, number + 1])
        chosen = self._places[first:last]
        chosen = chosen[:: max(1, -(-len(chosen) // _MOST))]
        return np.stack([chosen % self._width, chosen // self._width], axis=1) + 0.5

    def distances_of_points(self, points: np.ndarray, number: int) -> np.ndarray:
        """From each of `points` [n, 2] (x, y in pixels) to the outline of an object: [n] pixels."""
        outline = self.pixels(number)
        return np.sqrt(((points[:, None] - outline[None]) ** 2).sum(-1)).min(1)

    def distance(self, number: int, other: int) -> float:
        """Between the outlines of two objects, in pixels."""
        return float(self.distances_of_points(self.pixels(number), other).min())

    def radius(self, number: int, middle: np.ndarray) -> float:
        """From `middle` (x, y in pixels) to the farthest pixel of an object's outline."""
        return float(np.sqrt(((self.pixels(number) - middle) ** 2).sum(1).max()))
