"""Plans of the full world: themes, districts, street networks in straight, bent and crossing forms, and what test scenes alone show.

A training scene's blocks are divided like a tree (streets end at streets) or as a grid (streets cross, some at roundabouts), straight or
gently curved. A held-out scene has concentric streets around a centre outside of the picture ("crescent"), or, at airports and harbours,
aircraft parked askew and piers that leave the quay at an angle ("diagonal"); its blocks are mixed as in no training scene of the theme.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from data_pipeline.synthetic import airport, country, damage, industry, sports, town, waterfront
from data_pipeline.synthetic.bending import Bend, bend_plan
from data_pipeline.synthetic.plan import Crossing, Plan, River, Roundabout, Street, Tree, Vehicle
from data_pipeline.synthetic.shapes import Frame, Point, Rect, distance_to_line, winding_line

THEMES = (
    *(("airport", 0.27), ("town", 0.12), ("farmland", 0.09), ("lakeland", 0.08)),
    *(("coast", 0.11), ("harbour", 0.13), ("sports", 0.11), ("disaster", 0.09)),
)
Mixture = tuple[tuple[str, float], ...]
# What the blocks of a theme are used for: (use, weight).
BLOCK_USES: dict[str, Mixture] = {
    "airport": (("field", 0.34), ("park", 0.14), ("forest", 0.18), ("houses", 0.12), ("blocks", 0.08), ("parking", 0.08), ("tanks", 0.06)),
    "town": (("houses", 0.38), ("blocks", 0.24), ("parking", 0.11), ("park", 0.06), ("lake", 0.04), ("forest", 0.05), ("sports", 0.12)),
    "farmland": (("field", 0.62), ("forest", 0.14), ("houses", 0.12), ("lake", 0.08), ("park", 0.04)),
    "lakeland": (("lake", 0.36), ("forest", 0.26), ("field", 0.16), ("houses", 0.14), ("park", 0.08)),
    "coast": (("houses", 0.38), ("blocks", 0.14), ("park", 0.14), ("forest", 0.12), ("parking", 0.1), ("sports", 0.12)),
    "harbour": (("tanks", 0.36), ("blocks", 0.34), ("parking", 0.16), ("park", 0.06), ("houses", 0.08)),
    "sports": (("sports", 0.66), ("parking", 0.12), ("park", 0.1), ("houses", 0.12)),
    "disaster": (("houses", 0.5), ("blocks", 0.24), ("field", 0.18), ("park", 0.04), ("forest", 0.04)),
}
# Uses that no training scene of the theme has next to its own ones (beside other districts of very large scenes).
HELD_OUT_USES: dict[str, Mixture] = {
    "airport": (("sports", 0.3), ("lake", 0.3), ("forest", 0.2), ("blocks", 0.2)),
    "town": (("houses", 0.3), ("blocks", 0.25), ("field", 0.25), ("tanks", 0.2)),
    "farmland": (("field", 0.45), ("blocks", 0.2), ("parking", 0.15), ("forest", 0.2)),
    "lakeland": (("lake", 0.35), ("forest", 0.2), ("sports", 0.25), ("blocks", 0.2)),
    "coast": (("field", 0.35), ("tanks", 0.25), ("houses", 0.4)),
    "harbour": (("sports", 0.3), ("forest", 0.2), ("lake", 0.2), ("tanks", 0.3)),
    "sports": (("sports", 0.6), ("field", 0.2), ("lake", 0.2)),
    "disaster": (("houses", 0.4), ("field", 0.2), ("parking", 0.2), ("lake", 0.2)),
}
# Cuts of the land down to this depth are streets; below it they are strips of grass between the fields.
_STREET_DEPTH = {"airport": 1, "farmland": 1, "lakeland": 2}
_ALL_STREETS = 9
_GRID_THEMES = ("town", "coast", "harbour", "sports", "disaster")
_RIVER_SHARE = {"town": 0.12, "farmland": 0.35, "lakeland": 0.3, "sports": 0.08, "disaster": 0.15}
_WET_USES = (("field", 0.7), ("park", 0.3))
# Land wider than this is divided into districts, each with a theme's mixture of its own.
_DISTRICT = 460.0
_DISTRICT_THEMES = (("town", 0.4), ("farmland", 0.2), ("lakeland", 0.12), ("sports", 0.16), ("harbour", 0.12))
_STRAIGHT_SHARE = 0.3
# Where the layout is squeezed more than this, nothing of fixed proportions is laid.
_SQUEEZED = 0.86
# Half the length of a vehicle without its rounded ends, the distance at which two are clear of one another, and the side of the squares
# in which neighbours are looked for.
_KEEL = {"car": 1.4, "truck": 4.4, "bus": 5.1}
_ABREAST = 3.4
_CELL = 16.0
# The land drawn reaches this far beyond the picture's middle, in extents, so that a turned and bent layout covers the picture.
_REACH, _BENT_REACH = 0.72, 0.92


def make_full_plan(extent: float, rng: np.random.Generator, held_out: bool) -> Plan:
    """A plan for a picture of `extent` metres from edge to edge; `held_out` ones are never made for training."""
    plan = Plan(town.pick(THEMES, rng), extent)
    straight = plan.theme in ("airport", "harbour")
    reach = (_REACH if straight else _BENT_REACH) * extent
    bend = _choose_bend(plan, reach, straight, held_out, rng)
    world = Rect(-reach, -reach, reach, reach)
    if rng.random() < _RIVER_SHARE.get(plan.theme, 0.0):
        plan.rivers.append(River(winding_line(reach * 1.5, rng), rng.uniform(13, 22), rng.uniform(1.5, 3)))
    if plan.theme == "airport":
        land = airport.build_airport(plan, world, rng)
        if held_out:
            _park_askew(plan, rng)
    elif plan.theme == "harbour":
        land = waterfront.build_harbour(plan, world, rng, slanted=held_out)
    else:
        land = waterfront.build_coast(plan, world, rng) if plan.theme == "coast" else [world]
    grounds = _Grounds(plan, bend, held_out, rng)
    for rect in land:
        if min(rect.width, rect.height) > 12:
            grounds.settle(rect)
    busy = 1.0 if plan.theme in ("town", "sports", "coast") else 0.5
    standing = len(plan.vehicles)
    for street in plan.streets:
        town.drive(plan, street, busy, rng)
    _send_buses(plan, standing, rng)
    plan.vehicles[standing:] = _without_collisions(plan.vehicles[standing:])
    for circle in plan.roundabouts:
        _clear(plan, circle.centre, circle.radius + 2.5)
        _circle(plan, circle, rng)
    if plan.theme == "disaster":
        damage.strike(plan, rng)
    waterfront.keep_apart(plan)
    bend_plan(plan, bend, rng)
    return plan


def _choose_bend(plan: Plan, reach: float, straight: bool, held_out: bool, rng: np.random.Generator) -> Bend:
    seen = 0.72 * plan.extent
    if straight:
        plan.arrangement = "diagonal" if held_out else "straight"
        return Bend.of(reach)
    if held_out:
        plan.arrangement = "crescent"
        # Lengths along the streets grow from 0.9 at the inner edge of the picture to 1.6 or more at the outer one.
        curvature = rng.uniform(0.34, 0.48) / seen
        return Bend.of(reach, curvature, shift=seen - 0.1 / curvature)
    plan.arrangement = "tree"
    if rng.random() < _STRAIGHT_SHARE:
        return Bend.of(reach)
    period = rng.uniform(1.4, 4.0) * plan.extent
    return Bend.of(reach, rng.uniform(0.12, 0.26) / seen, period, rng.uniform(0, 2 * math.pi))


class _Grounds:
    """Divides land by streets into blocks and gives every block a use."""

    def __init__(self, plan: Plan, bend: Bend, held_out: bool, rng: np.random.Generator):
        self.plan, self.bend, self.held_out, self.rng = plan, bend, held_out, rng
        self.limit = rng.uniform(74, 112)
        self.grid = plan.theme in _GRID_THEMES and rng.random() < 0.55
        if self.grid and plan.arrangement == "tree":
            plan.arrangement = "grid"
        self.builders: dict[str, Callable[[Plan, Rect, np.random.Generator], None]] = {
            "field": country.plant_fields,
            "forest": country.plant_forest,
            "lake": country.dig_lake,
            "park": country.plant_park,
            "houses": _build_gardens,
            "blocks": town.build_blocks,
            "parking": town.build_parking,
            "sports": sports.build_grounds,
            "tanks": industry.build_tanks,
        }

    def settle(self, rect: Rect) -> None:
        """Builds on `rect`; large land is divided into districts, some with another theme's blocks."""
        if max(rect.width, rect.height) <= _DISTRICT:
            self._build_district(rect, self.plan.theme)
            return
        parts, street = _cut(rect, self.rng.uniform(0.4, 0.6), 13.0)
        self.plan.streets.append(street)
        for part in parts:
            if max(part.width, part.height) <= _DISTRICT and self.rng.random() < 0.4:
                self._build_district(part, town.pick(_DISTRICT_THEMES, self.rng))
            else:
                self.settle(part)

    def _build_district(self, rect: Rect, theme: str) -> None:
        uses = (HELD_OUT_USES if self.held_out else BLOCK_USES)[theme]
        # A running track needs a block of its own size.
        limit = self.rng.uniform(130, 190) if theme == "sports" else self.limit
        if self.grid and theme in _GRID_THEMES:
            self._lay_grid(rect, limit, uses)
        else:
            self._divide(rect, limit, 0, _STREET_DEPTH.get(theme, _ALL_STREETS), uses)

    def _divide(self, rect: Rect, limit: float, depth: int, street_depth: int, uses: Mixture) -> None:
        """Cuts `rect` until no side is over `limit` metres; what is left are the blocks."""
        if max(rect.width, rect.height) <= limit:
            self._use(rect, uses)
            return
        is_street = depth < street_depth
        parts, street = _cut(rect, self.rng.uniform(0.4, 0.6), (10.0 if depth == 0 else 8.0) if is_street else 1.0)
        if is_street:
            self.plan.streets.append(street)
        for part in parts:
            self._divide(part, limit, depth + 1, street_depth, uses)

    def _lay_grid(self, rect: Rect, limit: float, uses: Mixture) -> None:
        """Streets that cross: the upright ones run through, the level ones from one to the next."""
        columns, rows = self._stations(rect.x0, rect.x1, limit), self._stations(rect.y0, rect.y1, limit)
        # One street in each direction is the wider.
        widths = [[8.5] * (len(marks) - 2) for marks in (columns, rows)]
        for row in widths:
            if row:
                row[len(row) // 2] = 13.0 if max(rect.width, rect.height) > 200 else 10.0
        x = _edges(columns, widths[0])
        y = _edges(rows, widths[1])
        for number in range(len(widths[0])):
            self.plan.streets.append(Street(Rect(x[number][1], rect.y0, x[number + 1][0], rect.y1), vertical=True))
        for number in range(len(widths[1])):
            for left, right in x:
                self.plan.streets.append(Street(Rect(left, y[number][1], right, y[number + 1][0]), vertical=False))
        zebra = self.rng.random() < 0.6
        for a, across in zip(columns[1:-1], widths[0], strict=True):
            for b, down in zip(rows[1:-1], widths[1], strict=True):
                self._cross((a, b), (across / 2, down / 2), zebra)
        for left, right in x:
            for top, bottom in y:
                self._use(Rect(left, top, right, bottom), uses)

    def _stations(self, start: float, end: float, limit: float) -> list[float]:
        """Where the streets between `start` and `end` run, both ends included."""
        count = max(1, math.ceil((end - start) / limit))
        marks = [start + (end - start) * number / count for number in range(count + 1)]
        jitter = 0.14 * (end - start) / count
        return [mark if number in (0, count) else mark + float(self.rng.uniform(-jitter, jitter)) for number, mark in enumerate(marks)]

    def _cross(self, centre: Point, half: Point, zebra: bool) -> None:
        near = any(math.dist(centre, circle.centre) < 90 for circle in self.plan.roundabouts)
        if not near and self.rng.random() < 0.22 and max(half) < 6:
            self.plan.roundabouts.append(Roundabout(centre, float(self.rng.uniform(12.5, 16.0))))
            return
        self.plan.crossings.append(Crossing(Frame(0.0, centre), half, zebra and bool(self.rng.random() < 0.7)))

    def _use(self, rect: Rect, uses: Mixture) -> None:
        plan, inner = self.plan, rect.inset(1.5)
        wet = any(distance_to_line(rect.centre, river.line) < rect.radius + river.width / 2 for river in plan.rivers)
        use = town.pick(_WET_USES if wet else uses, self.rng)
        middle = self.bend.move(np.array(inner.centre))
        stretch = self.bend.stretch_at(inner.centre)
        if min(inner.width, inner.height) < (10 if use != "sports" else 24):
            use = "park"
        if use in ("sports", "parking") and stretch < _SQUEEZED:
            use = "park"
        # The corners of the land are out of the picture however it is turned.
        seen = math.hypot(*middle) - inner.radius * max(1.0, stretch) < plan.extent * math.sqrt(0.5) + 10
        if seen and min(inner.width, inner.height) > 4:
            self.builders[use](plan, inner, self.rng)


def _cut(rect: Rect, share: float, width: float) -> tuple[list[Rect], Street]:
    """Both parts of `rect` beside a street of `width` across its longer side."""
    if vertical := rect.width >= rect.height:
        x = rect.x0 + share * rect.width
        gap = Rect(x - width / 2, rect.y0, x + width / 2, rect.y1)
        return [Rect(rect.x0, rect.y0, gap.x0, rect.y1), Rect(gap.x1, rect.y0, rect.x1, rect.y1)], Street(gap, vertical)
    y = rect.y0 + share * rect.height
    gap = Rect(rect.x0, y - width / 2, rect.x1, y + width / 2)
    return [Rect(rect.x0, rect.y0, rect.x1, gap.y0), Rect(rect.x0, gap.y1, rect.x1, rect.y1)], Street(gap, vertical)


def _edges(marks: list[float], widths: list[float]) -> list[tuple[float, float]]:
    """The blocks [start, end] between streets of `widths` at the inner `marks`."""
    starts = [marks[0], *(mark + width / 2 for mark, width in zip(marks[1:-1], widths, strict=True))]
    ends = [*(mark - width / 2 for mark, width in zip(marks[1:-1], widths, strict=True)), marks[-1]]
    return list(zip(starts, ends, strict=True))


def _build_gardens(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    first = len(plan.buildings)
    town.build_houses(plan, rect, rng)
    if len(plan.buildings) > first:
        sports.dig_garden_pools(plan, rect, plan.buildings[first:], rng)


def _park_askew(plan: Plan, rng: np.random.Generator) -> None:
    """Turns all parked aircraft by the same angle, far from the right angles at which they stand in training."""
    turn = float(rng.choice([-1, 1])) * rng.uniform(0.62, 0.95)
    plan.aircraft = [dataclasses.replace(plane, heading=plane.heading + turn) for plane in plan.aircraft]


def _send_buses(plan: Plan, first: int, rng: np.random.Generator) -> None:
    """Makes buses of some of the trucks from vehicle number `first` on, those in the streets."""
    for number in range(first, len(plan.vehicles)):
        if plan.vehicles[number].kind == "truck" and rng.random() < 0.45:
            colour = town.pick((("red", 0.35), ("yellow", 0.25), ("white", 0.2), ("blue", 0.2)), rng)
            plan.vehicles[number] = dataclasses.replace(plan.vehicles[number], kind="bus", colour=colour)


def _without_collisions(vehicles: list[Vehicle]) -> list[Vehicle]:
    """Those of `vehicles` that touch none before them: where streets meet, two may want the same place."""
    taken: dict[tuple[int, int], list[list[Point]]] = {}
    kept = []
    for vehicle in vehicles:
        x, y = vehicle.centre
        reach = _KEEL[vehicle.kind]
        dx, dy = reach * math.cos(vehicle.heading), reach * math.sin(vehicle.heading)
        keel = [(x - dx, y - dy), (x - dx / 3, y - dy / 3), (x + dx / 3, y + dy / 3), (x + dx, y + dy)]
        cell = (math.floor(x / _CELL), math.floor(y / _CELL))
        near = (other for a in (-1, 0, 1) for b in (-1, 0, 1) for other in taken.get((cell[0] + a, cell[1] + b), ()))
        if all(math.dist(p, q) > _ABREAST for other in near for p in keel for q in other):
            taken.setdefault(cell, []).append(keel)
            kept.append(vehicle)
    return kept


def _clear(plan: Plan, centre: Point, radius: float) -> None:
    """Takes away all that stands within `radius` metres of `centre`."""
    for name in ("buildings", "trees", "tanks", "vehicles"):
        kept = [thing for thing in getattr(plan, name) if math.dist(thing.centre, centre) > radius + getattr(thing, "radius", 2.5)]
        setattr(plan, name, kept)
    plan.grounds = [g for g in plan.grounds if math.dist(g.frame.centre, centre) > radius + math.hypot(g.length, g.width) / 2]
    plan.crates = [c for c in plan.crates if math.dist(c.outline.mean(0), centre) > radius + 7.0]


def _circle(plan: Plan, circle: Roundabout, rng: np.random.Generator) -> None:
    """Cars that go round (clockwise on the picture's mirror: they keep to the right), and trees on the island."""
    start = rng.uniform(0, 2 * math.pi)
    lane = 0.78 * circle.radius
    for number in range(int(rng.integers(0, 4))):
        angle = start + number * 2.1
        centre = (circle.centre[0] + lane * math.cos(angle), circle.centre[1] + lane * math.sin(angle))
        plan.vehicles.append(Vehicle("car", town.car_colour(rng), centre, angle - math.pi / 2))
    for _ in range(int(rng.integers(1, 5))):
        angle, arm = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.28) * circle.radius
        centre = (circle.centre[0] + arm * math.cos(angle), circle.centre[1] + arm * math.sin(angle))
        plan.trees.append(Tree(centre, rng.uniform(1.5, 2.4)))
