"""Run-length encoded masks <-> the fixed canvas of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from segearth_r2_jax.raster.rle import decode


def canvas_masks(masks: Sequence[Mapping[str, Any]], height: int, width: int, canvas: int, name: str) -> np.ndarray:
    """Decodes RLEs of one image of `height` x `width` -> uint8 [k, h, w], 0 or 1, with max(h, w) <= `canvas`.

    At their own size where that fits; larger ones are shrunk to the canvas, a cell being set where the mask covers half of it.
    """
    h, w = canvas_size(height, width, canvas)
    decoded = np.zeros((len(masks), h, w), np.uint8)
    for number, mask in enumerate(masks):
        full = decode(mask, f"{name}: mask {number}")
        decoded[number] = full if full.shape == (h, w) else _shrink(full, h, w)
    return decoded


def canvas_size(height: int, width: int, canvas: int) -> tuple[int, int]:
    """The size (h, w) that masks of `height` x `width` have on a canvas of side `canvas`."""
    longest = max(height, width)
    if longest <= canvas:
        return height, width
    return max(1, round(height * canvas / longest)), max(1, round(width * canvas / longest))


def _shrink(mask: np.ndarray, h: int, w: int) -> np.ndarray:
    coverage = np.asarray(Image.fromarray(mask * np.uint8(255)).resize((w, h), Image.Resampling.BOX))
    # An object smaller than half a cell keeps the cells it covers most: a target that is there never becomes empty.
    return (coverage >= np.clip(coverage.max(), 1, 128)).astype(np.uint8)
