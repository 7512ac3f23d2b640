"""What the grammar speaks about: a picture whose pixels are labelled with objects and parts, drawn or annotated."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

# The parts of an aircraft; a part's number in a part map is its place here, from 1.
AIRCRAFT_PARTS = ("fuselage", "left wing", "right wing", "left engine", "right engine", "tail")


@dataclasses.dataclass(frozen=True)
class LabelledObject:
    """One thing of a picture; `number` is its value in the object map. What is not known of it is None and never spoken of.

    `state`: damaged, flooded, moored and the like; None is a thing in its usual state, which is none of them.
    """

    number: int
    category: str
    colour: str | None = None
    heading: float | None = None  # where its front points in the picture: 0 right, pi/2 down
    kind: str | None = None
    state: str | None = None


class LabelledImage(Protocol):
    """`object_map` int32 [h, w], 0 where nothing named is seen; `part_map` int32 [h, w], 0 outside of parts.

    The object with number n is `objects[n - 1]`.
    """

    @property
    def object_map(self) -> np.ndarray: ...

    @property
    def part_map(self) -> np.ndarray: ...

    @property
    def objects(self) -> tuple[LabelledObject, ...]: ...
