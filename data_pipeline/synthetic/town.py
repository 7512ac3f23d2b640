"""Built land: houses with gardens, large buildings, parking lots, streets and what drives on them."""

from __future__ import annotations

import math

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.country import scatter_trees
from data_pipeline.synthetic.plan import Building, ParkingLot, Patch, Plan, Street, Vehicle
from data_pipeline.synthetic.shapes import Rect

_HOUSE_COLOURS = (("red", 0.42), ("brown", 0.2), ("grey", 0.2), ("blue", 0.1), ("white", 0.08))
_BLOCK_COLOURS = (("white", 0.34), ("grey", 0.3), ("blue", 0.14), ("red", 0.12), ("brown", 0.1))
_CAR_COLOURS = (("white", 0.34), ("black", 0.2), ("red", 0.2), ("blue", 0.16), ("yellow", 0.1))
STALL_WIDTH, STALL_LENGTH, AISLE = 2.7, 5.2, 6.4


def pick(weighted: tuple[tuple[str, float], ...], rng: np.random.Generator) -> str:
    """One of the names, with its weight."""
    mark = rng.random() * sum(weight for _, weight in weighted)
    for name, weight in weighted:
        mark -= weight
        if mark < 0:
            return name
    return weighted[-1][0]


def car_colour(rng: np.random.Generator) -> str:
    """A colour for a car, by how common it is."""
    return pick(_CAR_COLOURS, rng)


def build_houses(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    """Houses in rows along the two longer sides of the block, with driveways, cars and gardens."""
    plan.patches.append(Patch(rect.corners(), palette.jittered(palette.LAWN, rng), palette.GRASSY))
    first = len(plan.buildings)
    along_x = rect.width >= rect.height
    length, depth = (rect.width, rect.height) if along_x else (rect.height, rect.width)
    rows = ((0.0, 1),) if depth < 44 else ((0.0, 1), (depth, -1))
    for edge, inwards in rows:
        at = rng.uniform(9, 12)
        while at < length - 8:
            front, side = rng.uniform(11, 17), rng.uniform(9, 12.5)
            away = min(rng.uniform(4.5, 7.5) + side / 2, depth / 2)
            _build_house(plan, rect, along_x, at, edge, inwards, away, front, side, rng)
            at += front / 2 + rng.uniform(5, 9) + 7
    scatter_trees(plan, rect.inset(1), int(rect.width * rect.height / 230), rng, plan.buildings[first:])


def _build_house(
    plan: Plan,
    rect: Rect,
    along_x: bool,
    at: float,
    edge: float,
    inwards: int,
    away: float,
    front: float,
    side: float,
    rng: np.random.Generator,
) -> None:
    def place(u: float, v: float) -> tuple[float, float]:
        return (rect.x0 + u, rect.y0 + v) if along_x else (rect.x0 + v, rect.y0 + u)

    centre = place(at, edge + inwards * away)
    if not plan.dry(centre, max(front, side) * 0.75):
        return
    heading = (0.0 if along_x else math.pi / 2) + rng.normal(0, 0.03)
    kind = pick((("gable", 0.5), ("hip", 0.32), ("corner", 0.18)), rng)
    plan.buildings.append(Building(kind, pick(_HOUSE_COLOURS, rng), centre, front, side, heading, rng.uniform(4, 6.5)))
    drive = at + front / 2 + 2.0
    near, far = edge, edge + inwards * (away + side * 0.2)
    corners = np.array([place(drive - 1.6, near), place(drive + 1.6, near), place(drive + 1.6, far), place(drive - 1.6, far)])
    plan.patches.append(Patch(corners, palette.jittered(palette.PAVEMENT, rng), palette.PAVED))
    if rng.random() < 0.45:
        spot = place(drive, edge + inwards * (away - 1.0))
        plan.vehicles.append(Vehicle("car", car_colour(rng), spot, math.pi / 2 if along_x else 0.0))


def build_blocks(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    """One or two large buildings on a paved yard with a truck or some cars, a green strip around."""
    plan.patches.append(Patch(rect.corners(), palette.jittered(palette.LAWN, rng), palette.GRASSY))
    first = len(plan.buildings)
    yard = rect.inset(3)
    plan.patches.append(Patch(yard.corners(), palette.jittered(palette.PAVEMENT, rng), palette.PAVED))
    halves = [yard]
    if max(rect.width, rect.height) > 62:
        x, y = yard.centre
        if yard.width > yard.height:
            halves = [Rect(yard.x0, yard.y0, x, yard.y1), Rect(x, yard.y0, yard.x1, yard.y1)]
        else:
            halves = [Rect(yard.x0, yard.y0, yard.x1, y), Rect(yard.x0, y, yard.x1, yard.y1)]
    for half in halves:
        inner = half.inset(min(6.0, 0.14 * min(half.width, half.height)))
        length, width = inner.width * rng.uniform(0.62, 0.96), min(inner.height * rng.uniform(0.55, 0.85), 36.0)
        centre = (inner.centre[0], inner.y0 + width / 2 + rng.uniform(0, 0.3) * (inner.height - width))
        if not plan.dry(centre, max(length, width) * 0.6):
            continue
        kinds = (("flat", 0.5), ("hip", 0.18), ("gable", 0.12), ("corner", 0.2 if min(length, width) > 14 else 0.0))
        kind = pick(kinds, rng)
        plan.buildings.append(Building(kind, pick(_BLOCK_COLOURS, rng), centre, length, width, 0.0, rng.uniform(6, 13)))
        bottom = centre[1] + width / 2
        if half.y1 - bottom > 6:
            for spot in np.arange(half.x0 + 4, half.x1 - 4, 8.0):
                _park_at(plan, (float(spot), half.y1 - 4.0), rng)
    scatter_trees(plan, Rect(rect.x0, rect.y0, rect.x1, rect.y0 + 6), 4, rng, plan.buildings[first:])


def _park_at(plan: Plan, spot: tuple[float, float], rng: np.random.Generator) -> None:
    choice = rng.random()
    if choice < 0.15:
        plan.vehicles.append(Vehicle("truck", pick(_CAR_COLOURS, rng), spot, 0.0))
    elif choice < 0.42:
        plan.vehicles.append(Vehicle("car", car_colour(rng), spot, math.pi / 2))


def build_parking(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    """A parking lot that fills the block but for a green border; between a third and nine tenths of the stalls are taken."""
    plan.patches.append(Patch(rect.corners(), palette.jittered(palette.LAWN, rng), palette.GRASSY))
    lot = rect.inset(2.5)
    vertical = lot.height > lot.width
    plan.parking_lots.append(ParkingLot(lot, vertical))
    filling = rng.uniform(0.3, 0.85)
    for centre, heading in stalls(lot, vertical):
        if rng.random() < filling:
            plan.vehicles.append(Vehicle("car", car_colour(rng), centre, heading + math.pi * int(rng.integers(2))))


def stall_rows(lot: Rect, vertical: bool) -> list[float]:
    """Where each row of stalls begins, measured across the aisles."""
    depth = lot.width if vertical else lot.height
    rows, at, pair = [], 1.0, 0
    while at + STALL_LENGTH <= depth - 0.5:
        rows.append(at)
        # Rows stand back to back in pairs, an aisle between the pairs; the first row stands alone.
        at += STALL_LENGTH + (0.0 if pair % 2 else AISLE)
        pair += 1
    return rows


def stalls(lot: Rect, vertical: bool) -> list[tuple[tuple[float, float], float]]:
    """Centre and heading of every stall."""
    length = lot.height if vertical else lot.width
    places = []
    for row in stall_rows(lot, vertical):
        across = row + STALL_LENGTH / 2
        for number in range(int((length - 2) / STALL_WIDTH)):
            along = 1 + (number + 0.5) * STALL_WIDTH
            centre = (lot.x0 + across, lot.y0 + along) if vertical else (lot.x0 + along, lot.y0 + across)
            places.append((centre, 0.0 if vertical else math.pi / 2))
    return places


def drive(plan: Plan, street: Street, busy: float, rng: np.random.Generator) -> None:
    """Cars and now and then a truck on the two lanes of `street`; `busy` 1 is a town's traffic."""
    rect = street.rect
    length, width = (rect.height, rect.width) if street.vertical else (rect.width, rect.height)
    for lane, forwards in ((0.26, True), (-0.26, False)):
        at = rng.uniform(0, 40) / busy
        while at < length:
            kind = "truck" if rng.random() < 0.1 else "car"
            x, y = rect.centre
            if street.vertical:
                centre, heading = (x - lane * width, rect.y0 + at), math.pi / 2
            else:
                centre, heading = (rect.x0 + at, y + lane * width), 0.0
            plan.vehicles.append(Vehicle(kind, car_colour(rng), centre, heading if forwards else heading + math.pi))
            at += rng.uniform(18, 75) / busy
