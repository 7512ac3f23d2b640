"""The one geometry: how an image of any shape is placed in the square frame that the mask side sees, and the way back.

Mirrors `preprocess_image` of the official SegEarth-R2 `datasets/dataset.py`: the longest side is scaled to the frame, the rest is
padded at the right or at the bottom with 128, before normalisation. The way back, which the official code lacks, returns maps
predicted in the frame to the pixels of the image that was asked about, whatever its aspect ratio.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

PADDING_VALUE = 128  # Of the raw pixels: after normalisation the padding is close to, but not, zero.

# Rows of a restored map are made in strips of about this many pixels: Pillow's own buffers then stay small beside the result.
_STRIP_PIXELS = 1 << 24


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """Places images of `height` x `width` pixels at the top left of a square frame of side `size`."""

    height: int
    width: int
    size: int

    def __post_init__(self):
        if min(self.height, self.width, self.size) < 1:
            raise ValueError(f"an image of {self.height} x {self.width} pixels cannot be placed in a frame of side {self.size}")

    @property
    def placed_size(self) -> tuple[int, int]:
        """Height and width, in frame pixels, of the part of the frame that the image covers; the rest is padding."""
        # The order of the operations is the reference's: it decides how a half is rounded.
        scale = self.size / min(self.height, self.width)
        height, width = scale * self.height, scale * self.width
        longest = max(height, width)
        if longest > self.size:
            height, width = height * (self.size / longest), width * (self.size / longest)
        # A sliver thinner than half a frame pixel still has to be seen.
        return max(1, int(height + 0.5)), max(1, int(width + 0.5))

    def place_image(self, image: np.ndarray) -> np.ndarray:
        """uint8 [height, width, 3] -> uint8 [size, size, 3]: resized (bilinear, antialiased when shrinking) and padded."""
        if image.shape != (self.height, self.width, 3) or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 [{self.height}, {self.width}, 3], got {image.dtype} {list(image.shape)}")
        return self.place_picture(Image.fromarray(image))

    def place_picture(self, picture: Image.Image) -> np.ndarray:
        """The frame of `place_image` for an RGB image of Pillow; the array may be read-only."""
        if picture.size != (self.width, self.height) or picture.mode != "RGB":
            raise ValueError(
                f"expected an RGB image of {self.width} x {self.height}, got {picture.mode} {picture.width} x {picture.height}"
            )
        height, width = self.placed_size
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if (height, width) == (self.size, self.size):
            return np.asarray(picture)
        frame = np.full((self.size, self.size, 3), PADDING_VALUE, np.uint8)
        frame[:height, :width] = np.asarray(picture)
        return frame

    def restore(self, frame_map: np.ndarray) -> np.ndarray:
        """A map over the whole frame, float [m, m] at any resolution m -> float32 [height, width] on the image's pixels.

        The part that the image covers is cut out and resampled (bilinear, antialiased when shrinking) in one step, so that
        logits are interpolated once and thresholded at full resolution. Padding never leaks in.
        """
        if frame_map.ndim != 2 or frame_map.shape[0] != frame_map.shape[1]:
            raise ValueError(f"expected a square map over the frame, got {list(frame_map.shape)}")
        scale = frame_map.shape[0] / self.size
        placed_height, placed_width = self.placed_size
        bottom, right = placed_height * scale, placed_width * scale
        # Cells that the image only touches stay; those of pure padding go, so that the resampling filter cannot reach them.
        valid = np.ascontiguousarray(frame_map[: math.ceil(bottom), : math.ceil(right)], dtype=np.float32)
        source = Image.fromarray(valid)
        restored = np.empty((self.height, self.width), np.float32)
        rows = max(1, _STRIP_PIXELS // self.width)
        for top in range(0, self.height, rows):
            end = min(top + rows, self.height)
            box = (0.0, top * bottom / self.height, right, end * bottom / self.height)
            restored[top:end] = source.resize((self.width, end - top), Image.Resampling.BILINEAR, box=box)
        return restored
