"""What stands where in a scene, before anything is drawn: plain data in metres."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from data_pipeline.synthetic.palette import Colour, Finish
from data_pipeline.synthetic.shapes import Point, Rect, distance_to_line


@dataclasses.dataclass(frozen=True)
class Patch:
    """Ground that belongs to no object: a yard, a bank, a footpath."""

    outline: np.ndarray
    colour: Colour
    finish: Finish


@dataclasses.dataclass(frozen=True)
class Field:
    outline: np.ndarray
    colour: str
    furrow_heading: float
    furrow_period: float


@dataclasses.dataclass(frozen=True)
class Forest:
    outline: np.ndarray


@dataclasses.dataclass(frozen=True)
class Lake:
    outline: np.ndarray
    bank: float  # metres of sand around it


@dataclasses.dataclass(frozen=True)
class River:
    line: np.ndarray
    width: float
    bank: float  # metres of sand on either side


@dataclasses.dataclass(frozen=True)
class Street:
    """A straight street that fills `rect` along its longer side."""

    rect: Rect
    vertical: bool


@dataclasses.dataclass(frozen=True)
class ParkingLot:
    rect: Rect
    aisles_vertical: bool


@dataclasses.dataclass(frozen=True)
class Apron:
    rect: Rect


@dataclasses.dataclass(frozen=True)
class Taxiway:
    rects: tuple[Rect, ...]


@dataclasses.dataclass(frozen=True)
class Runway:
    """Vertical in the layout; `threshold` is the y of the piano keys, or None if none is near."""

    rect: Rect
    threshold: float | None


@dataclasses.dataclass(frozen=True)
class Building:
    """`kind`: gable, hip, flat, corner (an L) or hangar; `length` lies along `heading`."""

    kind: str
    colour: str
    centre: Point
    length: float
    width: float
    heading: float
    height: float

    @property
    def radius(self) -> float:
        """Metres from the middle to a corner."""
        return math.hypot(self.length, self.width) / 2


@dataclasses.dataclass(frozen=True)
class Vehicle:
    """`kind`: car or truck."""

    kind: str
    colour: str
    centre: Point
    heading: float


@dataclasses.dataclass(frozen=True)
class Tree:
    centre: Point
    radius: float


@dataclasses.dataclass(frozen=True)
class Aircraft:
    """`kind`: jet or propeller; `heading` is where the nose points, `accent` the colour of the tail fin."""

    kind: str
    colour: str
    accent: Colour
    centre: Point
    heading: float
    span: float


@dataclasses.dataclass
class Plan:
    """A scene of `extent` metres: what it holds, in lists by kind."""

    theme: str
    extent: float
    patches: list[Patch] = dataclasses.field(default_factory=list)
    fields: list[Field] = dataclasses.field(default_factory=list)
    forests: list[Forest] = dataclasses.field(default_factory=list)
    lakes: list[Lake] = dataclasses.field(default_factory=list)
    rivers: list[River] = dataclasses.field(default_factory=list)
    streets: list[Street] = dataclasses.field(default_factory=list)
    parking_lots: list[ParkingLot] = dataclasses.field(default_factory=list)
    aprons: list[Apron] = dataclasses.field(default_factory=list)
    taxiways: list[Taxiway] = dataclasses.field(default_factory=list)
    runways: list[Runway] = dataclasses.field(default_factory=list)
    buildings: list[Building] = dataclasses.field(default_factory=list)
    vehicles: list[Vehicle] = dataclasses.field(default_factory=list)
    trees: list[Tree] = dataclasses.field(default_factory=list)
    aircraft: list[Aircraft] = dataclasses.field(default_factory=list)

    def dry(self, centre: Point, radius: float) -> bool:
        """Whether a disc keeps clear of the rivers."""
        return all(distance_to_line(centre, river.line) > radius + river.width / 2 for river in self.rivers)
