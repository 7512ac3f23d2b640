"""Paints a plan from the ground up and numbers what it paints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.grammar.labels import LabelledObject
from data_pipeline.synthetic import aircraft, buildings, damage, ground, grounds, industry, objects, roads, ships, waters
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.conditions import Conditions
from data_pipeline.synthetic.plan import Building, ParkingLot, Plan, Vehicle
from data_pipeline.synthetic.shapes import Frame


class _Register:
    """Hands out the numbers of the objects."""

    def __init__(self, conditions: Conditions):
        self.conditions = conditions
        self.objects: list[LabelledObject] = []

    def add(self, category: str, colour: str | None = None, **facts: Any) -> int:
        if not self.conditions.shows_colour_of(category):
            colour = None
        self.objects.append(LabelledObject(len(self.objects) + 1, category, colour, **facts))
        return len(self.objects)


def paint(canvas: Canvas, plan: Plan, rng: np.random.Generator, conditions: Conditions = Conditions()) -> tuple[LabelledObject, ...]:
    """Paints everything in `plan` and returns the objects in the order of their numbers."""
    things = _Register(conditions)
    _paint_flat(canvas, plan, things, rng)
    _paint_afloat(canvas, plan, things, rng)
    _paint_standing(canvas, plan, things, rng)
    return tuple(things.objects)


def _paint_flat(canvas: Canvas, plan: Plan, things: _Register, rng: np.random.Generator) -> None:
    ground.draw_land(canvas, plan, rng)
    for field in plan.fields:
        if field.flooded:
            ground.draw_flooded_field(canvas, field, things.add("field", state="flooded"), rng)
        else:
            ground.draw_field(canvas, field, things.add("field", colour=field.colour), rng)
    flat: list[tuple[str, list, Callable]] = [
        ("lake", plan.lakes, ground.draw_lake),
        ("river", plan.rivers, ground.draw_river),
        ("sea", plan.seas, waters.draw_sea),
        ("beach", plan.beaches, waters.draw_beach),
        ("parking lot", plan.parking_lots, _paint_parking_lot),
        ("apron", plan.aprons, ground.draw_apron),
        ("taxiway", plan.taxiways, ground.draw_taxiway),
        ("runway", plan.runways, ground.draw_runway),
    ]
    for category, items, draw in flat:
        for item in items:
            draw(canvas, item, things.add(category), rng)
    # A pitch may lie inside a track.
    for sport in sorted(plan.grounds, key=lambda sport: sport.category != "running track"):
        if canvas.sees(np.array(sport.frame.centre), math.hypot(sport.length, sport.width)):
            grounds.draw_ground(canvas, sport, things.add(sport.category, colour=sport.colour), rng)
    if plan.roads:
        roads.draw_roads(canvas, plan, things.add("road"), rng)
    else:
        ground.draw_streets(canvas, plan.streets, things.add("road"), rng)


def _paint_parking_lot(canvas: Canvas, lot: ParkingLot, owner: int, rng: np.random.Generator) -> None:
    with canvas.moved(lot.frame or Frame(0.0, (0.0, 0.0))):
        ground.draw_parking_lot(canvas, lot, owner, rng)


def _paint_afloat(canvas: Canvas, plan: Plan, things: _Register, rng: np.random.Generator) -> None:
    water = next((thing.number for thing in things.objects if thing.category == "sea"), 0)
    fleet = _seen(canvas, plan.ships, 200.0)
    for ship in fleet:
        ships.draw_wake(canvas, ship, water)
    for pier in plan.piers:
        waters.draw_pier(canvas, pier, things.add("pier"), rng)
    for ship in fleet:
        facts = {"colour": ship.colour, "heading": _seen_heading(canvas, ship.heading), "kind": ship.kind}
        ships.draw_ship(canvas, ship, things.add("ship", **facts, state="moving" if ship.moving else "moored"), rng)


def _paint_standing(canvas: Canvas, plan: Plan, things: _Register, rng: np.random.Generator) -> None:
    """What throws shadows: within a kind all shadows come first, so that they fall on the ground and not on their neighbours."""
    vehicles = _seen(canvas, plan.vehicles, 10.0)
    for kind in ("car", "truck", "bus"):
        alike: list[Vehicle] = [vehicle for vehicle in vehicles if vehicle.kind == kind]
        objects.draw_vehicles(canvas, kind, alike, [things.add(kind, colour=vehicle.colour) for vehicle in alike], rng)
    crates = [*plan.crates, *(plan.parasols if things.conditions.bathing else [])]
    industry.draw_crates(canvas, [crate for crate in crates if canvas.sees(crate.outline.mean(0), 16.0)])
    tanks = _seen(canvas, plan.tanks, 40.0)
    for tank in tanks:
        industry.shade_tank(canvas, tank)
    for tank in tanks:
        industry.draw_tank(canvas, tank, things.add("storage tank", colour=tank.colour), rng)
    houses = _seen(canvas, plan.buildings, 48.0)
    for house in houses:
        if house.damage in (None, "holed"):
            buildings.shade_building(canvas, house)
    for house in houses:
        _paint_building(canvas, plan, house, things, rng)
    forest_leaves, tree_leaves = things.conditions.forest, things.conditions.trees
    for forest in plan.forests:
        objects.draw_forest(canvas, forest, things.add("forest"), rng, forest_leaves)
    objects.draw_trees(canvas, _seen(canvas, plan.trees, 10.0), things.add("tree"), rng, tree_leaves)
    for plane in _seen(canvas, plan.aircraft, 40.0):
        number = things.add("aircraft", colour=plane.colour, heading=_seen_heading(canvas, plane.heading), kind=plane.kind)
        aircraft.draw_aircraft(canvas, plane, number, rng)


def _paint_building(canvas: Canvas, plan: Plan, house: Building, things: _Register, rng: np.random.Generator) -> None:
    state = ("damaged" if house.damage else "intact") if plan.struck else None
    if house.damage in ("collapsed", "burnt"):
        damage.draw_ruin(canvas, house, things.add("building", state=state), rng)
        return
    number = things.add("building", colour=house.colour, kind=house.kind, state=state)
    if house.damage:
        damage.draw_ruin(canvas, house, number, rng)
    else:
        buildings.draw_building(canvas, house, number, rng)


def _seen_heading(canvas: Canvas, heading: float) -> float:
    return (heading + canvas.view.heading) % (2 * math.pi)


def _seen(canvas: Canvas, things: list, reach: float) -> list:
    """Those that may be seen: no part and no shadow of a thing is farther than `reach` metres from its centre."""
    if not things:
        return []
    return [thing for thing, seen in zip(things, canvas.sees([thing.centre for thing in things], reach), strict=True) if seen]
