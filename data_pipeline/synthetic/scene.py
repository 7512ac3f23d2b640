"""A drawn scene: the picture, and for every pixel the object and the part that is seen there."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from data_pipeline.grammar.labels import LabelledObject
from data_pipeline.synthetic import painting, sensor, shading
from data_pipeline.synthetic.canvas import Canvas, View
from data_pipeline.synthetic.conditions import Conditions
from data_pipeline.synthetic.districts import make_full_plan
from data_pipeline.synthetic.layout import make_plan

WORLDS = ("simple", "full")
# The layout is turned by up to TURN radians from the right angles; only in held-out scenes by TURN + MARGIN up to 45 degrees.
TURN, MARGIN = 0.5, 0.06


@dataclasses.dataclass(frozen=True)
class Scene:
    """`image` uint8 [h, w, 3]; `object_map` int32 [h, w], 0 where nothing named is seen; `part_map` int32 [h, w], 0 outside of parts."""

    image: np.ndarray
    object_map: np.ndarray
    part_map: np.ndarray
    objects: tuple[LabelledObject, ...]
    theme: str
    metres_per_pixel: float


def default_metres_per_pixel(size: int) -> float:
    """A ground sampling distance at which a picture of `size` pixels shows some whole blocks, and small pictures are not all specks."""
    return max(0.25, 0.6 * (256 / size) ** 0.75)


def draw_scene(
    key: tuple[int, ...], size: int, metres_per_pixel: float | None = None, *, world: str = "full", held_out: bool = False
) -> Scene:
    """The scene with the seed `key` at `size` x `size` pixels; nothing but the arguments decides it.

    `world` "simple" has airports, towns, farmland and lakes on a summer's day, with one good camera. "full" adds coasts, harbours, sports
    grounds, disasters, curved streets, seasons, hours of the day and cameras of all kinds.

    `held_out` scenes of the full world are for tests. Their layouts are such as no other scene has: the layout is turned from the right
    angles by more than any other (0.56 to 0.78 radians against at most 0.5), streets are concentric, piers leave the quay at an angle,
    aircraft stand askew, and the blocks are put to other uses than in the theme's other scenes (districts.py). In the simple world it
    changes nothing.
    """
    metres_per_pixel = metres_per_pixel or default_metres_per_pixel(size)
    if world == "simple":
        return _draw_simple(key, size, metres_per_pixel)
    if world != "full":
        raise ValueError(f"world {world!r}: expected one of {', '.join(WORLDS)}")
    plan_rng, view_rng, paint_rng, light_rng, weather_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(key).spawn(5))
    conditions = Conditions.draw(weather_rng)
    view = View(
        size,
        metres_per_pixel,
        heading=full_heading(held_out, view_rng),
        sun=float(view_rng.uniform(0, 2 * math.pi)),
        slant=conditions.slant,
    )
    canvas = Canvas(view, conditions.look)
    plan = make_full_plan(view.extent, plan_rng, held_out)
    objects = painting.paint(canvas, plan, paint_rng, conditions)
    owner_of, part_of = canvas.owner_tables()
    surfaces = canvas.surface_map()
    image = sensor.photograph(canvas, surfaces, conditions, light_rng)
    return Scene(image, owner_of.take(surfaces), part_of.take(surfaces), objects, plan.theme, metres_per_pixel)


def full_heading(held_out: bool, rng: np.random.Generator) -> float:
    """By how much the layout is turned, in radians: near to a right angle, or, held out, near to the diagonal."""
    quarter = float(rng.integers(4)) * math.pi / 2
    if held_out:
        return quarter + float(rng.choice([-1, 1]) * rng.uniform(TURN + MARGIN, math.pi / 4))
    return quarter + float(rng.uniform(-TURN, TURN))


def _draw_simple(key: tuple[int, ...], size: int, metres_per_pixel: float) -> Scene:
    plan_rng, view_rng, paint_rng, light_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(key).spawn(4))
    view = View(
        size,
        metres_per_pixel,
        heading=float(view_rng.integers(4) * math.pi / 2 + view_rng.uniform(-0.5, 0.5)),
        sun=float(math.pi / 4 + view_rng.uniform(-0.8, 0.8)),
        slant=float(view_rng.uniform(0.45, 1.0)),
    )
    canvas = Canvas(view)
    plan = make_plan(view.extent, plan_rng)
    objects = painting.paint(canvas, plan, paint_rng)
    owner_of, part_of = canvas.owner_tables()
    surfaces = canvas.surface_map()
    image = shading.photograph(canvas, surfaces, light_rng)
    return Scene(image, owner_of.take(surfaces), part_of.take(surfaces), objects, plan.theme, metres_per_pixel)
