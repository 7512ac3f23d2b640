"""Disasters: which buildings an earthquake, a fire or a storm has struck, which fields are flooded, and what ruins look like."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from data_pipeline.synthetic import buildings, palette
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.palette import jittered, lit
from data_pipeline.synthetic.plan import Building, Plan
from data_pipeline.synthetic.shapes import box, turned, turned_each
from data_pipeline.synthetic.town import pick

DISASTERS = (("earthquake", 0.34), ("fire", 0.28), ("storm", 0.14), ("flood", 0.24))
_KINDS = {
    "earthquake": (("collapsed", 0.75), ("holed", 0.25)),
    "fire": (("burnt", 1.0),),
    "storm": (("holed", 0.75), ("collapsed", 0.25)),
    "flood": (("holed", 0.6), ("collapsed", 0.4)),
}


def strike(plan: Plan, rng: np.random.Generator) -> None:
    """Damages most buildings around one place and few elsewhere; a flood covers the fields of one side."""
    possible = [(name, share) for name, share in DISASTERS if (plan.fields if name == "flood" else plan.buildings)]
    if not possible:
        return
    disaster = pick(tuple(possible), rng)
    plan.struck = True
    middle = rng.uniform(-0.25, 0.25, 2) * plan.extent
    reach = rng.uniform(0.22, 0.5) * plan.extent
    near, far = (0.25, 0.02) if disaster == "flood" else (0.8, 0.06)
    struck = []
    for building in plan.buildings:
        share = near if math.dist(building.centre, middle) < reach else far
        damage = pick(_KINDS[disaster], rng) if rng.random() < share else None
        struck.append(dataclasses.replace(building, damage=damage))
    plan.buildings = struck
    if disaster == "flood":
        side, shift = rng.uniform(0, 2 * math.pi), rng.uniform(-0.1, 0.3) * plan.extent
        direction = np.array([math.cos(side), math.sin(side)])
        plan.fields = [dataclasses.replace(f, flooded=bool(f.outline.mean(0) @ direction < shift)) for f in plan.fields]


def draw_ruin(canvas: Canvas, building: Building, owner: int, rng: np.random.Generator) -> None:
    """What is left of `building`; all that lies within its walls is its own, the debris around it belongs to nothing."""
    if building.damage == "collapsed":
        _scatter_debris(canvas, building, palette.RUBBLE, rng)
        _draw_rubble(canvas, building, owner, rng)
    elif building.damage == "burnt":
        _scatter_debris(canvas, building, palette.ASH, rng)
        _draw_burnt(canvas, building, owner, rng)
    else:
        _scatter_debris(canvas, building, palette.RUBBLE, rng, 0.35)
        buildings.draw_building(canvas, building, owner, rng)
        _tear_holes(canvas, building, owner, rng)


def _pieces(canvas: Canvas, places: np.ndarray, sizes: tuple[float, float], surfaces: np.ndarray, rng: np.random.Generator) -> None:
    """Broken slabs at `places` [n, 2]."""
    corners = np.array([[-0.5, -0.4], [0.45, -0.5], [0.5, 0.35], [-0.35, 0.5]])
    count = len(places)
    shapes = turned_each(corners, rng.uniform(0, 2 * math.pi, count), np.zeros((count, 2)))
    shapes = shapes * rng.uniform(*sizes, (count, 1, 2)) + places[:, None]
    canvas.polygons(shapes, surfaces[rng.integers(len(surfaces), size=count)])


def _scatter_debris(canvas: Canvas, building: Building, colour: palette.Colour, rng: np.random.Generator, share: float = 1.0) -> None:
    dust = canvas.surface(lit(jittered(colour, rng), 1.08), palette.EARTHY)
    outline = _ragged(building, 1.0 + 3.0 * share, rng)
    if share == 1.0:
        canvas.polygon(outline, dust)
    tones = np.array([canvas.surface(lit(colour, tone), palette.EARTHY) for tone in (0.7, 0.9, 1.15)])
    count = int(share * (20 + building.length * building.width / 6))
    local = rng.normal(0, 1, (count, 2)) * (building.length * 0.42, building.width * 0.46)
    _pieces(canvas, turned(local, building.heading, building.centre), (0.5, 2.2), tones, rng)


def _ragged(building: Building, margin: float, rng: np.random.Generator) -> np.ndarray:
    """An uneven outline [28, 2] about `margin` metres outside of the walls (negative: inside)."""
    angle = np.arange(28) * (2 * math.pi / 28)
    c, s = np.cos(angle), np.sin(angle)
    a, b = building.length / 2, building.width / 2
    # A superellipse: nearly the rectangle.
    radius = ((np.abs(c) / a) ** 6 + (np.abs(s) / b) ** 6) ** (-1 / 6)
    local = np.stack([radius * c, radius * s], axis=1) + margin * rng.uniform(0.2, 1.0, (28, 1)) * np.stack([c, s], axis=1)
    return turned(local, building.heading, building.centre)


def _draw_rubble(canvas: Canvas, building: Building, owner: int, rng: np.random.Generator) -> None:
    roof = palette.BUILDING_COLOURS[building.colour]
    base = jittered(palette.RUBBLE, rng, 0.1)
    canvas.polygon(_ragged(building, -0.6, rng), canvas.surface(lit(base, 0.74), palette.EARTHY, owner))
    tones = [lit(base, tone) for tone in (0.55, 0.85, 1.05, 1.25)] + [palette.mixed(roof, base, 0.35)] * 2
    surfaces = np.array([canvas.surface(tone, palette.EARTHY, owner) for tone in tones])
    count = int(12 + building.length * building.width / 3.2)
    local = rng.uniform(-0.46, 0.46, (count, 2)) * (building.length - 3.0, building.width - 3.0)
    _pieces(canvas, turned(local, building.heading, building.centre), (0.9, 3.4), surfaces, rng)


def _draw_burnt(canvas: Canvas, building: Building, owner: int, rng: np.random.Generator) -> None:
    """Walls around a black inside with fallen beams."""
    wall = canvas.surface(jittered((128, 116, 106), rng, 0.1), palette.EARTHY, owner)
    inside = canvas.surface(jittered((44, 40, 38), rng, 0.1), palette.EARTHY, owner)
    for piece, surface in ((0.0, wall), (0.9, inside)):
        canvas.polygon(box(building.length - 2 * piece, building.width - 2 * piece, building.heading, building.centre), surface)
    tones = np.array([canvas.surface(tone, palette.EARTHY, owner) for tone in ((70, 64, 60), (28, 26, 26), (104, 92, 84))])
    count = int(8 + building.length * building.width / 7)
    local = rng.uniform(-0.42, 0.42, (count, 2)) * (building.length - 3.0, building.width - 3.0)
    _pieces(canvas, turned(local, building.heading, building.centre), (0.5, 2.6), tones, rng)
    for _ in range(3):
        x = rng.uniform(-0.4, 0.4) * building.length
        beam = box(0.5, building.width - 1.0, building.heading, tuple(turned(np.array([[x, 0.0]]), building.heading, building.centre)[0]))
        canvas.polygon(beam, wall)


def _tear_holes(canvas: Canvas, building: Building, owner: int, rng: np.random.Generator) -> None:
    """Openings through which the dark inside shows; not near the walls, so that no hole leaves the roof."""
    dark = canvas.surface((52, 46, 44), palette.EARTHY, owner)
    beams = canvas.surface((148, 122, 92), palette.EARTHY, owner)
    # A corner building's roof is an L: its long wing is the half at the low edge.
    low, high = (-0.38, -0.12) if building.kind == "corner" else (-0.26, 0.26)
    for _ in range(int(rng.integers(1, 4))):
        middle = np.array([rng.uniform(-0.3, 0.3) * building.length, rng.uniform(low, high) * building.width])
        size = rng.uniform(0.1, 0.2)
        arm = np.array([building.length, building.width]) * size
        angle = np.arange(9) * (2 * math.pi / 9)
        ring = (
            np.stack([np.cos(angle), np.sin(angle)], axis=1)
            * rng.uniform(0.55, 1.0, (9, 1))
            * arm
            * (0.6 if building.kind == "corner" else 1)
        )
        canvas.polygon(turned(ring + middle, building.heading, building.centre), dark)
        rafter = np.array([[-0.3, -0.12], [0.3, -0.12], [0.3, 0.02], [-0.3, 0.02]]) * arm
        canvas.polygon(turned(rafter + middle, building.heading, building.centre), beams)
