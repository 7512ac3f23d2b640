"""Draws sports grounds: courts, pitches, running tracks and swimming pools, with the lines that their rules ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.palette import jittered, lit
from data_pipeline.synthetic.plan import SportsGround
from data_pipeline.synthetic.shapes import Rect, arc, ribbon
from data_pipeline.synthetic.sports import lane_width

# A small pool is a garden's.
_GARDEN_POOL = 12.0


def draw_ground(canvas: Canvas, ground: SportsGround, owner: int, rng: np.random.Generator) -> None:
    """Paints `ground` in its own frame: its length along x, its middle at the origin."""
    draw = {
        "tennis court": _draw_tennis_court,
        "football pitch": _draw_football_pitch,
        "running track": _draw_running_track,
        "basketball court": _draw_basketball_court,
        "swimming pool": _draw_pool,
    }[ground.category]
    with canvas.moved(ground.frame):
        draw(canvas, ground, owner, rng)


def _half_line(canvas: Canvas, width: float = 0.12) -> float:
    # Narrower than a third of a pixel, paint would come and go with the position.
    return max(width / 2, canvas.view.metres_per_pixel / 6)


def _middle_rect(length: float, width: float, x: float = 0.0, y: float = 0.0) -> Rect:
    return Rect(x - length / 2, y - width / 2, x + length / 2, y + width / 2)


def _frame_lines(canvas: Canvas, rect: Rect, paint: int, half: float) -> None:
    """The four sides of `rect`."""
    for side in (
        Rect(rect.x0 - half, rect.y0 - half, rect.x1 + half, rect.y0 + half),
        Rect(rect.x0 - half, rect.y1 - half, rect.x1 + half, rect.y1 + half),
        Rect(rect.x0 - half, rect.y0, rect.x0 + half, rect.y1),
        Rect(rect.x1 - half, rect.y0, rect.x1 + half, rect.y1),
    ):
        canvas.polygon(side.corners(), paint)


def _bars(canvas: Canvas, places: Sequence[tuple[float, float, float, float]], surface: int) -> None:
    """Rectangles (x0, y0, x1, y1)."""
    canvas.rects([Rect(*place) for place in places], surface)


def _draw_tennis_court(canvas: Canvas, ground: SportsGround, owner: int, rng: np.random.Generator) -> None:
    colour = jittered(palette.COURT_COLOURS[ground.colour], rng)
    scale = ground.length / 36.6
    canvas.polygon(_middle_rect(ground.length, ground.width).corners(), canvas.surface(lit(colour, 0.84), palette.PAVED, owner))
    court = _middle_rect(23.77 * scale, 10.97 * scale)
    canvas.polygon(court.corners(), canvas.surface(lit(colour, 1.12), palette.PAVED, owner))
    paint, half = canvas.surface(palette.WHITE_PAINT, palette.PAINTED, owner), _half_line(canvas)
    _frame_lines(canvas, court, paint, half)
    singles, service = 4.115 * scale, 6.4 * scale
    lines = [(court.x0, sign * singles - half, court.x1, sign * singles + half) for sign in (-1, 1)]
    lines += [(sign * service - half, -singles, sign * service + half, singles) for sign in (-1, 1)]
    _bars(canvas, [*lines, (-service, -half, service, half)], paint)
    net = canvas.surface((52, 54, 58), palette.PAINTED, owner)
    _bars(canvas, [(-half, court.y0 - 0.9, half, court.y1 + 0.9)], net)


def _draw_basketball_court(canvas: Canvas, ground: SportsGround, owner: int, rng: np.random.Generator) -> None:
    colour = jittered(palette.COURT_COLOURS[ground.colour], rng)
    key_colour = jittered(palette.COURT_COLOURS["blue" if ground.colour != "blue" else "red"], rng)
    scale = ground.length / 30.0
    floor = canvas.surface(lit(colour, 1.08), palette.PAVED, owner)
    key = canvas.surface(key_colour, palette.PAVED, owner)
    paint, half = canvas.surface(palette.WHITE_PAINT, palette.PAINTED, owner), _half_line(canvas)
    canvas.polygon(_middle_rect(ground.length, ground.width).corners(), canvas.surface(lit(colour, 0.82), palette.PAVED, owner))
    court = _middle_rect(28 * scale, 15 * scale)
    canvas.polygon(court.corners(), floor)
    for sign in (-1, 1):
        basket = (sign * 12.4 * scale, 0.0)
        inwards = math.pi / 2 if sign > 0 else -math.pi / 2
        three = arc(basket, 6.75 * scale, inwards, inwards + math.pi, 20)
        canvas.polygon(ribbon(three, 2 * half), paint)
        near, far = sorted((sign * 14 * scale, sign * 8.2 * scale))
        lane = Rect(near, -2.45 * scale, far, 2.45 * scale)
        canvas.polygon(lane.corners(), key)
        _frame_lines(canvas, lane, paint, half)
        ring = canvas.surface((226, 112, 52), palette.PAINTED, owner)
        _bars(canvas, [(basket[0] - 0.4, -0.9, basket[0] + 0.4, 0.9)], ring)
    canvas.polygon(arc((0.0, 0.0), 1.8 * scale + half), paint)
    canvas.polygon(arc((0.0, 0.0), 1.8 * scale - half), key)
    _frame_lines(canvas, court, paint, half)
    _bars(canvas, [(-half, court.y0, half, court.y1)], paint)


def _draw_football_pitch(canvas: Canvas, ground: SportsGround, owner: int, rng: np.random.Generator) -> None:
    """Mown in stripes; the markings have the proportions of a pitch of 105 x 68 metres."""
    colour = jittered(palette.TURF, rng, 0.08)
    dark, light = (canvas.surface(lit(colour, tone), palette.LAWNLIKE, owner) for tone in (0.94, 1.07))
    length, width = ground.length, ground.width
    canvas.polygon(_middle_rect(length, width).corners(), dark)
    edges = np.linspace(-length / 2, length / 2, 2 * max(3, round(length / 12)) + 1)
    _bars(canvas, [(edges[n], -width / 2, edges[n + 1], width / 2) for n in range(0, len(edges) - 1, 2)], light)
    paint, half = canvas.surface(palette.WHITE_PAINT, palette.PAINTED, owner), _half_line(canvas, 0.14)
    field = _middle_rect(length, width).inset(0.025 * length)
    sx, sy = field.width / 105.0, field.height / 68.0
    _frame_lines(canvas, field, paint, half)
    _bars(canvas, [(-half, field.y0, half, field.y1)], paint)
    ring = arc((0.0, 0.0), 9.15 * sx)
    canvas.polygon(ribbon(np.concatenate([ring, ring[:2]]), 2 * half), paint)
    for sign in (-1, 1):
        for deep, wide in ((16.5, 40.3), (5.5, 18.3)):
            x0, x1 = sorted((sign * field.width / 2, sign * (field.width / 2 - deep * sx)))
            _frame_lines(canvas, Rect(x0, -wide * sy / 2, x1, wide * sy / 2), paint, half)
        goal = sign * (field.width / 2 + 0.012 * length)
        _bars(canvas, [(goal - 0.6, -3.7, goal + 0.6, 3.7)], paint)


def _oval(length: float, width: float) -> np.ndarray:
    """A rectangle between two half circles, [n, 2]."""
    radius, straight = width / 2, (length - width) / 2
    right = arc((straight, 0.0), radius, -math.pi / 2, math.pi / 2, 20)
    left = arc((-straight, 0.0), radius, math.pi / 2, 1.5 * math.pi, 20)
    return np.concatenate([right, left])


def _draw_running_track(canvas: Canvas, ground: SportsGround, owner: int, rng: np.random.Generator) -> None:
    colour = jittered(palette.COURT_COLOURS[ground.colour], rng)
    length, width, band = ground.length, ground.width, lane_width(ground.length)
    surface = canvas.surface(colour, palette.PAVED, owner)
    paint, half = canvas.surface(palette.WHITE_PAINT, palette.PAINTED, owner), _half_line(canvas, 0.1)
    canvas.polygon(_oval(length, width), surface)
    lanes = 8 if band / 8 > 4 * half else 4
    for lane in range(lanes):
        inset = 0.25 + lane * (band - 0.5) / lanes
        canvas.polygon(_oval(length - 2 * inset, width - 2 * inset), paint)
        canvas.polygon(_oval(length - 2 * inset - 4 * half, width - 2 * inset - 4 * half), surface)
    infield = canvas.surface(jittered(palette.TURF, rng), palette.LAWNLIKE)
    canvas.polygon(_oval(length - 2 * band, width - 2 * band), infield)
    start = (length - width) / 2
    _bars(canvas, [(start - half, width / 2 - band, start + half, width / 2)], paint)


def _draw_pool(canvas: Canvas, ground: SportsGround, owner: int, rng: np.random.Generator) -> None:
    """Water with a rim, on paving that belongs to no object; a larger pool has lanes and starting blocks."""
    garden = ground.length < _GARDEN_POOL
    margin = 1.1 if garden else 2.6
    paving = canvas.surface(jittered(palette.PAVEMENT, rng), palette.PAVED)
    rim = canvas.surface(palette.lit(palette.PAVEMENT, 1.2), palette.PAINTED)
    water = canvas.surface(jittered(palette.POOL_WATER, rng), palette.POOL, owner)
    basin = _middle_rect(ground.length, ground.width)
    canvas.polygon(basin.inset(-margin).corners(), paving)
    canvas.polygon(basin.inset(-0.4).corners(), rim)
    canvas.polygon(basin.corners(), water)
    half = _half_line(canvas, 0.2)
    if garden:
        deep = canvas.surface(lit(palette.POOL_WATER, 0.88), palette.POOL, owner)
        canvas.polygon(Rect(basin.x0 + ground.length * 0.5, basin.y0 + 0.4, basin.x1 - 0.4, basin.y1 - 0.4).corners(), deep)
        return
    line = canvas.surface((42, 92, 150), palette.PAINTED, owner)
    lanes = max(4, round(ground.width / 2.5))
    for lane in range(1, lanes):
        y = basin.y0 + lane * ground.width / lanes
        _bars(canvas, [(basin.x0, y - half, basin.x1, y + half)], line)
