"""What stands where in a scene, before anything is drawn: plain data in metres."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from data_pipeline.synthetic.palette import Colour, Finish
from data_pipeline.synthetic.shapes import Frame, Point, Rect, distance_to_line


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
    tracks: tuple[np.ndarray, ...] | None = None  # of wheels, as outlines; None: straight along the furrows
    flooded: bool = False


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
    """`rect` is upright in the layout, or in `frame` where there is one."""

    rect: Rect
    aisles_vertical: bool
    frame: Frame | None = None


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
    """`kind`: gable, hip, flat, corner (an L) or hangar; `length` lies along `heading`; `damage`: collapsed, burnt, holed or None."""

    kind: str
    colour: str
    centre: Point
    length: float
    width: float
    heading: float
    height: float
    damage: str | None = None

    @property
    def radius(self) -> float:
        """Metres from the middle to a corner."""
        return math.hypot(self.length, self.width) / 2


@dataclasses.dataclass(frozen=True)
class Vehicle:
    """`kind`: car, truck or bus."""

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


@dataclasses.dataclass(frozen=True)
class Road:
    """A road along the curve `line` [n, 2], pavements included in its `width`."""

    line: np.ndarray
    width: float


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Where two streets meet on the layout's axes: `half` of the widths of the upright and of the level one; zebra stripes or none."""

    frame: Frame
    half: Point
    zebra: bool


@dataclasses.dataclass(frozen=True)
class Roundabout:
    centre: Point
    radius: float


@dataclasses.dataclass(frozen=True)
class Sea:
    outline: np.ndarray
    shore: np.ndarray  # [n, 2], the part of the outline that is land's edge


@dataclasses.dataclass(frozen=True)
class Beach:
    outline: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pier:
    """`rects` of one pier in its `frame`, whose +x leads out to sea; of planks or of concrete."""

    frame: Frame
    rects: tuple[Rect, ...]
    wooden: bool


@dataclasses.dataclass(frozen=True)
class Ship:
    """`kind`: cargo ship, tanker, ferry, fishing boat, sailing boat or motorboat; `heading` is where the bow points."""

    kind: str
    colour: str
    centre: Point
    heading: float
    length: float
    width: float
    moving: bool


@dataclasses.dataclass(frozen=True)
class SportsGround:
    """`category`: tennis court, football pitch, running track, basketball court or swimming pool; its length lies along x of `frame`."""

    category: str
    colour: str | None
    frame: Frame
    length: float
    width: float


@dataclasses.dataclass(frozen=True)
class StorageTank:
    centre: Point
    radius: float
    height: float
    colour: str


@dataclasses.dataclass(frozen=True)
class Crate:
    """A container, a parasol, a heap: stands on the convex clockwise `outline` and belongs to no object."""

    outline: np.ndarray
    colour: Colour
    height: float


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
    roads: list[Road] = dataclasses.field(default_factory=list)
    crossings: list[Crossing] = dataclasses.field(default_factory=list)
    roundabouts: list[Roundabout] = dataclasses.field(default_factory=list)
    seas: list[Sea] = dataclasses.field(default_factory=list)
    beaches: list[Beach] = dataclasses.field(default_factory=list)
    piers: list[Pier] = dataclasses.field(default_factory=list)
    ships: list[Ship] = dataclasses.field(default_factory=list)
    grounds: list[SportsGround] = dataclasses.field(default_factory=list)
    tanks: list[StorageTank] = dataclasses.field(default_factory=list)
    crates: list[Crate] = dataclasses.field(default_factory=list)
    parasols: list[Crate] = dataclasses.field(default_factory=list)
    # How the blocks and streets lie: see districts.py. Whether the scene shows a disaster, so that every building is damaged or intact.
    arrangement: str = "tree"
    struck: bool = False

    def dry(self, centre: Point, radius: float) -> bool:
        """Whether a disc keeps clear of the rivers."""
        return all(distance_to_line(centre, river.line) > radius + river.width / 2 for river in self.rivers)
