"""Draws curved roads: pavements, asphalt, centre lines, crossings with zebra stripes, roundabouts."""

from __future__ import annotations

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.palette import jittered
from data_pipeline.synthetic.plan import Crossing, Plan, Road, Roundabout
from data_pipeline.synthetic.shapes import Rect, arc, box, ribbon

KERB = 1.0  # metres of pavement on either side
WIDE = 12.0  # a road from here on has a solid line along each edge
_DASH, _PITCH = 3.2, 6.5


def draw_roads(canvas: Canvas, plan: Plan, owner: int, rng: np.random.Generator) -> None:
    """All roads are one object: where they meet, neither has the crossing to itself."""
    walk = canvas.surface(jittered(palette.PAVEMENT, rng), palette.PAVED)
    asphalt = canvas.surface(jittered(palette.ASPHALT, rng), palette.PAVED, owner)
    paint = canvas.surface(palette.WHITE_PAINT, palette.PAINTED, owner)
    island = canvas.surface(jittered(palette.LAWN, rng), palette.GRASSY)
    for road in plan.roads:
        canvas.polygon(ribbon(road.line, road.width), walk)
    for circle in plan.roundabouts:
        canvas.polygon(arc(circle.centre, circle.radius + KERB), walk)
    for road in plan.roads:
        canvas.polygon(ribbon(road.line, road.width - 2 * KERB), asphalt)
    for road in plan.roads:
        _paint_road(canvas, road, paint)
    for crossing in plan.crossings:
        _draw_crossing(canvas, crossing, asphalt, paint)
    for circle in plan.roundabouts:
        _draw_roundabout(canvas, circle, asphalt, walk, island, paint)


def _paint_road(canvas: Canvas, road: Road, paint: int) -> None:
    # Narrower than a third of a pixel, paint would come and go with the position.
    half = max(0.09, canvas.view.metres_per_pixel / 6)
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(road.line, axis=0), axis=1))])
    stops = np.arange(3.5, walked[-1] - 4.5, _PITCH)
    if len(stops):
        places = np.stack([np.interp(stops, walked, road.line[:, axis]) for axis in (0, 1)], axis=1)
        ends = np.stack([np.interp(stops + _DASH, walked, road.line[:, axis]) for axis in (0, 1)], axis=1)
        along = (ends - places) / np.linalg.norm(ends - places, axis=1, keepdims=True)
        side = np.stack([-along[:, 1], along[:, 0]], axis=1) * half
        canvas.polygons(np.stack([places - side, ends - side, ends + side, places + side], axis=1), paint)
    if road.width >= WIDE:
        inner = road.line[1:-1] if len(road.line) > 3 else road.line
        for offset in (-1, 1):
            edge = _offset(inner, offset * (road.width / 2 - KERB - 0.7))
            canvas.polygon(ribbon(edge, 2 * half), paint)


def _offset(line: np.ndarray, distance: float) -> np.ndarray:
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    return line + distance * np.stack([-along[:, 1], along[:, 0]], axis=1)


def _draw_crossing(canvas: Canvas, crossing: Crossing, asphalt: int, paint: int) -> None:
    """Asphalt over the centre lines that run through, and the stripes on all four arms."""
    (across, down), place = crossing.half, crossing.frame.place
    # The corners of the pavement stay: a plus sign, not a square.
    for a, b in ((across - KERB, down), (across, down - KERB)):
        canvas.polygon(place(Rect(-a, -b, a, b).corners()), asphalt)
    if not crossing.zebra or canvas.view.metres_per_pixel > 1.0:
        return
    for sign in (-1, 1):
        for at in np.arange(-across + KERB + 0.6, across - KERB - 0.3, 1.1):
            canvas.polygon(place(box(0.55, 2.6, 0.0, (float(at), sign * (down + 2.0)))), paint)
        for at in np.arange(-down + KERB + 0.6, down - KERB - 0.3, 1.1):
            canvas.polygon(place(box(2.6, 0.55, 0.0, (sign * (across + 2.0), float(at)))), paint)


def _draw_roundabout(canvas: Canvas, circle: Roundabout, asphalt: int, walk: int, island: int, paint: int) -> None:
    half = max(0.09, canvas.view.metres_per_pixel / 6)
    inner = 0.48 * circle.radius
    canvas.polygon(arc(circle.centre, circle.radius), asphalt)
    canvas.polygon(arc(circle.centre, inner + 1.0 + half), paint)
    canvas.polygon(arc(circle.centre, inner + 1.0 - half), asphalt)
    canvas.polygon(arc(circle.centre, inner), walk)
    canvas.polygon(arc(circle.centre, inner - 0.6), island)
