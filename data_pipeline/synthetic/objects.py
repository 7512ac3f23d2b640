"""Draws vehicles, trees and forests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.palette import Colour, jittered, lit
from data_pipeline.synthetic.plan import Forest, Tree, Vehicle
from data_pipeline.synthetic.shapes import turned_each


def _doubled(*corners: tuple[float, float]) -> list[tuple[float, float]]:
    """Every corner twice: the same outline with as many corners as a car's body."""
    return [corner for corner in corners for _ in range(2)]


# Outlines from above in metres, the front towards +x.
_CAR_BODY = ((1.75, -1.0), (2.25, -0.6), (2.25, 0.6), (1.75, 1.0), (-1.95, 1.0), (-2.25, 0.7), (-2.25, -0.7), (-1.95, -1.0))
_CAR = np.array(
    [
        _CAR_BODY,
        _doubled((-1.55, -0.72), (0.95, -0.8), (0.95, 0.8), (-1.55, 0.72)),  # windows
        _doubled((-1.1, -0.7), (0.3, -0.72), (0.3, 0.72), (-1.1, 0.7)),  # roof
    ]
)
_TRUCK = np.array(
    [
        ((-5.25, -1.0), (4.95, -1.0), (4.95, 1.0), (-5.25, 1.0)),  # frame
        ((-5.25, -1.4), (2.25, -1.4), (2.25, 1.4), (-5.25, 1.4)),  # load
        ((2.75, -1.3), (5.25, -1.2), (5.25, 1.2), (2.75, 1.3)),  # cab
        ((4.45, -1.05), (5.0, -1.0), (5.0, 1.0), (4.45, 1.05)),  # window
    ]
)
_BUS = np.array(
    [
        ((-6.0, -1.25), (5.7, -1.25), (6.0, -0.9), (6.0, 0.9), (5.7, 1.25), (-6.0, 1.25)),  # roof
        ((5.2, -1.1), (5.85, -1.0), (5.85, 1.0), (5.2, 1.1), (5.2, 0.0), (5.2, -0.5)),  # windscreen
        ((-3.6, -0.75), (-1.4, -0.75), (-1.4, 0.75), (-3.6, 0.75), (-3.6, 0.2), (-3.6, -0.2)),  # air conditioning
        ((0.6, -0.5), (1.8, -0.5), (1.8, 0.5), (0.6, 0.5), (0.6, 0.2), (0.6, -0.2)),  # hatch
    ]
)
_HEIGHT = {"car": 1.5, "truck": 3.2, "bus": 3.2}
_TRUCK_FRAME, _TRUCK_LOAD = (58, 58, 62), (224, 224, 220)
# In coarser pictures a car's windows would be the whole car.
_FINE = 1.2


def draw_vehicles(canvas: Canvas, kind: str, vehicles: list[Vehicle], owners: list[int], rng: np.random.Generator) -> None:
    """Cars with bonnet, windows and roof, trucks with cab and load, or buses: all of `kind`, each with its number in `owners`."""
    if not vehicles:
        return
    fine = canvas.view.metres_per_pixel <= _FINE
    outlines = _TRUCK if kind == "truck" else _BUS if kind == "bus" else _CAR
    if kind != "truck" and not fine:
        outlines = outlines[:1]
    shapes = turned_each(outlines, np.array([v.heading for v in vehicles]), np.array([v.centre for v in vehicles]))
    # A vehicle is wider than its shadow is long, so the shadow of its roof is all of the shadow that shows.
    roofs = shapes[:, 1:3] if kind == "truck" else shapes[:, :1]
    for roof in roofs.reshape(-1, *shapes.shape[2:]):
        canvas.shade_floating(roof, _HEIGHT[kind])
    surfaces = []
    for vehicle, owner in zip(vehicles, owners, strict=True):
        colour = jittered((palette.BUS_COLOURS if kind == "bus" else palette.CAR_COLOURS)[vehicle.colour], rng, 0.05)
        if kind == "truck":
            tones = [_TRUCK_FRAME, _TRUCK_LOAD, colour, palette.GLASS]
        elif kind == "bus":
            tones = [colour, palette.GLASS, lit(colour, 0.82), lit(colour, 1.12)]
        else:
            tones = [colour, palette.GLASS, lit(colour, 1.05)]
        surfaces += [canvas.surface(tone, palette.PAINTED, owner) for tone in tones[: len(outlines)]]
    canvas.polygons(shapes.reshape(-1, *shapes.shape[2:]), np.array(surfaces))


def draw_trees(
    canvas: Canvas, trees: list[Tree], owner: int, rng: np.random.Generator, leaves: Sequence[Colour] = (palette.TREE_GREEN,)
) -> None:
    """Crowns in the colours `leaves` that are brighter towards the sun; all shadows first, so that they fall on the ground."""
    if not trees:
        return
    centres, radii = np.array([tree.centre for tree in trees]), np.array([tree.radius for tree in trees])
    canvas.shade_discs(centres, radii, 1.5 * radii)
    tones = [jittered(leaves[number % len(leaves)], rng, 0.14) for number in range(6)]
    layers = [[canvas.surface(lit(tone, light), palette.TREETOP, owner) for light in (0.78, 1.0, 1.25)] for tone in tones]
    sizes = np.stack([radii, 0.74 * radii, 0.4 * radii], axis=1)
    steps = np.array([0.0, 0.22, 0.42])[:, None] * canvas.towards_sun(1.0)
    places = centres[:, None] + radii[:, None, None] * steps
    surfaces = [surface for tone in rng.integers(len(tones), size=len(trees)) for surface in layers[tone]]
    canvas.discs(places.reshape(-1, 2), sizes.ravel(), surfaces)


def draw_forest(
    canvas: Canvas, forest: Forest, owner: int, rng: np.random.Generator, leaves: Sequence[Colour] = (palette.FOREST_GREEN,)
) -> None:
    """A closed canopy of the first of the colours `leaves`: its edge is made of crowns, its inside of crowns of every colour."""
    colour = jittered(leaves[0], rng, 0.08)
    centres, radii = _edge_crowns(forest.outline, rng)
    seen = canvas.sees(centres, 2 * radii + 8)
    centres, radii = centres[seen], radii[seen]
    canvas.shade_floating(forest.outline, 6.0)
    canvas.shade_discs(centres, radii, 6.0)
    base = canvas.surface(colour, palette.LEAFY, owner)
    canvas.polygon(forest.outline, base)
    canvas.discs(centres, radii, [base] * len(radii))
    shades = [colour, *leaves[1:]]
    tones = np.array([canvas.surface(lit(shade, tone), palette.LEAFY, owner) for shade in shades for tone in (0.84, 0.92, 1.1, 1.2)])
    middle, span = forest.outline.mean(0), (forest.outline.max(0) - forest.outline.min(0)) / 2
    count = int(span[0] * span[1] / 26)
    angle, arm = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.uniform(0, 0.62, count))[:, None]
    places = middle + span * arm * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    radii, chosen = rng.uniform(1.6, 3.4, count), tones[rng.integers(len(tones), size=count)]
    seen = canvas.sees(places, radii)
    canvas.discs(places[seen], radii[seen], chosen[seen].tolist())


def _edge_crowns(outline: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres [n, 2] and radii [n] of crowns every few metres along `outline`."""
    corners = np.concatenate([outline, outline[:1]])
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    stops = np.arange(0, walked[-1], 3.2)
    places = np.stack([np.interp(stops, walked, corners[:, axis]) for axis in (0, 1)], axis=1)
    return places + rng.uniform(-0.8, 0.8, places.shape), rng.uniform(1.8, 3.2, len(stops))
