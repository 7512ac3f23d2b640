"""An image and its masks as small files for a page: a JPEG, and a transparent PNG per mask to be laid over it.

With the masks apart from the image a page can show one of them, or none, so that what lies under a mask can be judged.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from segearth_r2_jax.raster.overlay import COLOURS, badge_places, mask_layer

# From this many masks on, those of one colour share a layer: a page of a thousand tiny pictures helps nobody.
_OWN_LAYERS = 14
# Below this quality the squares of JPEG would be taken for the scene.
_QUALITIES = (85, 75, 65, 50, 35)
# Layers are drawn at least this large, so that the outlines of masks on a small image stay thin.
_LAYER_SIDE = 384
# By which the width of outlines and the distance of numbers are chosen, in pixels of a layer.
_UNIT = 15


@dataclasses.dataclass(frozen=True)
class Layer:
    """The masks `numbers` (from 0), all of one colour, as a transparent PNG."""

    numbers: tuple[int, ...]
    png: bytes


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """An image as a page shows it, and its size in pixels."""

    content: bytes
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Picture:
    """What is shown of an image and its masks.

    `places` are where the masks' numbers stand, as shares of width and height; None for an empty mask.
    """

    jpeg: Jpeg
    layers: tuple[Layer, ...]
    places: tuple[tuple[float, float] | None, ...]


def make_jpeg(image: np.ndarray, side: int, max_bytes: int) -> Jpeg:
    """Shrinks an image uint8 [h, w, 3] to at most `side` pixels; lowers its quality until it has at most `max_bytes`, as far as can be."""
    width, height = _fitted(image.shape, side)
    shown = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= max_bytes:
            break
    return Jpeg(buffer.getvalue(), width, height)


def make_picture(jpeg: Jpeg, masks: Sequence[np.ndarray], side: int) -> Picture:
    """Lays masks [h, w], all of one size, over an image; their layers are at most `side` pixels wide and high."""
    if not masks:
        return Picture(jpeg, (), ())
    longest = max(masks[0].shape)
    size = _fitted(masks[0].shape, min(side, max(longest, _LAYER_SIDE)), enlarge=True)
    groups: dict[int, list[int]] = {}
    for number in range(len(masks)):
        groups.setdefault(number if len(masks) <= _OWN_LAYERS else number % len(COLOURS), []).append(number)
    layers = []
    for numbers in groups.values():
        together = np.any([masks[number] != 0 for number in numbers], axis=0)
        buffer = io.BytesIO()
        mask_layer(together, size, numbers[0], _UNIT).save(buffer, "PNG", optimize=True, bits=2)
        layers.append(Layer(tuple(numbers), buffer.getvalue()))
    places = [
        None if place is None else ((place[0] + 0.5) / size[0], (place[1] + 0.5) / size[1]) for place in badge_places(masks, size, _UNIT)
    ]
    return Picture(jpeg, tuple(layers), tuple(places))


def data_uri(content: bytes, kind: str) -> str:
    """`content` as an address that holds it; `kind` is jpeg or png."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _fitted(shape: tuple[int, ...], side: int, enlarge: bool = False) -> tuple[int, int]:
    """Width and height of an image of `shape` [h, w, ...] whose longer side becomes `side`, or stays if it is shorter."""
    height, width = shape[:2]
    scale = side / max(height, width)
    if not enlarge:
        scale = min(1.0, scale)
    return max(1, round(width * scale)), max(1, round(height * scale))
