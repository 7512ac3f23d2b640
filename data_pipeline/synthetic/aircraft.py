"""Draws aircraft from above, part by part."""

from __future__ import annotations

import math

import numpy as np

from data_pipeline.grammar.labels import AIRCRAFT_PARTS
from data_pipeline.synthetic import palette
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.palette import Colour, jittered, lit
from data_pipeline.synthetic.plan import Aircraft
from data_pipeline.synthetic.shapes import turned

FUSELAGE, LEFT_WING, RIGHT_WING, LEFT_ENGINE, RIGHT_ENGINE, TAIL = range(1, len(AIRCRAFT_PARTS) + 1)

# Outlines in spans, nose towards +x, the aircraft's own right towards +y. A half outline is mirrored for the other side.
_JET_BODY = (
    *((0.52, 0.0), (0.505, 0.022), (0.47, 0.042), (0.42, 0.053), (0.3, 0.056)),
    *((-0.2, 0.056), (-0.34, 0.042), (-0.46, 0.02), (-0.52, 0.006)),
)
_JET_WING = ((0.15, 0.045), (-0.09, 0.48), (-0.115, 0.5), (-0.15, 0.5), (-0.085, 0.2), (-0.1, 0.045))
_JET_ENGINE = ((0.145, 0.145), (0.155, 0.165), (0.145, 0.205), (0.0, 0.2), (-0.02, 0.175), (0.0, 0.15))
_JET_STABILISER = ((-0.36, 0.02), (-0.465, 0.17), (-0.505, 0.185), (-0.515, 0.17), (-0.46, 0.01))
_JET_FIN = ((-0.34, 0.0), (-0.46, 0.011), (-0.53, 0.011), (-0.53, 0.0))
_JET_COCKPIT = ((0.487, 0.0), (0.48, 0.022), (0.458, 0.036), (0.452, 0.0))

_PROPELLER_BODY = ((0.36, 0.02), (0.33, 0.05), (0.1, 0.062), (-0.1, 0.052), (-0.36, 0.02), (-0.38, 0.0))
_PROPELLER_WING = ((0.16, 0.05), (0.14, 0.48), (0.11, 0.5), (0.02, 0.49), (-0.02, 0.05))
_PROPELLER_STABILISER = ((-0.27, 0.02), (-0.29, 0.16), (-0.35, 0.16), (-0.37, 0.01))
_PROPELLER_FIN = ((-0.24, 0.0), (-0.3, 0.012), (-0.4, 0.012), (-0.4, 0.0))
_PROPELLER_COCKPIT = ((0.19, 0.0), (0.17, 0.04), (0.06, 0.042), (0.05, 0.0))
_PROPELLER_BLADES = ((0.375, 0.0), (0.37, 0.13), (0.355, 0.13), (0.36, 0.0))


def draw_aircraft(canvas: Canvas, aircraft: Aircraft, owner: int, rng: np.random.Generator) -> None:
    """Engines, wings, tailplane, body and fin, in the order in which the one above covers the other."""
    jet = aircraft.kind == "jet"
    body_colour = jittered(palette.AIRCRAFT_COLOURS[aircraft.colour], rng, 0.03)
    body = _JET_BODY if jet else _PROPELLER_BODY
    wing = _JET_WING if jet else _PROPELLER_WING
    stabiliser = _JET_STABILISER if jet else _PROPELLER_STABILISER
    _shade(canvas, aircraft, body, wing, stabiliser, jet)

    def paint(outline: tuple, colour: Colour, part: int, sides: tuple[int, ...] = (1,)) -> None:
        surface = canvas.surface(colour, palette.PAINTED, owner, part)
        for side in sides:
            canvas.polygon(_half(aircraft, outline, side), surface)

    for side, wing_part, engine_part in ((-1, LEFT_WING, LEFT_ENGINE), (1, RIGHT_WING, RIGHT_ENGINE)):
        # The wing on the sun's side is a little brighter: wings are bent upwards.
        tilt = 1 + 0.05 * canvas.facing(aircraft.heading + side * math.pi / 2)
        if jet:
            _draw_engine(canvas, aircraft, side, lit(body_colour, 0.78), owner, engine_part)
        paint(wing, lit(body_colour, 0.9 * tilt), wing_part, (side,))
        _draw_flaps(canvas, aircraft, side, lit(body_colour, 0.74 * tilt), owner, wing_part, jet)
    paint(stabiliser, lit(body_colour, 0.88), TAIL, (-1, 1))
    if not jet:
        paint(_PROPELLER_BLADES, (58, 58, 60), FUSELAGE, (-1, 1))
    _draw_body(canvas, aircraft, body, body_colour, owner)
    paint(_JET_COCKPIT if jet else _PROPELLER_COCKPIT, palette.GLASS, FUSELAGE, (-1, 1))
    paint(_JET_FIN if jet else _PROPELLER_FIN, aircraft.accent, TAIL, (-1, 1))


def _half(aircraft: Aircraft, outline: tuple, side: int) -> np.ndarray:
    points = np.array(outline) * (aircraft.span, side * aircraft.span)
    return turned(points, aircraft.heading, aircraft.centre)


def _whole(aircraft: Aircraft, outline: tuple, narrowing: float = 1.0) -> np.ndarray:
    half = np.array(outline) * (aircraft.span, aircraft.span * narrowing)
    return turned(np.concatenate([half, half[::-1] * (1, -1)]), aircraft.heading, aircraft.centre)


def _shade(canvas: Canvas, aircraft: Aircraft, body: tuple, wing: tuple, stabiliser: tuple, jet: bool) -> None:
    height = aircraft.span * 0.1
    canvas.shade_prism(_whole(aircraft, body), height * 1.1)
    for side in (-1, 1):
        canvas.shade_floating(_half(aircraft, wing, side), height)
        canvas.shade_floating(_half(aircraft, stabiliser, side), height * 1.3)
        if jet:
            canvas.shade_floating(_half(aircraft, _JET_ENGINE, side), height * 0.6)


def _draw_engine(canvas: Canvas, aircraft: Aircraft, side: int, colour: Colour, owner: int, part: int) -> None:
    nacelle = canvas.surface(colour, palette.PAINTED, owner, part)
    canvas.polygon(_half(aircraft, _JET_ENGINE, side), nacelle)
    intake = canvas.surface((66, 68, 74), palette.PAINTED, owner, part)
    canvas.polygon(_half(aircraft, ((0.145, 0.148), (0.155, 0.165), (0.145, 0.202), (0.132, 0.2), (0.132, 0.15)), side), intake)


def _draw_flaps(canvas: Canvas, aircraft: Aircraft, side: int, colour: Colour, owner: int, part: int, jet: bool) -> None:
    """The line of the flaps along the wing's trailing edge; too thin to show in a coarse picture."""
    if canvas.view.metres_per_pixel > 0.8:
        return
    line = (
        ((-0.07, 0.06), (-0.062, 0.2), (-0.12, 0.44), (-0.126, 0.44), (-0.07, 0.2), (-0.078, 0.06))
        if jet
        else ((0.02, 0.08), (0.05, 0.45), (0.04, 0.45), (0.01, 0.08))
    )
    canvas.polygon(_half(aircraft, line, side), canvas.surface(colour, palette.PAINTED, owner, part))


def _draw_body(canvas: Canvas, aircraft: Aircraft, body: tuple, colour: Colour, owner: int) -> None:
    """A tube: darker at the side that turns from the sun."""
    lean = canvas.facing(aircraft.heading + math.pi / 2)
    canvas.polygon(_whole(aircraft, body), canvas.surface(lit(colour, 0.8), palette.PAINTED, owner, FUSELAGE))
    shift = turned(np.array([[0.0, 0.012 * aircraft.span * lean]]), aircraft.heading, (0.0, 0.0))
    canvas.polygon(_whole(aircraft, body, 0.72) + shift, canvas.surface(lit(colour, 0.97), palette.PAINTED, owner, FUSELAGE))
    canvas.polygon(_whole(aircraft, body, 0.34) + 1.6 * shift, canvas.surface(lit(colour, 1.06), palette.PAINTED, owner, FUSELAGE))
