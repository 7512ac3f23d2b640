"""Open land: fields, forests, lakes, parks, single trees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.plan import Building, Field, Forest, Lake, Patch, Plan, Tree
from data_pipeline.synthetic.shapes import Rect, blob


def plant_fields(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    """One to three fields side by side, a hedge of grass between them."""
    strips = 1 + int(max(rect.width, rect.height) > 55 and rng.random() < 0.55)
    vertical = rect.width > rect.height
    names = list(palette.FIELD_COLOURS)
    first = int(rng.integers(len(names)))
    cut = rng.uniform(0.4, 0.6)
    for number in range(strips):
        start, end = (0.0, 1.0) if strips == 1 else ((0.0, cut) if number == 0 else (cut, 1.0))
        if vertical:
            part = Rect(rect.x0 + start * rect.width, rect.y0, rect.x0 + end * rect.width, rect.y1)
        else:
            part = Rect(rect.x0, rect.y0 + start * rect.height, rect.x1, rect.y0 + end * rect.height)
        part = part.inset(1.6)
        # Neighbours differ in colour, or their common border could not be seen.
        colour = names[(first + number * int(rng.integers(1, 3))) % 3] if number else names[first]
        corners = part.corners() + rng.uniform(-1.5, 1.5, (4, 2))
        plan.fields.append(Field(corners, colour, float(rng.choice([0.0, math.pi / 2]) + rng.uniform(-0.06, 0.06)), rng.uniform(2.6, 5.0)))
    if rng.random() < 0.6:
        _plant_row(plan, rect, rng)


def plant_forest(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    """A wood that fills the block, ragged at its edge."""
    outline = blob(rect.inset(2.0), rng, roughness=0.07, squareness=4.0)
    plan.forests.append(Forest(outline))


def dig_lake(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    """A lake with a sandy rim, some trees around it."""
    outline = blob(rect.inset(5.0), rng, roughness=0.10, squareness=2.2)
    plan.lakes.append(Lake(outline, rng.uniform(1.5, 3.5)))
    middle = outline.mean(0)
    for _ in range(int(rng.integers(4, 12))):
        corner = outline[int(rng.integers(len(outline)))]
        arm = corner - middle
        place = corner + arm / np.linalg.norm(arm) * rng.uniform(5.5, 9.0)
        plan.trees.append(Tree(tuple(place), rng.uniform(1.8, 3.4)))


def plant_park(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    """A meadow with single trees and a path."""
    plan.patches.append(Patch(rect.inset(1.0).corners(), palette.jittered(palette.LAWN, rng), palette.GRASSY))
    if rng.random() < 0.5:
        middle = rng.uniform(0.3, 0.7)
        x = rect.x0 + middle * rect.width
        path = np.array([[x - 1, rect.y0], [x + 1, rect.y0], [x + 5, rect.y1], [x + 3, rect.y1]])
        plan.patches.append(Patch(path, palette.jittered(palette.DIRT, rng), palette.EARTHY))
    scatter_trees(plan, rect, int(rect.width * rect.height / 420), rng)


def scatter_trees(plan: Plan, rect: Rect, count: int, rng: np.random.Generator, buildings: Sequence[Building] = ()) -> None:
    """Up to `count` trees in `rect`, none on one of `buildings` or in a river."""
    largest = min(3.6, rect.width / 2, rect.height / 2)
    for _ in range(count if largest > 1.6 else 0):
        radius = rng.uniform(1.6, largest)
        centre = (rng.uniform(rect.x0 + radius, rect.x1 - radius), rng.uniform(rect.y0 + radius, rect.y1 - radius))
        if plan.dry(centre, radius) and all(math.dist(centre, b.centre) > 0.4 * radius + b.radius for b in buildings):
            plan.trees.append(Tree(centre, radius))


def _plant_row(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    """Trees along one border of a block."""
    edge = rect.y0 if rng.random() < 0.5 else rect.y1
    x = rect.x0 + 3
    while x < rect.x1 - 3:
        centre = (x, edge + rng.uniform(-0.8, 0.8))
        if rng.random() < 0.75 and plan.dry(centre, 3):
            plan.trees.append(Tree(centre, rng.uniform(1.6, 2.8)))
        x += rng.uniform(4.5, 8.0)
