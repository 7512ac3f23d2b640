"""Draws buildings from above: roofs whose slopes are lit by the sun, parapets, roof machinery."""

from __future__ import annotations

import itertools
import math

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.palette import Colour, jittered, lit
from data_pipeline.synthetic.plan import Building
from data_pipeline.synthetic.shapes import box, turned

# How much brighter a slope is that faces the sun, and darker one that turns away.
_SLOPE_LIGHT = 0.24


def shade_building(canvas: Canvas, building: Building) -> None:
    """The shadow that `building` throws on the ground."""
    for wing in _wings(building):
        canvas.shade_prism(wing, building.height)


def draw_building(canvas: Canvas, building: Building, owner: int, rng: np.random.Generator) -> None:
    """The roof."""
    colour = jittered(palette.BUILDING_COLOURS[building.colour], rng, 0.07)
    draw = {"gable": _draw_gable, "hip": _draw_hip, "flat": _draw_flat, "corner": _draw_flat, "hangar": _draw_hangar}[building.kind]
    draw(canvas, building, colour, owner, rng)


def _place(building: Building, points: list[tuple[float, float]]) -> np.ndarray:
    return turned(np.array(points, float), building.heading, building.centre)


def _wings(building: Building, inset: float = 0.0) -> list[np.ndarray]:
    """The convex pieces of the ground plan, `inset` metres smaller all around."""
    a, b = building.length / 2 - inset, building.width / 2 - inset
    if building.kind != "corner":
        return [_place(building, [(-a, -b), (a, -b), (a, b), (-a, b)])]
    depth = building.width * 0.46 - inset
    arm = building.length * 0.44 - inset
    return [
        _place(building, [(-a, -b), (a, -b), (a, -building.width / 2 + depth), (-a, -building.width / 2 + depth)]),
        _place(building, [(-a, -b), (-building.length / 2 + arm, -b), (-building.length / 2 + arm, b), (-a, b)]),
    ]


def _slope(canvas: Canvas, building: Building, colour: Colour, side: float, owner: int, steepness: float = 1.0) -> int:
    """The surface of a roof slope that looks towards `side` in the building's own frame."""
    light = 1 + _SLOPE_LIGHT * steepness * canvas.facing(building.heading + side)
    return canvas.surface(lit(colour, light), palette.ROOF, owner)


def _draw_gable(canvas: Canvas, building: Building, colour: Colour, owner: int, rng: np.random.Generator) -> None:
    a, b = building.length / 2, building.width / 2
    canvas.polygon(_place(building, [(-a, -b), (a, -b), (a, 0), (-a, 0)]), _slope(canvas, building, colour, -math.pi / 2, owner))
    canvas.polygon(_place(building, [(-a, 0), (a, 0), (a, b), (-a, b)]), _slope(canvas, building, colour, math.pi / 2, owner))
    _draw_ridge(canvas, building, colour, a, owner)
    _draw_chimney(canvas, building, owner, rng)


def _draw_hip(canvas: Canvas, building: Building, colour: Colour, owner: int, rng: np.random.Generator) -> None:
    a, b = building.length / 2, building.width / 2
    ridge = max(0.0, a - b)
    canvas.polygon(_place(building, [(-a, -b), (a, -b), (ridge, 0), (-ridge, 0)]), _slope(canvas, building, colour, -math.pi / 2, owner))
    canvas.polygon(_place(building, [(-ridge, 0), (ridge, 0), (a, b), (-a, b)]), _slope(canvas, building, colour, math.pi / 2, owner))
    canvas.polygon(_place(building, [(a, -b), (a, b), (ridge, 0)]), _slope(canvas, building, colour, 0.0, owner))
    canvas.polygon(_place(building, [(-a, -b), (-a, b), (-ridge, 0)]), _slope(canvas, building, colour, math.pi, owner))
    _draw_ridge(canvas, building, colour, ridge, owner)
    _draw_chimney(canvas, building, owner, rng)


def _draw_ridge(canvas: Canvas, building: Building, colour: Colour, half_length: float, owner: int) -> None:
    half = max(0.12, canvas.view.metres_per_pixel / 6)
    ridge = canvas.surface(lit(colour, 1.22), palette.ROOF, owner)
    canvas.polygon(_place(building, [(-half_length, -half), (half_length, -half), (half_length, half), (-half_length, half)]), ridge)


def _draw_chimney(canvas: Canvas, building: Building, owner: int, rng: np.random.Generator) -> None:
    if building.length > 20 or rng.random() < 0.3:
        return
    place = turned(np.array([[rng.uniform(-0.3, 0.3) * building.length, 0.2 * building.width]]), building.heading, building.centre)[0]
    shade = canvas.surface((62, 56, 54), palette.ROOF, owner)
    canvas.polygon(box(1.0, 1.0, building.heading, tuple(place - canvas.towards_sun(0.7))), shade)
    canvas.polygon(box(0.9, 0.9, building.heading, tuple(place)), canvas.surface((150, 132, 122), palette.ROOF, owner))


def _draw_flat(canvas: Canvas, building: Building, colour: Colour, owner: int, rng: np.random.Generator) -> None:
    rim = canvas.surface(lit(colour, 1.12), palette.ROOF, owner)
    inner_shade = canvas.surface(lit(colour, 0.66), palette.ROOF, owner)
    deck = canvas.surface(lit(colour, 0.93), palette.ROOF, owner)
    edge = max(0.5, canvas.view.metres_per_pixel * 0.6)
    for wing in _wings(building):
        canvas.polygon(wing, rim)
    for wing in _wings(building, edge):
        canvas.polygon(wing, inner_shade)
    # The parapet on the sun's side shades the deck: the deck is drawn a little away from it.
    for wing in _wings(building, edge + 0.35):
        canvas.polygon(wing - canvas.towards_sun(0.35), deck)
    for _ in range(int(building.length * building.width / 110)):
        _draw_machine(canvas, building, owner, rng)


def _draw_machine(canvas: Canvas, building: Building, owner: int, rng: np.random.Generator) -> None:
    """An air conditioner, a skylight or a hatch on a flat roof."""
    margin = 2.4
    a, b = building.length / 2 - margin, building.width / 2 - margin
    if building.kind == "corner":  # Only the long wing.
        b_low, b_high = -b, -building.width / 2 + building.width * 0.46 - margin
    else:
        b_low, b_high = -b, b
    if a <= 0 or b_high <= b_low:
        return
    place = turned(np.array([[rng.uniform(-a, a), rng.uniform(b_low, b_high)]]), building.heading, building.centre)[0]
    length, width = rng.uniform(1.4, 3.4), rng.uniform(1.2, 2.2)
    shade = canvas.surface((70, 70, 74), palette.ROOF, owner)
    top = canvas.surface(jittered((176, 180, 184) if rng.random() < 0.6 else (104, 122, 138), rng), palette.ROOF, owner)
    canvas.polygon(box(length, width, building.heading, tuple(place - canvas.towards_sun(0.9))), shade)
    canvas.polygon(box(length, width, building.heading, tuple(place)), top)


def _draw_hangar(canvas: Canvas, building: Building, colour: Colour, owner: int, rng: np.random.Generator) -> None:
    """A barrel roof: strips whose slope turns from one side to the other, with a row of skylights."""
    a, b, strips = building.length / 2, building.width / 2, 9
    edges = -b * np.cos(np.linspace(0, math.pi, strips + 1))
    for low, high in itertools.pairwise(edges):
        lean = (low + high) / 2 / b
        side = math.pi / 2 if lean > 0 else -math.pi / 2
        surface = _slope(canvas, building, colour, side, owner, steepness=1.25 * abs(lean))
        canvas.polygon(_place(building, [(-a, low), (a, low), (a, high + 0.1), (-a, high + 0.1)]), surface)
    seam = canvas.surface(lit(colour, 0.9), palette.ROOF, owner)
    half = max(0.1, canvas.view.metres_per_pixel / 6)
    for x in np.arange(-a + 5, a - 2, 6.0):
        canvas.polygon(_place(building, [(x - half, -b), (x + half, -b), (x + half, b), (x - half, b)]), seam)
    if rng.random() < 0.6:
        light = canvas.surface((206, 216, 222), palette.ROOF, owner)
        for x in np.arange(-a + 6.5, a - 5, 6.0):
            canvas.polygon(_place(building, [(x, -0.8), (x + 3, -0.8), (x + 3, 0.8), (x, 0.8)]), light)
