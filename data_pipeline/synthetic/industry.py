"""Plans and draws storage tanks in their walled yards, and the crates, containers and parasols that belong to no object."""

from __future__ import annotations

import math

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.palette import jittered, lit
from data_pipeline.synthetic.plan import Crate, Patch, Plan, StorageTank
from data_pipeline.synthetic.shapes import Rect, arc, turned
from data_pipeline.synthetic.town import pick

_COLOURS = (("white", 0.62), ("grey", 0.26), ("brown", 0.12))


def build_tanks(plan: Plan, rect: Rect, rng: np.random.Generator) -> None:
    """Rows of tanks of one or two sizes on gravel, a low wall around each group."""
    plan.patches.append(Patch(rect.corners(), palette.jittered(palette.LAWN, rng), palette.GRASSY))
    yard = rect.inset(3.0)
    if min(yard.width, yard.height) < 18:
        return
    plan.patches.append(Patch(yard.corners(), jittered(palette.PAVEMENT, rng), palette.PAVED))
    basin = yard.inset(1.2)
    plan.patches.append(Patch(basin.corners(), jittered(palette.DIRT, rng), palette.EARTHY))
    largest = min(15.0, min(basin.width, basin.height) / 2 - 3.0)
    radius = rng.uniform(min(6.0, largest), largest)
    pitch = 2 * radius + rng.uniform(5, 9)
    across, down = (max(1, int((side - 4.0 + pitch - 2 * radius) / pitch)) for side in (basin.width, basin.height))
    common = pick(_COLOURS, rng)
    for column in range(across):
        for row in range(down):
            if rng.random() < 0.12:
                continue
            x = basin.centre[0] + (column - (across - 1) / 2) * pitch
            y = basin.centre[1] + (row - (down - 1) / 2) * pitch
            if plan.dry((x, y), radius):
                colour = common if rng.random() < 0.8 else pick(_COLOURS, rng)
                plan.tanks.append(StorageTank((x, y), radius * rng.uniform(0.86, 1.0), rng.uniform(0.6, 1.0) * radius + 2.0, colour))


def shade_tank(canvas: Canvas, tank: StorageTank) -> None:
    """The shadow of `tank` on the ground."""
    canvas.shade_prism(arc(tank.centre, tank.radius), tank.height)


def draw_tank(canvas: Canvas, tank: StorageTank, owner: int, rng: np.random.Generator) -> None:
    """A roof from above: a rim, a cone lit in sectors or a floating roof in the shade of the rim, a stair along the side."""
    colour = jittered(palette.TANK_COLOURS[tank.colour], rng, 0.04)
    canvas.polygon(arc(tank.centre, tank.radius), canvas.surface(lit(colour, 0.78), palette.ROOF, owner))
    inner = 0.94 * tank.radius
    canvas.polygon(arc(tank.centre, inner), canvas.surface(lit(colour, 0.98), palette.ROOF, owner))
    if rng.random() < 0.35:
        # A floating roof lies lower than the rim.
        canvas.polygon(arc(tank.centre, inner), canvas.surface(lit(colour, 0.62), palette.ROOF, owner))
        middle = np.array(tank.centre) - canvas.towards_sun(0.1 * tank.radius)
        canvas.polygon(
            arc((float(middle[0]), float(middle[1])), 0.84 * tank.radius), canvas.surface(lit(colour, 0.92), palette.ROOF, owner)
        )
    else:
        sectors = 12
        for number in range(sectors):
            start = number * 2 * math.pi / sectors
            tone = 1 + 0.1 * canvas.facing(start + math.pi / sectors)
            rim = arc(tank.centre, inner, start, start + 2 * math.pi / sectors, 4)
            canvas.polygon(np.concatenate([rim, [tank.centre]]), canvas.surface(lit(colour, tone), palette.ROOF, owner))
        canvas.polygon(arc(tank.centre, 0.09 * tank.radius, corners=10), canvas.surface(lit(colour, 0.8), palette.ROOF, owner))
    half = max(0.3, canvas.view.metres_per_pixel / 5)
    heading = rng.uniform(0, 2 * math.pi)
    stair = turned(np.array([[0.1, -half], [0.94, -half], [0.94, half], [0.1, half]]) * (tank.radius, 1.0), heading, tank.centre)
    canvas.polygon(stair, canvas.surface(lit(colour, 0.72), palette.ROOF, owner))


def draw_crates(canvas: Canvas, crates: list[Crate]) -> None:
    """All shadows first, so that they fall on the ground and not on the neighbours."""
    for crate in crates:
        canvas.shade_prism(crate.outline, crate.height)
    for crate in crates:
        canvas.polygon(crate.outline, canvas.surface(crate.colour, palette.PAINTED))
