"""Bends a straight layout: streets become curves, and all that stands along them follows."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipeline.synthetic.plan import Building, Crate, Field, ParkingLot, Plan, Road, Sea, Street, Vehicle
from data_pipeline.synthetic.shapes import Frame, Point, Rect, densified

_STEP = 6.0  # metres between the corners of a bent edge
_KERB_OVERLAP = 1.2  # the ends of a street reach over the pavement of the one that it runs into
# How far a thing of fixed proportions may be stretched to fill its bent place.
_LEAST_STRETCH, _MOST_STRETCH = 0.82, 1.25


@dataclasses.dataclass(frozen=True)
class Bend:
    """Lines of equal x become curves that keep their distance from one another, lines of equal y their normals.

    `heading` [n] is how far the normal is turned at each of `stations` [n] (metres of y), `curve` [n, 2] where x = 0 runs.
    """

    stations: np.ndarray
    heading: np.ndarray
    curve: np.ndarray

    @classmethod
    def of(cls, reach: float, curvature: float = 0.0, period: float | None = None, phase: float = 0.0, shift: float = 0.0) -> Bend:
        """An arc of `curvature` (1 / metres), or one whose curvature swings along y with `period` metres.

        The picture's centre lies on the line x = 0, `shift` metres farther out than where lengths along y are kept.
        """
        stations = np.arange(-1.4 * reach, 1.4 * reach + 2.0, 2.0)
        bent = np.full(len(stations), curvature) if period is None else curvature * np.cos(stations * (2 * math.pi / period) + phase)
        middle = len(stations) // 2
        heading = np.cumsum(bent) * 2.0
        heading -= heading[middle]
        steps = np.stack([-np.sin(heading), np.cos(heading)], axis=1) * (2.0 * (1 + shift * bent))[:, None]
        curve = np.cumsum(steps, axis=0)
        return cls(stations, heading, curve - curve[middle])

    @functools.cached_property
    def straight(self) -> bool:
        """Whether nothing moves."""
        return not self.heading.any()

    def move(self, points: np.ndarray) -> np.ndarray:
        """`points` [..., 2] of the straight layout in the bent one."""
        points = np.asarray(points, float)
        if self.straight:
            return points
        y = points[..., 1]
        turn = np.interp(y, self.stations, self.heading)
        base = np.stack([np.interp(y, self.stations, self.curve[:, axis]) for axis in (0, 1)], axis=-1)
        return base + points[..., :1] * np.stack([np.cos(turn), np.sin(turn)], axis=-1)

    def outline(self, points: np.ndarray) -> np.ndarray:
        """The closed outline `points` [n, 2] bent, with as many corners [m, 2] as its edges need."""
        return points if self.straight else self.move(densified(points, _STEP))

    def turn_at(self, point: Point) -> float:
        """By how much what stands at `point` turns, in radians."""
        return float(np.interp(point[1], self.stations, self.heading))

    def stretch_at(self, point: Point) -> float:
        """How much longer lengths along y become at `point`."""
        x, y = point
        low, high = self.move(np.array([[x, y - 4.0], [x, y + 4.0]]))
        return math.dist(low, high) / 8.0

    def frame_at(self, point: Point) -> Frame:
        """The frame that stands at `point` and is stretched as the layout is there."""
        stretch = min(_MOST_STRETCH, max(_LEAST_STRETCH, self.stretch_at(point)))
        return Frame(self.turn_at(point), _point(self.move(np.array(point))), (1.0, stretch))

    def rigid_at(self, frame: Frame) -> Frame:
        """`frame` of the straight layout, moved and turned with its origin but not stretched."""
        return Frame(frame.heading + self.turn_at(frame.centre), _point(self.move(np.array(frame.centre))), frame.stretch)


def bend_plan(plan: Plan, bend: Bend, rng: np.random.Generator) -> None:
    """Moves everything in `plan`; streets become roads, fields get the curved tracks of their machines."""

    def placed(things: list, reach: float) -> Iterator[tuple[Any, Point, float]]:
        """Those that may be in the picture, with their new centre and how far they turn; none reaches farther than `reach` metres."""
        if things:
            centres = np.array([thing.centre for thing in things])
            moved, turns = bend.move(centres), np.interp(centres[:, 1], bend.stations, bend.heading)
            near = np.hypot(moved[:, 0], moved[:, 1]) < plan.extent * math.sqrt(0.5) + reach
            for number in np.flatnonzero(near).tolist():
                yield things[number], _point(moved[number]), float(turns[number])

    def moved(things: list, reach: float) -> list:
        return [dataclasses.replace(thing, centre=centre) for thing, centre, _ in placed(things, reach)]

    def seen(things: list) -> list:
        """Those whose outline may be in the picture."""
        return [thing for thing in things if _reaches(thing.outline, bend, plan.extent)]

    def outlined(things: list) -> list:
        return [dataclasses.replace(thing, outline=bend.outline(thing.outline)) for thing in seen(things)]

    lots = [(lot.rect, bend.frame_at(lot.rect.centre)) for lot in plan.parking_lots]
    plan.vehicles = [
        _parked(vehicle, lots) or dataclasses.replace(vehicle, centre=centre, heading=vehicle.heading + turn)
        for vehicle, centre, turn in placed(plan.vehicles, 12.0)
    ]
    plan.parking_lots = [_framed_lot(lot, frame) for lot, (_, frame) in zip(plan.parking_lots, lots, strict=True)]
    plan.buildings = [
        _stretched(dataclasses.replace(building, centre=centre, heading=building.heading + turn), bend.stretch_at(building.centre), turn)
        for building, centre, turn in placed(plan.buildings, 60.0)
    ]
    plan.patches, plan.beaches = outlined(plan.patches), outlined(plan.beaches)
    plan.fields = [_bent_field(field, bend, rng) for field in seen(plan.fields)]
    plan.forests, plan.lakes = outlined(plan.forests), outlined(plan.lakes)
    plan.rivers = [dataclasses.replace(river, line=bend.move(river.line)) for river in plan.rivers]
    plan.seas = [Sea(bend.outline(sea.outline), bend.move(sea.shore)) for sea in plan.seas]
    roads = [_road(street, bend) for street in plan.streets]
    # Their points are a few metres apart, so that a road which is seen has one near.
    plan.roads = [road for road in roads if np.hypot(road.line[:, 0], road.line[:, 1]).min() < plan.extent * math.sqrt(0.5) + 20]
    plan.streets = []
    plan.crossings = [dataclasses.replace(crossing, frame=bend.rigid_at(crossing.frame)) for crossing in plan.crossings]
    plan.piers = [dataclasses.replace(pier, frame=bend.rigid_at(pier.frame)) for pier in plan.piers]
    plan.grounds = [dataclasses.replace(ground, frame=bend.rigid_at(ground.frame)) for ground in plan.grounds]
    plan.ships = [dataclasses.replace(ship, centre=centre, heading=ship.heading + turn) for ship, centre, turn in placed(plan.ships, 200.0)]
    plan.trees, plan.tanks, plan.roundabouts = moved(plan.trees, 12.0), moved(plan.tanks, 60.0), moved(plan.roundabouts, 30.0)
    plan.crates = [_moved_crate(crate, bend) for crate in plan.crates]
    plan.parasols = [_moved_crate(parasol, bend) for parasol in plan.parasols]


def _reaches(outline: np.ndarray, bend: Bend, extent: float) -> bool:
    low, high = outline.min(0), outline.max(0)
    middle = bend.move((low + high) / 2)
    # Lengths along the streets may be twice as long in the bent layout.
    return math.hypot(*middle) < extent * math.sqrt(0.5) + math.hypot(*(high - low)) + 10.0


def _point(place: np.ndarray) -> Point:
    return float(place[0]), float(place[1])


def _parked(vehicle: Vehicle, lots: list[tuple[Rect, Frame]]) -> Vehicle | None:
    """A vehicle on a parking lot stays in its stall; None for the others."""
    x, y = vehicle.centre
    for rect, frame in lots:
        if rect.x0 < x < rect.x1 and rect.y0 < y < rect.y1:
            place = frame.place(np.array([[x - rect.centre[0], y - rect.centre[1]]]))[0]
            return dataclasses.replace(vehicle, centre=_point(place), heading=vehicle.heading + frame.heading)
    return None


def _framed_lot(lot: ParkingLot, frame: Frame) -> ParkingLot:
    x, y = lot.rect.centre
    local = Rect(lot.rect.x0 - x, lot.rect.y0 - y, lot.rect.x1 - x, lot.rect.y1 - y)
    return ParkingLot(local, lot.aisles_vertical, frame)


def _stretched(building: Building, stretch: float, turn: float) -> Building:
    """`building`, turned by `turn`, is stretched along what was the layout's y."""
    stretch = min(_MOST_STRETCH, max(_LEAST_STRETCH, stretch))
    if abs(math.sin(building.heading - turn)) > 0.7:
        return dataclasses.replace(building, length=building.length * stretch)
    return dataclasses.replace(building, width=building.width * stretch)


def _road(street: Street, bend: Bend) -> Road:
    r, (x, y) = street.rect, street.rect.centre
    start, end = (r.y0, r.y1) if street.vertical else (r.x0, r.x1)
    at = np.linspace(start - _KERB_OVERLAP, end + _KERB_OVERLAP, max(2, math.ceil((end - start) / _STEP)) + 1)
    line = np.stack([np.full_like(at, x), at] if street.vertical else [at, np.full_like(at, y)], axis=1)
    return Road(bend.move(line), r.width if street.vertical else r.height)


def _bent_field(field: Field, bend: Bend, rng: np.random.Generator) -> Field:
    lower, upper = field.outline.min(0) + 3.5, field.outline.max(0) - 3.5
    along = 0 if abs(math.cos(field.furrow_heading)) > 0.7 else 1
    tracks = []
    if (upper > lower + 6).all():
        walk = np.linspace(lower[along], upper[along], max(2, math.ceil((upper[along] - lower[along]) / _STEP)))
        for at in np.arange(lower[1 - along] + rng.uniform(3, 9), upper[1 - along] - 2, 13.0):
            for wheel in (0.0, 1.9):
                near, far = np.full_like(walk, at + wheel), np.full_like(walk, at + wheel + 0.5)
                sides = [np.stack([walk, side] if along == 0 else [side, walk], axis=1) for side in (near, far)]
                tracks.append(bend.move(np.concatenate([sides[0], sides[1][::-1]])))
    middle = tuple(field.outline.mean(0))
    return dataclasses.replace(
        field,
        outline=bend.outline(field.outline),
        furrow_heading=field.furrow_heading + bend.turn_at(middle),
        tracks=tuple(tracks),
    )


def _moved_crate(crate: Crate, bend: Bend) -> Crate:
    middle = _point(crate.outline.mean(0))
    frame = bend.rigid_at(Frame(0.0, middle))
    return dataclasses.replace(crate, outline=frame.place(crate.outline - middle))
