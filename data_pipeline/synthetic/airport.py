"""An airport: terminal or hangars, an apron with aircraft, a taxiway and a runway, side by side in bands."""

from __future__ import annotations

import math

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.plan import Aircraft, Apron, Building, Patch, Plan, Runway, Taxiway, Vehicle
from data_pipeline.synthetic.shapes import Rect
from data_pipeline.synthetic.town import pick

_AIRCRAFT_COLOURS = (("white", 0.5), ("grey", 0.18), ("yellow", 0.16), ("blue", 0.16))
_ACCENTS = ((188, 40, 44), (30, 74, 150), (234, 168, 40), (34, 120, 90), (70, 74, 84))


def build_airport(plan: Plan, world: Rect, rng: np.random.Generator) -> list[Rect]:
    """Lays the bands across `world` from top to bottom; returns the land that is left on either side."""
    apron_width = rng.uniform(52, 74)
    terminal_width = rng.uniform(24, 32)
    x = -apron_width * 0.5 + rng.uniform(-0.22, 0.16) * plan.extent
    left = Rect(world.x0, world.y0, x - terminal_width - 3, world.y1)
    terminal = Rect(x - terminal_width - 3, world.y0, x, world.y1)
    apron = Rect(x, world.y0, x + apron_width, world.y1)
    grass = rng.uniform(9, 16)
    taxiway = Rect(apron.x1 + grass, world.y0, apron.x1 + grass + rng.uniform(11, 14), world.y1)
    second_grass = rng.uniform(10, 18)
    runway = Rect(taxiway.x1 + second_grass, world.y0, taxiway.x1 + second_grass + rng.uniform(26, 34), world.y1)
    meadow = palette.jittered(palette.GRASS, rng)
    plan.patches.append(Patch(Rect(apron.x1, world.y0, runway.x1 + 14, world.y1).corners(), meadow, palette.GRASSY))
    plan.aprons.append(Apron(apron))
    _build_taxiways(plan, apron, taxiway, runway, rng)
    threshold = float(rng.uniform(-0.45, 0.45) * plan.extent) if rng.random() < 0.55 else None
    plan.runways.append(Runway(runway, threshold))
    _build_terminal(plan, terminal, rng)
    _park_aircraft(plan, apron, rng)
    return [left, Rect(runway.x1 + 14, world.y0, world.x1, world.y1)]


def _build_taxiways(plan: Plan, apron: Rect, taxiway: Rect, runway: Rect, rng: np.random.Generator) -> None:
    width = taxiway.width
    links, y = [], apron.y0 + rng.uniform(0, 60)
    while y < apron.y1:
        links.append(Rect(apron.x1, y, taxiway.x0 + 1, y + width))
        across = y + rng.uniform(15, 40)
        links.append(Rect(taxiway.x1 - 1, across, runway.x0 + 1, across + width))
        y += rng.uniform(90, 140)
    plan.taxiways.append(Taxiway((taxiway, *links)))


def _build_terminal(plan: Plan, strip: Rect, rng: np.random.Generator) -> None:
    """Hangars and terminal halls along the apron, on a concrete strip that belongs to none of them."""
    plan.patches.append(Patch(strip.corners(), palette.jittered(palette.PAVEMENT, rng), palette.PAVED))
    y = strip.y0 + rng.uniform(2, 14)
    while y < strip.y1 - 10:
        length = rng.uniform(22, 46)
        kind = pick((("hangar", 0.5), ("flat", 0.5)), rng)
        colour = pick((("white", 0.4), ("grey", 0.3), ("blue", 0.18), ("red", 0.12)), rng)
        centre = (strip.centre[0] - 2, y + length / 2)
        plan.buildings.append(
            Building(kind, colour, centre, length, strip.width * rng.uniform(0.62, 0.78), math.pi / 2, rng.uniform(8, 12))
        )
        y += length + rng.uniform(8, 26)


def _park_aircraft(plan: Plan, apron: Rect, rng: np.random.Generator) -> None:
    """Aircraft stand in a row on the apron, most of them alike in heading; service vehicles between them."""
    common = float(rng.choice([math.pi, math.pi, math.pi / 2, -math.pi / 2, 0.0]))
    y = apron.y0 + rng.uniform(0, 20)
    while y < apron.y1:
        kind = pick((("jet", 0.86), ("propeller", 0.14)), rng)
        span = rng.uniform(30, min(46, apron.width * 0.66)) if kind == "jet" else rng.uniform(15, 20)
        y += span * 0.54 + rng.uniform(2, 7)
        x = apron.centre[0] + rng.uniform(-0.5, 0.5) * (apron.width - span * 1.12)
        if rng.random() < 0.82:
            heading = common + rng.normal(0, 0.14)
            colour = pick(_AIRCRAFT_COLOURS, rng)
            accent = palette.jittered(_ACCENTS[int(rng.integers(len(_ACCENTS)))], rng)
            plan.aircraft.append(Aircraft(kind, colour, accent, (x, y), heading, span))
        y += span * 0.54 + rng.uniform(3, 7)
        if rng.random() < 0.5:
            spot = (rng.uniform(apron.x0 + 6, apron.x1 - 6), y)
            service = pick((("truck", 0.55), ("car", 0.45)), rng)
            plan.vehicles.append(Vehicle(service, pick((("white", 0.5), ("yellow", 0.5)), rng), spot, rng.uniform(0, 2 * math.pi)))
            y += 6
