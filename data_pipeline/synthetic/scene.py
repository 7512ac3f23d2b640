"""A drawn scene: the picture, and for every pixel the object and the part that is seen there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.grammar.labels import LabelledObject
from data_pipeline.synthetic import aircraft, buildings, ground, objects, shading
from data_pipeline.synthetic.canvas import Canvas, View
from data_pipeline.synthetic.layout import make_plan
from data_pipeline.synthetic.plan import Plan


@dataclasses.dataclass(frozen=True)
class Scene:
    """`image` uint8 [h, w, 3]; `object_map` int32 [h, w], 0 where nothing named is seen; `part_map` int32 [h, w], 0 outside of parts."""

    image: np.ndarray
    object_map: np.ndarray
    part_map: np.ndarray
    objects: tuple[LabelledObject, ...]
    theme: str
    metres_per_pixel: float


def default_metres_per_pixel(size: int) -> float:
    """A ground sampling distance at which a picture of `size` pixels shows some whole blocks, and small pictures are not all specks."""
    return max(0.25, 0.6 * (256 / size) ** 0.75)


def draw_scene(key: tuple[int, ...], size: int, metres_per_pixel: float | None = None) -> Scene:
    """The scene with the seed `key` at `size` x `size` pixels; nothing but the three arguments decides it."""
    metres_per_pixel = metres_per_pixel or default_metres_per_pixel(size)
    plan_rng, view_rng, paint_rng, light_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(key).spawn(4))
    view = View(
        size,
        metres_per_pixel,
        heading=float(view_rng.integers(4) * math.pi / 2 + view_rng.uniform(-0.5, 0.5)),
        sun=float(math.pi / 4 + view_rng.uniform(-0.8, 0.8)),
        slant=float(view_rng.uniform(0.45, 1.0)),
    )
    canvas = Canvas(view)
    things = _draw_plan(canvas, make_plan(view.extent, plan_rng), paint_rng)
    owner_of, part_of = canvas.owner_tables()
    surfaces = canvas.surface_map()
    return Scene(
        image=shading.photograph(canvas, surfaces, light_rng),
        object_map=owner_of.take(surfaces),
        part_map=part_of.take(surfaces),
        objects=tuple(things.objects),
        theme=things.theme,
        metres_per_pixel=metres_per_pixel,
    )


class _Register:
    """Hands out the numbers of the objects."""

    def __init__(self, theme: str):
        self.theme = theme
        self.objects: list[LabelledObject] = []

    def add(self, category: str, **facts: Any) -> int:
        self.objects.append(LabelledObject(len(self.objects) + 1, category, **facts))
        return len(self.objects)


def _draw_plan(canvas: Canvas, plan: Plan, rng: np.random.Generator) -> _Register:
    """Paints everything from the ground up."""
    things = _Register(plan.theme)
    ground.draw_land(canvas, plan, rng)
    for field in plan.fields:
        ground.draw_field(canvas, field, things.add("field", colour=field.colour), rng)
    flat: list[tuple[str, list, Callable]] = [
        ("lake", plan.lakes, ground.draw_lake),
        ("river", plan.rivers, ground.draw_river),
        ("parking lot", plan.parking_lots, ground.draw_parking_lot),
        ("apron", plan.aprons, ground.draw_apron),
        ("taxiway", plan.taxiways, ground.draw_taxiway),
        ("runway", plan.runways, ground.draw_runway),
    ]
    for category, items, draw in flat:
        for item in items:
            draw(canvas, item, things.add(category), rng)
    ground.draw_streets(canvas, plan.streets, things.add("road"), rng)
    _draw_standing(canvas, plan, things, rng)
    return things


def _draw_standing(canvas: Canvas, plan: Plan, things: _Register, rng: np.random.Generator) -> None:
    """What throws shadows: within a kind all shadows come first, so that they fall on the ground and not on their neighbours."""
    vehicles = _seen(canvas, plan.vehicles, 10.0)
    for kind in ("car", "truck"):
        alike = [vehicle for vehicle in vehicles if vehicle.kind == kind]
        objects.draw_vehicles(canvas, kind, alike, [things.add(kind, colour=vehicle.colour) for vehicle in alike], rng)
    houses = _seen(canvas, plan.buildings, 48.0)
    for house in houses:
        buildings.shade_building(canvas, house)
    for house in houses:
        buildings.draw_building(canvas, house, things.add("building", colour=house.colour, kind=house.kind), rng)
    for forest in plan.forests:
        objects.draw_forest(canvas, forest, things.add("forest"), rng)
    objects.draw_trees(canvas, _seen(canvas, plan.trees, 10.0), things.add("tree"), rng)
    for plane in _seen(canvas, plan.aircraft, 40.0):
        heading = (plane.heading + canvas.view.heading) % (2 * math.pi)
        number = things.add("aircraft", colour=plane.colour, heading=heading, kind=plane.kind)
        aircraft.draw_aircraft(canvas, plane, number, rng)


def _seen(canvas: Canvas, things: list, reach: float) -> list:
    """Those that may be seen: no part and no shadow of a thing is farther than `reach` metres from its centre."""
    if not things:
        return []
    return [thing for thing, seen in zip(things, canvas.sees([thing.centre for thing in things], reach), strict=True) if seen]
