"""From surfaces to a photograph: shadows, ground texture, furrows, waves, tree tops, haze and sensor noise."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from data_pipeline.synthetic.canvas import Canvas, View

# A furrow or wave narrower than this many pixels would alias.
_MIN_PERIOD_PIXELS = 3.2
_SHADOW_DARKNESS = (0.56, 0.53, 0.46)  # The sky still lights the shade, bluish.


def photograph(canvas: Canvas, surfaces: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The finished picture uint8 [size, size, 3] of what `canvas` holds; `surfaces` is its surface map."""
    return _camera(canvas, *texture(canvas, surfaces, rng), rng)


def texture(canvas: Canvas, surfaces: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """By how much each pixel is brighter than its flat colour, and the grain in it: float32 [size, size] both, of unit strength."""
    view = canvas.view
    tables = {name: table for name, table in canvas.finish_tables().items() if table.any()}

    def finish(name: str) -> np.ndarray:
        # One map at a time: the maps of a large picture are hundreds of megabytes each.
        return tables[name].take(surfaces)

    grain = rng.standard_normal(surfaces.shape, dtype=np.float32)
    patches = _value_noise(view, 14.0, rng) + 0.6 * _value_noise(view, 4.0, rng)
    brightness = 1 + finish("grain") * grain
    if "mottle" in tables:
        brightness += finish("mottle") * patches
    del patches
    if "furrow" in tables:
        brightness += finish("furrow") * _furrows(view, finish("furrow_period"), finish("furrow_heading"))
    if "canopy" in tables:
        brightness += finish("canopy") * _tree_tops(view, rng)
    if "ripple" in tables:
        brightness += _water(view, finish("ripple"), rng)
    return brightness, grain


def _camera(canvas: Canvas, brightness: np.ndarray, grain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, colour of the light, shadows, haze and noise."""
    haze = rng.uniform(0.0, 0.07)
    exposure = rng.uniform(1.0, 1.16) * (1 - haze)
    tints = (rng.uniform(0.98, 1.04), 1.0, rng.uniform(0.95, 1.03))
    # The luminance noise reuses the grain, moved so that it is not the texture's own.
    veil = np.float32(rng.uniform(1.0, 2.0)) * np.roll(grain, (7, 13), (0, 1)) + np.float32(haze * 205)
    shadow = canvas.shadow_picture()
    picture = np.empty((*brightness.shape, 3), np.uint8)
    # Channel by channel: numpy is slow along an axis of three.
    for channel, plane in enumerate(canvas.colour_picture().split()[:3]):
        light = np.float32(tints[channel] * exposure) * (1 - np.float32(_SHADOW_DARKNESS[channel]) * shadow)
        value = np.asarray(plane) * brightness * light + veil
        picture[..., channel] = np.clip(value, 0, 255)
    return picture


def _value_noise(view: View, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of about unit strength whose patches are `scale` metres wide: float32 [size, size]."""
    cells = max(4, math.ceil(view.extent / scale) + 3)
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    # The margin keeps the replicated border of the bicubic enlargement out of the picture.
    return np.asarray(coarse.resize((view.size, view.size), Image.Resampling.BICUBIC, box=(1, 1, cells - 1, cells - 1)))


def _furrows(view: View, period: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """Rows across the fields: float32 [size, size] from -1 to 1."""
    axis = (np.arange(view.size, dtype=np.float32) + 0.5 - view.size / 2) * np.float32(view.metres_per_pixel)
    direction = heading + np.float32(view.heading)
    across = axis[:, None] * np.cos(direction) - axis[None, :] * np.sin(direction)
    shortest = np.float32(_MIN_PERIOD_PIXELS * view.metres_per_pixel)
    return np.sin(across * (2 * np.pi) / np.maximum(period, shortest))


def _tree_tops(view: View, rng: np.random.Generator) -> np.ndarray:
    """The light on a bumpy canopy: float32 [size, size] of about unit strength."""
    bump = max(5.0, 3.5 * view.metres_per_pixel)
    height = _value_noise(view, bump, rng) + 0.5 * _value_noise(view, bump * 0.55, rng)
    step = 0.35 * bump / view.metres_per_pixel
    dx, dy = (round(step * math.cos(view.sun)), round(step * math.sin(view.sun)))
    if dx == dy == 0:
        dx = 1
    # A slope that rises away from the sun looks at it.
    slope = np.roll(height, (-dy, -dx), (0, 1)) - height
    return np.clip(slope, -1.6, 1.6) + np.float32(0.25) * height


def _water(view: View, ripple: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Waves, and shores brighter than deep water: float32 [size, size], 0 where `ripple` is 0."""
    wet = ripple > 0
    mask = Image.fromarray((wet * 255).astype(np.uint8))
    radius = max(1.0, 9.0 / view.metres_per_pixel)
    depth = np.asarray(mask.filter(ImageFilter.BoxBlur(radius)), np.float32) / 255
    waves = _value_noise(view, max(2.5, 3 * view.metres_per_pixel), rng)
    return np.where(wet, ripple * waves + 0.5 * np.clip(0.9 - depth, 0, 0.6), 0).astype(np.float32)
