"""Draws vehicles, trees and forests."""

from __future__ import annotations

import math

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.palette import jittered, lit
from data_pipeline.synthetic.plan import Forest, Tree, Vehicle
from data_pipeline.synthetic.shapes import box, turned

CAR_LENGTH, CAR_WIDTH = 4.5, 2.0
TRUCK_LENGTH, TRUCK_WIDTH = 10.5, 2.8


def vehicle_reach(vehicle: Vehicle) -> float:
    """Metres from the middle of `vehicle` to its farthest corner."""
    return TRUCK_LENGTH / 2 + 1 if vehicle.kind == "truck" else CAR_LENGTH / 2 + 0.5


def shade_vehicle(canvas: Canvas, vehicle: Vehicle) -> None:
    """The shadow on the ground."""
    if vehicle.kind == "truck":
        canvas.shade_prism(box(TRUCK_LENGTH, TRUCK_WIDTH, vehicle.heading, vehicle.centre), 3.2)
    else:
        canvas.shade_prism(box(CAR_LENGTH, CAR_WIDTH, vehicle.heading, vehicle.centre), 1.5)


def draw_vehicle(canvas: Canvas, vehicle: Vehicle, owner: int, rng: np.random.Generator) -> None:
    """A car with bonnet, windows and roof, or a truck with cab and box."""
    colour = jittered(palette.CAR_COLOURS[vehicle.colour], rng, 0.05)
    if vehicle.kind == "truck":
        _draw_truck(canvas, vehicle, colour, owner)
    else:
        _draw_car(canvas, vehicle, colour, owner)


def _place(vehicle: Vehicle, points: list[tuple[float, float]]) -> np.ndarray:
    return turned(np.array(points, float), vehicle.heading, vehicle.centre)


def _draw_car(canvas: Canvas, car: Vehicle, colour: palette.Colour, owner: int) -> None:
    a, b = CAR_LENGTH / 2, CAR_WIDTH / 2
    body = canvas.surface(colour, palette.PAINTED, owner)
    front, back = [(a - 0.5, -b), (a, -b + 0.4), (a, b - 0.4), (a - 0.5, b)], [(-a + 0.3, b), (-a, b - 0.3), (-a, -b + 0.3), (-a + 0.3, -b)]
    canvas.polygon(_place(car, front + back), body)
    if canvas.view.metres_per_pixel > 1.2:
        return  # The windows would be the whole car.
    glass = canvas.surface(palette.GLASS, palette.PAINTED, owner)
    roof = canvas.surface(lit(colour, 1.1 if max(colour) < 200 else 1.03), palette.PAINTED, owner)
    canvas.polygon(_place(car, [(-1.55, -0.72), (0.95, -0.8), (0.95, 0.8), (-1.55, 0.72)]), glass)
    canvas.polygon(_place(car, [(-1.1, -0.7), (0.3, -0.72), (0.3, 0.72), (-1.1, 0.7)]), roof)


def _draw_truck(canvas: Canvas, truck: Vehicle, colour: palette.Colour, owner: int) -> None:
    a, b = TRUCK_LENGTH / 2, TRUCK_WIDTH / 2
    frame = canvas.surface((58, 58, 62), palette.PAINTED, owner)
    load = canvas.surface(lit((224, 224, 220), 1.0), palette.PAINTED, owner)
    cab = canvas.surface(colour, palette.PAINTED, owner)
    glass = canvas.surface(palette.GLASS, palette.PAINTED, owner)
    canvas.polygon(_place(truck, [(-a, -b + 0.4), (a - 0.3, -b + 0.4), (a - 0.3, b - 0.4), (-a, b - 0.4)]), frame)
    canvas.polygon(_place(truck, [(-a, -b), (a - 3.0, -b), (a - 3.0, b), (-a, b)]), load)
    canvas.polygon(_place(truck, [(a - 2.5, -b + 0.1), (a, -b + 0.2), (a, b - 0.2), (a - 2.5, b - 0.1)]), cab)
    canvas.polygon(_place(truck, [(a - 0.8, -b + 0.35), (a - 0.25, -b + 0.4), (a - 0.25, b - 0.4), (a - 0.8, b - 0.35)]), glass)


def shade_tree(canvas: Canvas, tree: Tree) -> None:
    """The shadow on the ground."""
    canvas.shade_disc(tree.centre, tree.radius, tree.radius * 1.5)


def draw_tree(canvas: Canvas, tree: Tree, owner: int, rng: np.random.Generator) -> None:
    """A crown, brighter towards the sun."""
    colour = jittered(palette.TREE_GREEN, rng, 0.14)
    x, y = tree.centre
    canvas.disc(tree.centre, tree.radius, canvas.surface(lit(colour, 0.78), palette.TREETOP, owner))
    dx, dy = canvas.towards_sun(tree.radius * 0.22)
    canvas.disc((x + dx, y + dy), tree.radius * 0.74, canvas.surface(colour, palette.TREETOP, owner))
    dx, dy = canvas.towards_sun(tree.radius * 0.42)
    canvas.disc((x + dx, y + dy), tree.radius * 0.4, canvas.surface(lit(colour, 1.25), palette.TREETOP, owner))


def draw_forest(canvas: Canvas, forest: Forest, owner: int, rng: np.random.Generator) -> None:
    """A closed canopy: its edge is made of crowns, its inside of lighter and darker ones."""
    colour = jittered(palette.FOREST_GREEN, rng, 0.08)
    crowns = _edge_crowns(forest.outline, rng)
    canvas.shade_floating(forest.outline, 6.0)
    for centre, radius in crowns:
        canvas.shade_disc(centre, radius, 6.0)
    base = canvas.surface(colour, palette.LEAFY, owner)
    canvas.polygon(forest.outline, base)
    for centre, radius in crowns:
        canvas.disc(centre, radius, base)
    tones = [canvas.surface(lit(colour, tone), palette.LEAFY, owner) for tone in (0.84, 0.92, 1.1, 1.2)]
    middle, span = forest.outline.mean(0), (forest.outline.max(0) - forest.outline.min(0)) / 2
    for _ in range(int(span[0] * span[1] / 22)):
        angle, arm = rng.uniform(0, 2 * math.pi), math.sqrt(rng.uniform(0, 0.62))
        centre = tuple(middle + span * arm * (math.cos(angle), math.sin(angle)))
        if canvas.sees(centre, 4):
            canvas.disc(centre, rng.uniform(1.6, 3.4), tones[int(rng.integers(len(tones)))])


def _edge_crowns(outline: np.ndarray, rng: np.random.Generator) -> list[tuple[tuple[float, float], float]]:
    following = np.roll(outline, -1, axis=0)
    crowns = []
    for start, end in zip(outline, following, strict=True):
        for share in np.arange(0, 1, 3.5 / max(1.0, float(np.linalg.norm(end - start)))):
            place = start + share * (end - start) + rng.uniform(-0.8, 0.8, 2)
            crowns.append(((float(place[0]), float(place[1])), rng.uniform(1.8, 3.2)))
    return crowns
