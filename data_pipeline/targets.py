"""How data sets draw their targets: run lengths, polygons, mask images, unions. Each becomes a mask of the image's own size."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.image_reading import MAX_PIXELS
from segearth_r2_jax.raster.rle import decode


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """The image that targets lie on: its file, and its size in pixels once decoded."""

    path: Path
    height: int
    width: int


class Target(Protocol):
    """One target of an annotation, as its source describes it. It is pickled on its way to worker processes."""

    def rasterize(self, image: ImageFile, name: str) -> np.ndarray:
        """The mask uint8 [h, w], 0 or 1, at the image's own size; UserError beginning with `name` if it is damaged or does not fit."""
        ...


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """A COCO RLE, compressed or not."""

    rle: Any

    def rasterize(self, image: ImageFile, name: str) -> np.ndarray:
        """Checks that the RLE has the image's size, too."""
        if isinstance(self.rle, Mapping) and self.rle.get("size") not in ([image.height, image.width], (image.height, image.width)):
            size = self.rle.get("size")
            if isinstance(size, list | tuple) and len(size) == 2:
                raise UserError(f"{name} is {size[0]} x {size[1]}, its image {image.height} x {image.width} (height x width)")
        return decode(self.rle, name)


@dataclasses.dataclass(frozen=True)
class Polygons:
    """The union of polygons, each a ring of (x, y) in pixels of the image, float [n, 2].

    With `edges` the vertices are rounded down to whole pixels and the outline belongs to the polygon, as in `cv2.fillPoly` and labelme;
    without, a pixel belongs where its centre lies inside (even-odd rule), so that the area of a polygon is right on average.
    `size` is (height, width) of the image they were drawn on, where the source tells it.
    """

    rings: tuple[Any, ...]
    edges: bool = False
    size: tuple[int, int] | None = None

    def rasterize(self, image: ImageFile, name: str) -> np.ndarray:
        """What lies outside of the image is cut off; a polygon wholly outside is an error, as is one with fewer than three points."""
        if self.size not in (None, (image.height, image.width)):
            raise UserError(
                f"{name} was drawn on {self.size[0]} x {self.size[1]} pixels, its image has {image.height} x {image.width} (height x width)"
            )
        if not self.rings:
            raise UserError(f"{name} has no polygon")
        mask = np.zeros((image.height, image.width), np.uint8)
        for ring in self.rings:
            points = check_ring(ring, name)
            low, high = points.min(0), points.max(0)
            if high[0] < 0 or high[1] < 0 or low[0] > image.width or low[1] > image.height:
                corner = f"({low[0]:g}, {low[1]:g})"
                raise UserError(f"{name} has a polygon at {corner}, outside of its image of {image.width} x {image.height} pixels")
            mask |= _fill_with_edges(points, image) if self.edges else fill_even_odd((points,), image)
        return mask


@dataclasses.dataclass(frozen=True)
class Union:
    """What lies in any of some targets."""

    targets: tuple[Target, ...]

    def rasterize(self, image: ImageFile, name: str) -> np.ndarray:
        """A union of no targets is an error; so is one whose parts are."""
        if not self.targets:
            raise UserError(f"{name} is empty")
        mask = np.zeros((image.height, image.width), np.uint8)
        for target in self.targets:
            mask |= target.rasterize(image, name)
        return mask


@dataclasses.dataclass(frozen=True)
class MaskImage:
    """A picture of one band or a palette; foreground where it is not zero, or has one of `values`."""

    path: Path
    values: tuple[int, ...] | None = None

    def rasterize(self, image: ImageFile, name: str) -> np.ndarray:
        """Reads the stored numbers, not colours: a palette's index, a grey value."""
        band = read_band(self.path, f"{name}: {self.path}")
        if band.shape != (image.height, image.width):
            raise UserError(
                f"{name}: {self.path} is {band.shape[0]} x {band.shape[1]}, its image {image.height} x {image.width} (height x width)"
            )
        found = band != 0 if self.values is None else np.isin(band, self.values)
        return found.astype(np.uint8)


def read_band(path: Path, name: str) -> np.ndarray:
    """The stored numbers [h, w] of a picture of one band, of a palette, or of three bands that are the same (a grey mask saved as colour).

    UserError beginning with `name` if it is another kind of picture or damaged.
    """
    try:
        # Pillow remarks on oddities, without the file's name, of pictures that it reads all the same.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(
                    f"{name}: {picture.width} x {picture.height} pixels are too many (the limit is {MAX_PIXELS // 10**6} million)"
                )
            if len(picture.getbands()) == 1:
                return np.asarray(picture)
            bands = np.asarray(picture)
            if picture.mode == "RGB" and (bands == bands[..., :1]).all():
                return np.ascontiguousarray(bands[..., 0])
            raise UserError(f"{name}: has {len(picture.getbands())} different bands; a mask has one")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: does not exist") from None
    except Exception as error:  # Decoders answer damage with almost any exception.
        raise UserError(f"{name}: is not a readable picture ({' '.join(str(error).split()) or type(error).__name__:.120})") from error


def check_ring(ring: Any, name: str) -> np.ndarray:
    """The ring's points (x, y), float64 [n, 2]; UserError beginning with `name` if it is no polygon in pixels."""
    try:
        points = np.asarray(ring, np.float64)
    except (TypeError, ValueError, OverflowError):  # Overflow: a whole number of hundreds of digits.
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1:] != (2,) or not np.isfinite(points).all():
        raise UserError(f"{name}: a polygon is a list of points (x, y)")
    if len(points) < 3:
        raise UserError(f"{name}: a polygon has at least three points, this one has {len(points)}")
    if np.abs(points).max() > 1e6:
        raise UserError(f"{name}: a polygon has a point at {np.abs(points).max():g} pixels; expected pixels of the image")
    return points


def _fill_with_edges(points: np.ndarray, image: ImageFile) -> np.ndarray:
    canvas = Image.new("L", (image.width, image.height))
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in np.floor(points)], outline=1, fill=1)
    return np.asarray(canvas)


def fill_even_odd(rings: Sequence[np.ndarray], image: ImageFile) -> np.ndarray:
    """Fills the area between `rings`, each float [n, 2] (x, y): a ring within another is a hole. uint8 [h, w].

    Even-odd fill: in each row, the pixels whose centres lie between the first and second, third and fourth ... crossing.
    """
    mask = np.zeros((image.height, image.width), np.uint8)
    (x0, y0), (x1, y1) = np.concatenate(rings).T, np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]).T
    first = max(0, int(np.floor(y0.min())))
    last = min(image.height, int(np.ceil(y0.max())))
    for row in range(first, last):
        centre = row + 0.5
        crossed = (y0 <= centre) != (y1 <= centre)
        crossings = np.sort(x0[crossed] + (centre - y0[crossed]) / (y1[crossed] - y0[crossed]) * (x1[crossed] - x0[crossed]))
        columns = np.clip(np.ceil(crossings - 0.5), 0, image.width).astype(int)
        for start, end in columns.reshape(-1, 2):
            mask[row, start:end] = 1
    return mask
