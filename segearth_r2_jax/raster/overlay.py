"""Masks over an image: each in its own colour, with an outline and a number.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart; the numbers keep the pairing of a mask with its
words from hanging on colour alone. `paint_masks` draws into a picture; `mask_layer` gives one mask as a picture of its own, to be laid
over the image where it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))

# How much of a masked pixel is the mask's colour; and how dark the rim outside of the outline is.
_FILL, _RIM = 0.42, 0.75
# A mask of fewer units than this from side to side would hardly be seen under its number.
_HIDDEN = 4
_SIDES = ((0, -1), (0, 1), (-1, 0), (1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1))


def colour(number: int) -> tuple[int, int, int]:
    """The RGB colour of mask `number`, from 0."""
    return COLOURS[number % len(COLOURS)]


def ink(number: int) -> tuple[int, int, int]:
    """Black or white: what can be read on the colour of mask `number`."""
    luminance = np.dot(colour(number), (0.299, 0.587, 0.114))
    return (0, 0, 0) if luminance > 100 else (255, 255, 255)


def paint_masks(shown: Image.Image, masks: Sequence[np.ndarray], unit: int) -> Image.Image:
    """The RGB picture `shown` with `masks`, each [h, w], zero or not, over all of it; `unit` is the height of their numbers in pixels."""
    layers = [_shown_mask(mask, shown.size) for mask in masks]
    shown = _tinted(shown, layers)
    for number, layer in enumerate(layers):
        outline, rim = _edges(layer, unit)
        shown.paste((0, 0, 0), mask=rim.point(lambda v: v * 3 // 4))
        shown.paste(colour(number), mask=outline)
    draw = ImageDraw.Draw(shown)
    for number, place in enumerate(_places(layers, unit)):
        if place is not None:
            draw_badge(draw, place, number, unit, shown.size)
    return shown


def mask_layer(mask: np.ndarray, size: tuple[int, int], number: int, unit: int) -> Image.Image:
    """Mask [h, w] as a picture of `size` (width, height) with a palette of four: nothing, its colour (half transparent), outline, rim."""
    inside = _shown_mask(mask, size)
    outline, rim = _edges(inside, unit)
    layer = Image.new("P", size)
    layer.putpalette([0, 0, 0, *colour(number), *colour(number), 0, 0, 0])
    layer.info["transparency"] = bytes((0, round(255 * _FILL), 255, round(255 * _RIM)))
    layer.paste(1, mask=inside)
    layer.paste(2, mask=outline.point(lambda v: 255 * (v > 0)))
    layer.paste(3, mask=rim.point(lambda v: 255 * (v > 0)))
    return layer


def badge_places(masks: Sequence[np.ndarray], size: tuple[int, int], unit: int) -> list[tuple[int, int] | None]:
    """Where the numbers of `masks` [h, w] stand on a picture of `size` (width, height): points (x, y); None for an empty mask."""
    return _places([_shown_mask(mask, size) for mask in masks], unit)


def draw_badge(draw: ImageDraw.ImageDraw, centre: tuple[float, float], number: int, unit: int, size: tuple[int, int] | None = None) -> None:
    """The number of a mask on its colour; kept inside a picture of `size` (width, height) if one is given."""
    half_height, text = unit * 0.72, str(number + 1)
    half_width = max(half_height, unit * 0.36 * len(text) + unit * 0.3)
    x, y = centre
    if size is not None:
        x = min(max(x, half_width + 1), max(size[0] - half_width - 2, half_width + 1))
        y = min(max(y, half_height + 1), max(size[1] - half_height - 2, half_height + 1))
    box = (x - half_width, y - half_height, x + half_width, y + half_height)
    draw.rounded_rectangle(box, half_height, fill=colour(number), outline=(0, 0, 0), width=max(1, unit // 14))
    draw.text((x, y), text, font=ImageFont.load_default(unit), fill=ink(number), anchor="mm")


def _edges(mask: Image.Image, unit: int) -> tuple[Image.Image, Image.Image]:
    """The edge of a mask ("L", 0 or 255) inside of it, and a rim outside, which keeps it visible on a background of its own colour."""
    # A pixel whose neighbourhood is not all mask, or not all background, is at the edge. A blur finds it faster than rank filters.
    near = mask.filter(ImageFilter.BoxBlur(max(2, unit // 8)))
    outline = ImageChops.multiply(mask, near.point(lambda v: 255 * (v < 255)))
    rim = ImageChops.subtract(near.point(lambda v: 255 * (v > 0)), mask)
    return outline, rim


def _tinted(shown: Image.Image, masks: Sequence[Image.Image]) -> Image.Image:
    """The image under a veil of the masks' colours, mixed where masks overlap, so that the image shows through any number of them."""
    if not masks:
        return shown
    colours = np.zeros((shown.height, shown.width, 3), np.float32)
    covers = np.zeros((shown.height, shown.width, 1), np.float32)
    for number, mask in enumerate(masks):
        inside = np.asarray(mask)[..., None] > 0
        colours += inside * np.float32(colour(number))
        covers += inside
    pixels = np.asarray(shown).astype(np.float32)
    veiled = pixels * (1 - _FILL) + colours / np.maximum(covers, 1) * _FILL
    return Image.fromarray(np.where(covers > 0, veiled, pixels).astype(np.uint8))


def _shown_mask(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The mask at the shown size, "L", 0 or 255; a target too small for one shown pixel keeps one."""
    picture = Image.fromarray((mask != 0).astype(np.uint8) * 255)
    if size[0] >= mask.shape[1]:
        return picture.resize(size, Image.Resampling.NEAREST)
    return picture.resize(size, Image.Resampling.BOX).point(lambda v: 255 * (v > 0))


def _places(masks: Sequence[Image.Image], unit: int) -> list[tuple[int, int] | None]:
    places: list[tuple[int, int] | None] = []
    for mask in masks:
        places.append(_place(np.asarray(mask) > 0, [place for place in places if place is not None], unit))
    return places


def _place(mask: np.ndarray, taken: Sequence[tuple[int, int]], unit: int) -> tuple[int, int] | None:
    """A point (x, y) for the number of a mask, away from the numbers that stand already: deep inside, or beside one it would hide."""
    ys, xs = np.nonzero(mask)
    if not xs.size:
        return None
    if max(np.ptp(xs), np.ptp(ys)) < _HIDDEN * unit:
        return _place_beside(xs, ys, taken, unit, mask.shape)
    step = max(1, xs.size // 4000)
    xs, ys = xs[::step], ys[::step]
    depth = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(2 * unit))
    value = np.asarray(depth).astype(np.float64)[ys, xs] - 0.02 * np.hypot(xs - xs.mean(), ys - ys.mean())
    for x, y in taken:
        value -= 300 * (np.hypot(xs - x, ys - y) < 2 * unit)
    best = int(value.argmax())
    return int(xs[best]), int(ys[best])


def _place_beside(xs: np.ndarray, ys: np.ndarray, taken: Sequence[tuple[int, int]], unit: int, shape: tuple[int, int]) -> tuple[int, int]:
    """A point beside the pixels (xs, ys), above them if that is free and on the picture of `shape`, or else around them."""
    low, high = np.array((xs.min(), ys.min())), np.array((xs.max(), ys.max()))
    middle, reach = (low + high) // 2, (high - low) // 2 + unit
    points = [middle + (reach + away * unit) * side for away in (0, 1, 2) for side in np.array(_SIDES)]
    if min(shape) > 2 * unit:
        points = [np.clip(point, unit, (shape[1] - unit - 1, shape[0] - unit - 1)) for point in points]
    clear = [point for point in points if (np.abs(point - middle) >= reach - unit // 4).any()]
    free = [point for point in clear if all(np.hypot(*(point - other)) >= 1.5 * unit for other in taken)]
    x, y = (free or clear or points)[0]
    return int(np.clip(x, 0, shape[1] - 1)), int(np.clip(y, 0, shape[0] - 1))
