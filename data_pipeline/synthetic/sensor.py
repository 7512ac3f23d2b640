"""The camera of the full world: sunlight by the hour, haze, bands, blur, vignetting, noise and the traces of lossy storage."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

from data_pipeline.synthetic import shading
from data_pipeline.synthetic.canvas import Canvas
from data_pipeline.synthetic.conditions import Conditions

# The share of the light that is lost in the shade, red to blue: the sky still lights it.
_SHADE = (0.6, 0.56, 0.48)
_HAZE_LIGHT = (196, 202, 210)
_LUMINANCE = (0.3, 0.55, 0.15)


def photograph(canvas: Canvas, surfaces: np.ndarray, conditions: Conditions, rng: np.random.Generator) -> np.ndarray:
    """The finished picture uint8 [size, size, 3] of what `canvas` holds; `surfaces` is its surface map. Empties the canvas."""
    flat, shadow = canvas.colour_picture(), canvas.shadow_picture()
    canvas.release()
    brightness, grain = shading.texture(canvas, surfaces, rng)
    low_sun = min(1.0, max(0.0, (conditions.slant - 0.6) / 1.3))
    tints = (1.0 + 0.07 * low_sun + rng.uniform(-0.02, 0.02), 1.0, 1.0 - 0.08 * low_sun + rng.uniform(-0.03, 0.03))
    exposure = rng.uniform(0.94, 1.14) * (1 - conditions.haze)
    if conditions.vignette:
        brightness *= _vignette(canvas.view.size, conditions.vignette)
    haze = [np.float32(conditions.haze * light) for light in _HAZE_LIGHT]
    planes = []
    for channel, plane in enumerate(flat.split()[:3]):
        # Under a hazy sky shadows are paler.
        light = np.float32(-_SHADE[channel] * (1 - conditions.haze)) * shadow
        light += 1
        light *= brightness
        light *= np.float32(tints[channel] * exposure)
        light *= np.asarray(plane)
        light += haze[channel]
        planes.append(light)
    del flat, shadow, brightness
    if conditions.bands == "panchromatic":
        grey = sum(np.float32(weight) * plane for weight, plane in zip(_LUMINANCE, planes, strict=True))
        planes = [grey, grey, grey]
    return _expose(planes, grain, conditions)


def _expose(planes: list[np.ndarray], grain: np.ndarray, conditions: Conditions) -> np.ndarray:
    """Optics first, then the sensor's noise, then storage."""
    size = grain.shape[0]
    picture = np.empty((size, size, 3), np.uint8)
    for channel, plane in enumerate(planes):
        if conditions.blur:
            stored = Image.fromarray(np.clip(plane, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(conditions.blur))
            plane = np.asarray(stored, np.float32)
        # The texture's own grain, moved so that noise and texture do not meet; one noise for all bands where they are one.
        moved = (7, 13) if conditions.bands == "panchromatic" else (7 + 16 * channel, 13 + 29 * channel)
        noise = np.roll(grain, moved, (0, 1))
        noise *= np.float32(conditions.noise)
        noise += plane
        picture[..., channel] = np.clip(noise, 0, 255, out=noise)
    return picture if conditions.jpeg is None else _stored(picture, conditions.jpeg)


def _stored(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _vignette(size: int, loss: float) -> np.ndarray:
    """float32 [size, size]: 1 in the middle, 1 - `loss` in the corners."""
    axis = np.linspace(-1, 1, size, dtype=np.float32) ** 2 / 2
    return 1 - np.float32(loss) * (axis[:, None] + axis[None, :])
