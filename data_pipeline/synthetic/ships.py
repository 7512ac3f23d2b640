"""Draws ships from above: hulls, decks, cargo, superstructures, masts, and the wakes of those under way."""

from __future__ import annotations

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.palette import jittered, lit
from data_pipeline.synthetic.plan import Ship
from data_pipeline.synthetic.shapes import Frame, arc, box

# Half outlines, bow towards +x: x in lengths, y in widths; mirrored for the other side.
_HULLS = {
    "cargo ship": ((0.5, 0.0), (0.47, 0.2), (0.41, 0.38), (0.33, 0.48), (0.24, 0.5), (-0.44, 0.5), (-0.49, 0.42), (-0.5, 0.3)),
    "tanker": ((0.5, 0.0), (0.485, 0.22), (0.44, 0.4), (0.36, 0.5), (-0.42, 0.5), (-0.48, 0.42), (-0.5, 0.28)),
    "ferry": ((0.5, 0.1), (0.46, 0.3), (0.36, 0.46), (0.26, 0.5), (-0.46, 0.5), (-0.5, 0.4)),
    "fishing boat": ((0.5, 0.0), (0.42, 0.24), (0.28, 0.44), (0.1, 0.5), (-0.4, 0.46), (-0.5, 0.38)),
    "sailing boat": ((0.5, 0.0), (0.34, 0.22), (0.12, 0.44), (-0.1, 0.5), (-0.36, 0.44), (-0.5, 0.32)),
    "motorboat": ((0.5, 0.0), (0.4, 0.28), (0.22, 0.46), (0.0, 0.5), (-0.5, 0.44)),
}
_HEIGHTS = {"cargo ship": 8.0, "tanker": 5.0, "ferry": 9.0, "fishing boat": 2.5, "sailing boat": 1.2, "motorboat": 1.2}
_CARGO = ((168, 62, 48), (52, 92, 148), (62, 118, 84), (206, 154, 58), (196, 198, 200))
_DECK = (122, 92, 78)


def draw_wake(canvas: Canvas, ship: Ship, water: int) -> None:
    """Foam behind a ship under way: two arms that spread and the stirred water between them, all part of `water` (0: of nothing)."""
    if not ship.moving:
        return
    foam = canvas.surface(palette.FOAM, palette.WATERY, water)
    stirred = canvas.surface(palette.mixed(palette.SEA_WATER, palette.FOAM, 0.35), palette.SWELL, water)
    a, b = ship.length, ship.width
    with canvas.moved(Frame(ship.heading, ship.centre)):
        canvas.polygon(np.array([[-0.45 * a, -0.34 * b], [-0.45 * a, 0.34 * b], [-1.25 * a, 0.62 * b], [-1.25 * a, -0.62 * b]]), stirred)
        canvas.polygon(np.array([[-0.45 * a, -0.2 * b], [-0.45 * a, 0.2 * b], [-0.85 * a, 0.1 * b], [-0.85 * a, -0.1 * b]]), foam)
        for side in (-1, 1):
            arm = np.array([[0.42 * a, 0.2 * b], [0.1 * a, 0.62 * b], [-0.9 * a, 0.62 * b + 0.2 * a], [0.1 * a, 0.5 * b]])
            canvas.polygon(arm * (1, side), foam)


def draw_ship(canvas: Canvas, ship: Ship, owner: int, rng: np.random.Generator) -> None:
    """The hull and what stands on it."""
    colour = jittered(palette.SHIP_COLOURS[ship.colour], rng)
    hull = canvas.surface(colour, palette.PAINTED, owner)
    draw = {
        "cargo ship": _load_containers,
        "tanker": _lay_pipes,
        "ferry": _raise_decks,
        "fishing boat": _place_wheelhouse,
        "sailing boat": _step_mast,
        "motorboat": _fit_cockpit,
    }[ship.kind]
    outline = _outline(ship)
    with canvas.moved(Frame(ship.heading, ship.centre)):
        canvas.shade_prism(outline, 0.5 * _HEIGHTS[ship.kind])
        canvas.polygon(outline, hull)
        draw(canvas, ship, colour, owner, rng)


def _outline(ship: Ship, narrowing: float = 1.0) -> np.ndarray:
    """Clockwise on the picture: from the bow along starboard (+y) and back along port."""
    half = np.array(_HULLS[ship.kind]) * (ship.length * (0.5 + 0.5 * narrowing), ship.width * narrowing)
    port = half[::-1] * (1, -1)
    return np.concatenate([half, port if half[0, 1] else port[:-1]])


def _block(canvas: Canvas, ship: Ship, x: float, length: float, width: float, height: float, surface: int) -> None:
    """A box on deck: `x`, `length` in lengths and `width` in widths of the ship, with its shadow."""
    outline = box(length * ship.length, width * ship.width, 0.0, (x * ship.length, 0.0))
    canvas.shade_prism(outline, height)
    canvas.polygon(outline, surface)


def _white(canvas: Canvas, owner: int, tone: float = 1.0) -> int:
    return canvas.surface(lit((224, 226, 224), tone), palette.PAINTED, owner)


def _load_containers(canvas: Canvas, ship: Ship, colour: palette.Colour, owner: int, rng: np.random.Generator) -> None:
    canvas.polygon(_outline(ship, 0.9), canvas.surface(jittered(_DECK, rng), palette.PAINTED, owner))
    tones = [canvas.surface(jittered(tone, rng), palette.PAINTED, owner) for tone in _CARGO]
    hatch = canvas.surface((104, 108, 110), palette.PAINTED, owner)
    rows = max(2, int(0.8 * ship.width / 2.6))
    filling = rng.uniform(0.55, 1.0)
    for x in np.arange(-0.26 * ship.length, 0.34 * ship.length, 7.0):
        bay = box(6.4, rows * 2.6, 0.0, (float(x), 0.0))
        canvas.polygon(bay, hatch)
        for row in range(rows):
            if rng.random() < filling:
                y = (row - (rows - 1) / 2) * 2.6
                canvas.polygon(box(6.2, 2.4, 0.0, (float(x), y)), tones[int(rng.integers(len(tones)))])
    _block(canvas, ship, -0.38, 0.1, 0.92, 8.0, _white(canvas, owner))
    _block(canvas, ship, -0.38, 0.05, 1.02, 2.0, _white(canvas, owner, 0.9))
    _block(canvas, ship, -0.45, 0.03, 0.24, 2.0, canvas.surface(lit(colour, 0.8), palette.PAINTED, owner))


def _lay_pipes(canvas: Canvas, ship: Ship, colour: palette.Colour, owner: int, rng: np.random.Generator) -> None:
    deck = jittered((148, 74, 58) if rng.random() < 0.6 else (96, 118, 104), rng)
    canvas.polygon(_outline(ship, 0.92), canvas.surface(deck, palette.PAINTED, owner))
    pipe = canvas.surface((188, 190, 186), palette.PAINTED, owner)
    half = max(0.25, canvas.view.metres_per_pixel / 5)
    length = 0.68 * ship.length
    for y in (-0.08, 0.0, 0.08):
        canvas.polygon(box(length, 2 * half, 0.0, (0.06 * ship.length, y * ship.width)), pipe)
    for x in np.linspace(-0.22, 0.3, 6):
        canvas.polygon(box(2 * half, 0.72 * ship.width, 0.0, (x * ship.length, 0.0)), pipe)
    _block(canvas, ship, -0.39, 0.11, 0.86, 8.0, _white(canvas, owner))
    _block(canvas, ship, -0.37, 0.04, 1.0, 2.0, _white(canvas, owner, 0.9))
    _block(canvas, ship, -0.46, 0.03, 0.26, 2.0, canvas.surface(lit(colour, 0.8), palette.PAINTED, owner))


def _raise_decks(canvas: Canvas, ship: Ship, colour: palette.Colour, owner: int, rng: np.random.Generator) -> None:
    canvas.polygon(_outline(ship, 0.86), canvas.surface((176, 178, 172), palette.PAINTED, owner))
    _block(canvas, ship, -0.02, 0.72, 0.74, 2.5, _white(canvas, owner))
    _block(canvas, ship, 0.02, 0.54, 0.56, 2.5, _white(canvas, owner, 0.93))
    _block(canvas, ship, 0.27, 0.06, 0.9, 2.0, canvas.surface((58, 74, 92), palette.PAINTED, owner))
    _block(canvas, ship, -0.16, 0.07, 0.24, 4.0, canvas.surface(jittered((188, 60, 48), rng), palette.PAINTED, owner))
    boat = canvas.surface((226, 124, 52), palette.PAINTED, owner)
    for x in np.linspace(-0.24, 0.12, 4):
        for y in (-0.33, 0.33):
            canvas.polygon(box(0.055 * ship.length, 0.07 * ship.width, 0.0, (x * ship.length, y * ship.width)), boat)


def _place_wheelhouse(canvas: Canvas, ship: Ship, colour: palette.Colour, owner: int, rng: np.random.Generator) -> None:
    canvas.polygon(_outline(ship, 0.84), canvas.surface(jittered((158, 132, 104), rng), palette.PAINTED, owner))
    _block(canvas, ship, 0.16, 0.2, 0.6, 2.5, _white(canvas, owner))
    hatch = canvas.surface((86, 92, 96), palette.PAINTED, owner)
    canvas.polygon(box(0.2 * ship.length, 0.4 * ship.width, 0.0, (-0.14 * ship.length, 0.0)), hatch)
    net = canvas.surface(jittered((64, 128, 112), rng), palette.PAINTED, owner)
    middle = (-0.36 * ship.length, 0.0)
    canvas.polygon(arc(middle, 0.2 * ship.width, corners=10), net)


def _step_mast(canvas: Canvas, ship: Ship, colour: palette.Colour, owner: int, rng: np.random.Generator) -> None:
    canvas.polygon(_outline(ship, 0.78), canvas.surface(jittered((186, 156, 118), rng), palette.PAINTED, owner))
    canvas.polygon(box(0.3 * ship.length, 0.4 * ship.width, 0.0, (0.06 * ship.length, 0.0)), _white(canvas, owner))
    half = max(0.1, canvas.view.metres_per_pixel / 6)
    if ship.moving:
        # Under sail: the sail bellies to one side, and stays within the beam so that the hull's outline holds it.
        bent = 0.34 * ship.width * (1 if rng.random() < 0.5 else -1)
        sail = np.array([[0.12, 0.0], [-0.12, 1.0], [-0.42, 0.7], [-0.12, 0.25]]) * (ship.length, bent)
        canvas.polygon(sail, canvas.surface((246, 246, 242), palette.PAINTED, owner))
    canvas.polygon(
        box(0.5 * ship.length, 2 * half, 0.0, (-0.14 * ship.length, 0.0)), canvas.surface((236, 236, 232), palette.PAINTED, owner)
    )
    # The mast stands upright: from above it is a dot with a long thin shadow.
    mast = box(2 * half, 2 * half, 0.0, (0.1 * ship.length, 0.0))
    canvas.shade_prism(mast, 0.6 * ship.length)
    canvas.polygon(mast, _white(canvas, owner, 1.1))


def _fit_cockpit(canvas: Canvas, ship: Ship, colour: palette.Colour, owner: int, rng: np.random.Generator) -> None:
    canvas.polygon(_outline(ship, 0.8), _white(canvas, owner, 0.94))
    seats = canvas.surface(jittered((142, 98, 72) if rng.random() < 0.5 else (92, 96, 102), rng), palette.PAINTED, owner)
    canvas.polygon(box(0.34 * ship.length, 0.56 * ship.width, 0.0, (-0.24 * ship.length, 0.0)), seats)
    canvas.polygon(
        box(0.07 * ship.length, 0.62 * ship.width, 0.0, (0.02 * ship.length, 0.0)), canvas.surface(palette.GLASS, palette.PAINTED, owner)
    )
