"""Makes a plan: chooses a theme, divides the land by streets into blocks and gives every block a use."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from data_pipeline.synthetic import airport, country, town
from data_pipeline.synthetic.plan import Plan, River, Street
from data_pipeline.synthetic.shapes import Rect, distance_to_line, winding_line

# The land drawn reaches this far beyond the picture, in extents: a layout turned by any angle up to 35 degrees covers it.
REACH = 0.72

THEMES = (("airport", 0.4), ("town", 0.2), ("farmland", 0.2), ("lakeland", 0.2))

# What the blocks of a theme are used for: (use, weight).
BLOCK_USES: dict[str, tuple[tuple[str, float], ...]] = {
    "airport": (("field", 0.36), ("park", 0.14), ("forest", 0.2), ("houses", 0.14), ("blocks", 0.08), ("parking", 0.08)),
    "town": (("houses", 0.4), ("blocks", 0.28), ("parking", 0.14), ("park", 0.06), ("lake", 0.06), ("forest", 0.06)),
    "farmland": (("field", 0.6), ("forest", 0.14), ("houses", 0.14), ("lake", 0.08), ("park", 0.04)),
    "lakeland": (("lake", 0.36), ("forest", 0.26), ("field", 0.16), ("houses", 0.14), ("park", 0.08)),
}
# Cuts of the land down to this depth are streets; below it they are strips of grass between the fields.
STREET_DEPTH = {"airport": 1, "town": 9, "farmland": 1, "lakeland": 2}
RIVER_SHARE = {"airport": 0.0, "town": 0.15, "farmland": 0.35, "lakeland": 0.3}

_BUILDERS: dict[str, Callable[[Plan, Rect, np.random.Generator], None]] = {
    "field": country.plant_fields,
    "forest": country.plant_forest,
    "lake": country.dig_lake,
    "park": country.plant_park,
    "houses": town.build_houses,
    "blocks": town.build_blocks,
    "parking": town.build_parking,
}
# Uses that a river may cross.
_WET_USES = (("field", 0.7), ("park", 0.3))


def make_plan(extent: float, rng: np.random.Generator) -> Plan:
    """A plan for a picture of `extent` metres from edge to edge."""
    plan = Plan(town.pick(THEMES, rng), extent)
    reach = REACH * extent
    world = Rect(-reach, -reach, reach, reach)
    if rng.random() < RIVER_SHARE[plan.theme]:
        _dig_river(plan, reach, rng)
    land = airport.build_airport(plan, world, rng) if plan.theme == "airport" else [world]
    limit = rng.uniform(74, 112)
    for rect in land:
        if min(rect.width, rect.height) > 12:
            _divide(plan, rect, limit, 0, rng)
    busy = 1.0 if plan.theme == "town" else 0.45
    for street in plan.streets:
        town.drive(plan, street, busy, rng)
    return plan


def _dig_river(plan: Plan, reach: float, rng: np.random.Generator) -> None:
    plan.rivers.append(River(winding_line(reach * 1.5, rng), rng.uniform(13, 22), rng.uniform(1.5, 3)))


def _divide(plan: Plan, rect: Rect, limit: float, depth: int, rng: np.random.Generator) -> None:
    """Cuts `rect` until no side is over `limit` metres; what is left are the blocks."""
    if max(rect.width, rect.height) <= limit:
        _use(plan, rect, rng)
        return
    street = depth < STREET_DEPTH[plan.theme]
    half = (10.0 if depth == 0 else 8.0) / 2 if street else 0.5
    share = rng.uniform(0.4, 0.6)
    if vertical := rect.width >= rect.height:
        x = rect.x0 + share * rect.width
        gap = Rect(x - half, rect.y0, x + half, rect.y1)
        parts = [Rect(rect.x0, rect.y0, gap.x0, rect.y1), Rect(gap.x1, rect.y0, rect.x1, rect.y1)]
    else:
        y = rect.y0 + share * rect.height
        gap = Rect(rect.x0, y - half, rect.x1, y + half)
        parts = [Rect(rect.x0, rect.y0, rect.x1, gap.y0), Rect(rect.x0, gap.y1, rect.x1, rect.y1)]
    if street:
        plan.streets.append(Street(gap, vertical))
    for part in parts:
        _divide(plan, part, limit, depth + 1, rng)


def _use(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    wet = any(distance_to_line(rect.centre, river.line) < rect.radius + river.width / 2 for river in plan.rivers)
    use = town.pick(_WET_USES if wet else BLOCK_USES[plan.theme], rng)
    inner = rect.inset(1.5)
    if min(inner.width, inner.height) < 10:
        use = "park"
    # The corners of the land are out of the picture however it is turned.
    seen = math.hypot(*inner.centre) - inner.radius < plan.extent * math.sqrt(0.5) + 10
    if seen and min(inner.width, inner.height) > 4:
        _BUILDERS[use](plan, inner, rng)
