"""Draws the sea with its surf, beaches and piers."""

from __future__ import annotations

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.palette import jittered, lit
from data_pipeline.synthetic.plan import Beach, Pier, Sea
from data_pipeline.synthetic.shapes import Rect, ribbon

_PIER_HEIGHT = 2.2


def draw_sea(canvas: Canvas, sea: Sea, owner: int, rng: np.random.Generator) -> None:
    """Open water, lighter in bands along the shore, with broken lines of surf."""
    colour = jittered(palette.SEA_WATER, rng, 0.1)
    canvas.polygon(sea.outline, canvas.surface(colour, palette.SWELL, owner))
    if len(sea.shore) < 8:
        return
    seaward = np.array([1.0, 0.0])
    for distance, tone in ((26.0, 1.1), (15.0, 1.22), (7.0, 1.4)):
        wavy = distance * (1 + 0.25 * np.sin(np.arange(len(sea.shore)) * 0.35 + rng.uniform(0, 6)))[:, None]
        shallow = canvas.surface(palette.mixed(lit(colour, tone), (108, 158, 152), 0.12), palette.SWELL, owner)
        canvas.polygon(np.concatenate([sea.shore, (sea.shore + wavy * seaward)[::-1]]), shallow)
    foam = canvas.surface(palette.FOAM, palette.WATERY, owner)
    for distance, width in ((1.2, 1.3), (6.0, 0.8)):
        run = 0
        while run < len(sea.shore) - 4:
            piece = sea.shore[run : run + int(rng.integers(4, 12))]
            if len(piece) > 2:
                canvas.polygon(ribbon(piece + distance * seaward, width * rng.uniform(0.6, 1.3)), foam)
            run += len(piece) + int(rng.integers(0, 4))


def draw_beach(canvas: Canvas, beach: Beach, owner: int, rng: np.random.Generator) -> None:
    """Sand."""
    canvas.polygon(beach.outline, canvas.surface(jittered(palette.BEACH_SAND, rng), palette.SANDY, owner))


def draw_pier(canvas: Canvas, pier: Pier, owner: int, rng: np.random.Generator) -> None:
    """Concrete with a kerb and bollards, or planks."""
    colour = jittered(palette.PLANKS if pier.wooden else palette.CONCRETE, rng)
    deck = canvas.surface(colour, palette.PAVED, owner)
    dark = canvas.surface(lit(colour, 0.82), palette.PAVED, owner)
    half = max(0.1, canvas.view.metres_per_pixel / 6)
    with canvas.moved(pier.frame):
        for rect in pier.rects:
            canvas.shade_floating(rect.corners(), _PIER_HEIGHT if not pier.wooden else 0.8)
        for rect in pier.rects:
            canvas.polygon(rect.corners(), deck)
        for rect in pier.rects:
            along = rect.width >= rect.height
            if pier.wooden:
                step = np.arange(rect.x0 + 1.5, rect.x1, 1.5) if along else np.zeros(0)
                joints = [Rect(x - half / 2, rect.y0, x + half / 2, rect.y1) for x in step]
            else:
                joints = [Rect(x - half, rect.y0, x + half, rect.y1) for x in np.arange(rect.x0 + 8, rect.x1 - 2, 8.0)]
                kerb = 0.5
                joints += [Rect(rect.x0 + 1.5, y, rect.x1, y + kerb) for y in (rect.y0, rect.y1 - kerb)]
            if canvas.view.metres_per_pixel < 1.5:
                canvas.rects(joints, dark)
