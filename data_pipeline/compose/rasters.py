"""Label rasters: numbers or colours in a PNG or TIFF -> one class number per pixel; connected components; pixels that may show anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from data_pipeline.compose.classes import ClassTable
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.image_reading import MAX_PIXELS

# Pixels that touch at a corner belong together.
_EIGHT = np.ones((3, 3), bool)
LABEL_SUFFIXES = (".png", ".tif", ".tiff")


def read_numbers(path: Path) -> np.ndarray:
    """The stored numbers of a one-band raster: int64 [h, w]. Raises UserError naming the file."""
    stored = _read(path)
    if stored.ndim != 2:
        raise UserError(f"{path}: has {stored.shape[2]} bands; expected one band of numbers")
    return _whole(stored, path)


def read_classes(path: Path, table: ClassTable) -> np.ndarray:
    """A class raster, of numbers (also a palette's) or of colours: int32 [h, w], the place of each class in the table from 1, 0 if ignored.

    Raises UserError naming the file and the first unknown value.
    """
    stored = _read(path)
    if stored.ndim == 2:
        codes = _whole(stored, path)
        known = {info.value: number for number, info in enumerate(table.classes, 1) if info.value is not None}
        ignored = table.ignore
        if not known:
            raise UserError(f"{path}: holds numbers, but the classes have colours alone; give each class its id")
    else:
        if stored.shape[2] not in (3, 4) or stored.dtype != np.uint8:
            raise UserError(
                f"{path}: expected one band of class numbers or three of 8-bit colours, it has {stored.shape[2]} of {stored.dtype}"
            )
        codes = _codes(stored[..., :3].astype(np.int64))
        known = {_code(info.colour): number for number, info in enumerate(table.classes, 1) if info.colour is not None}
        ignored = tuple(_code(colour) for colour in table.ignore_colours)
        if not known:
            raise UserError(f"{path}: holds colours, but the classes have none; give each class its colour")
    values, places = np.unique(codes, return_inverse=True)
    unknown = [int(value) for value in values if value not in known and value not in ignored]
    if unknown:
        shown = unknown[0] if stored.ndim == 2 else (unknown[0] >> 16, unknown[0] >> 8 & 255, unknown[0] & 255)
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(f"{path}: the value {shown}{more} is neither a class nor ignored; name it in --classes, or use another preset")
    numbers = np.array([known.get(int(value), 0) for value in values], np.int32)
    return numbers[places].reshape(codes.shape)


def _code(colour: tuple[int, int, int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _codes(colours: np.ndarray) -> np.ndarray:
    return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]


def _whole(stored: np.ndarray, path: Path) -> np.ndarray:
    if (
        stored.dtype == bool
        or np.issubdtype(stored.dtype, np.integer)
        or (np.isfinite(stored).all() and (stored == np.round(stored)).all())
    ):
        numbers = stored.astype(np.int64)
    else:
        raise UserError(f"{path}: holds fractions or no numbers; expected whole class numbers")
    if numbers.min() < 0 or numbers.max() >= 2**31:
        raise UserError(f"{path}: holds the value {int(numbers.min() if numbers.min() < 0 else numbers.max())}; expected 0 to 2147483647")
    return numbers


def _read(path: Path) -> np.ndarray:
    """The stored values: [h, w], a palette's indices among them, or [h, w, bands]."""
    try:
        with Image.open(path) as picture:
            _check_size(picture.height, picture.width, path)
            return np.asarray(picture)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist") from None
    except Exception as error:  # Decoders answer damage, and kinds of TIFF that they do not know, with almost any exception.
        if path.suffix.lower() in (".tif", ".tiff"):
            return _read_tiff(path)
        raise UserError(f"{path}: is not a readable picture ({' '.join(str(error).split()) or type(error).__name__:.120})") from error


def _read_tiff(path: Path) -> np.ndarray:
    try:
        import rasterio
    except ImportError:
        raise UserError(f"{path}: Pillow cannot read this TIFF, rasterio may: pip install 'segearth-r2-jax[geo]'") from None
    try:
        with rasterio.open(path) as dataset:
            _check_size(dataset.height, dataset.width, path)
            bands = dataset.read()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: is not a readable picture ({' '.join(str(error).split()) or type(error).__name__:.120})") from error
    return bands[0] if len(bands) == 1 else np.moveaxis(bands, 0, -1)


def _check_size(height: int, width: int, path: Path) -> None:
    if height * width > MAX_PIXELS:
        raise UserError(f"{path}: {width} x {height} pixels are too many (the limit is {MAX_PIXELS // 10**6} million); cut it into tiles")


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected components of `mask` bool [h, w]: int32 [h, w] from 1 on, 0 outside, and how many there are."""
    return ndimage.label(mask, _EIGHT)


def holes(ignored: np.ndarray, image: np.ndarray, strip: int) -> np.ndarray:
    """The ignored pixels that may show a thing: bool [h, w].

    Not black pixels of `image` uint8 [h, w, 3], which show nothing at all (the corners of a turned photograph), and not strips of up to
    `strip` pixels, which are the edges between two labelled regions.
    """
    open_to_guess = ignored & (image != 0).any(-1)
    if strip < 1 or not open_to_guess.any():
        return open_to_guess
    # An opening with a square: what is left is a union of squares wider than the strip.
    inner = ndimage.minimum_filter(open_to_guess, size=strip + 1, mode="nearest")
    return ndimage.maximum_filter(inner, size=strip + 1, mode="nearest", origin=-1 if strip % 2 else 0) & open_to_guess
