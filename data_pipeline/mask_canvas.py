"""Run-length encoded masks -> the fixed canvas of a batch.

Most targets are small objects on a large image. A mask therefore travels from the process that decodes it to the batch as the box
around its foreground, and only the batch holds the whole canvas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from segearth_r2_jax.raster.rle import decode, decode_box


@dataclasses.dataclass(frozen=True)
class MaskBoxes:
    """The masks of one image: boxes int32 [k, 4] (top, left, height, width on the canvas) and their pixels, uint8 0 or 1, one box
    after the other, each column by column."""

    boxes: np.ndarray
    pixels: np.ndarray

    def paste(self, canvas: np.ndarray) -> None:
        """Writes the masks to the zeros of `canvas`, uint8 [m, c, c] with m >= k."""
        at = 0
        for target, (top, left, height, width) in zip(canvas, self.boxes.tolist(), strict=False):
            end = at + height * width
            target[top : top + height, left : left + width] = self.pixels[at:end].reshape(width, height).T
            at = end


def cut_masks(masks: Sequence[Mapping[str, Any]], height: int, width: int, canvas: int, name: str) -> MaskBoxes:
    """Decodes RLEs of one image of `height` x `width` for a canvas of side `canvas`.

    At their own size where that fits; larger ones are shrunk to the canvas, a cell being set where the mask covers half of it. Raises
    UserError beginning with `name` where an RLE is damaged.
    """
    h, w = canvas_size(height, width, canvas)
    boxes, pixels = np.zeros((len(masks), 4), np.int32), []
    for number, mask in enumerate(masks):
        mask_name = f"{name}: mask {number}"
        if (h, w) == (height, width):
            top, left, columns = decode_box(mask, mask_name)
        else:
            top, left, columns = 0, 0, _shrink(decode(mask, mask_name), h, w).T
        boxes[number] = top, left, columns.shape[1], columns.shape[0]
        pixels.append(columns.reshape(-1))
    return MaskBoxes(boxes, np.concatenate(pixels) if pixels else np.zeros(0, np.uint8))


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
