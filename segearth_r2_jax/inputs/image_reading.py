"""Any picture file -> uint8 [h, w, 3] RGB.

What becomes of the files that are not plain 8-bit RGB:

* Grey, palette, 1-bit, CMYK and the like become RGB; the EXIF orientation of a photograph is applied. A TIFF keeps the
  rows and columns of its own grid.
* More than 8 bits (integers or floats): every band is stretched by itself, its 2nd percentile to 0 and its 98th to 255,
  over the valid pixels.
* More than three bands: the bands that the file calls red, green and blue, otherwise the first three.
* No data (the file's nodata value, its mask, NaN, alpha 0) becomes black. Other values of alpha change nothing: four-band
  aerial images are often delivered with the near-infrared band marked as alpha.

TIFFs and 16-bit colour PNGs are read by rasterio where it is installed (extra `geo`). Pillow reads everything else, and
the simpler TIFFs where rasterio is absent.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from segearth_r2_jax.errors import UserError

# 11585 x 11585: 384 MiB as RGB. A small file can declare any size, so the size is looked at before anything is decoded.
MAX_PIXELS = 2**27
PERCENTILES = (2.0, 98.0)

# Percentiles of a large band are taken over a regular subset of about this many pixels.
_PERCENTILE_SAMPLES = 2**22
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES = 32

# MAX_PIXELS decides; Pillow would warn from half its own limit on.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The picture in the file `path`, uint8 [h, w, 3] RGB. Raises UserError, naming the file, where there is none."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not an image file")
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return _as_array(_read(path, header, str(path)))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """The picture in the encoded bytes `data`, uint8 [h, w, 3] RGB; errors (UserError) begin with `name`."""
    return _as_array(_read(data, data[:_HEADER_BYTES], name))


def decode_picture(data: bytes, name: str) -> Image.Image:
    """The picture of `decode_image` as Pillow's own image, which resizes without being converted there and back."""
    picture = _read(data, data[:_HEADER_BYTES], name)
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


def _as_array(picture: np.ndarray | Image.Image) -> np.ndarray:
    return np.array(picture) if isinstance(picture, Image.Image) else picture


def _read(source: Path | bytes, header: bytes, name: str) -> np.ndarray | Image.Image:
    if not header:
        raise UserError(f"{name}: is empty (0 bytes); an image is needed")
    tiff = header.startswith(_TIFF_MAGIC)
    # IHDR: bit depth at byte 24, colour type (2 RGB, 6 RGBA) at byte 25. Pillow keeps only the high byte of these.
    deep_png = header.startswith(_PNG_MAGIC) and header[24:25] == b"\x10" and header[25:26] in (b"\x02", b"\x06")
    rasterio = _rasterio() if tiff or deep_png else None
    if rasterio is not None:
        return _read_with_rasterio(rasterio, source, "GTiff" if tiff else "PNG", name)
    if deep_png:
        raise UserError(f"{name}: reading a colour PNG of 16 bits needs rasterio: pip install 'segearth-r2-jax[geo]'")
    return _read_with_pillow(source, tiff, name)


def _rasterio() -> ModuleType | None:
    try:
        import rasterio
    except ImportError:
        return None
    # A picture without map coordinates is a picture all the same.
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio


def _check_size(h: int, w: int, name: str) -> None:
    if h * w > MAX_PIXELS:
        raise UserError(
            f"{name}: {w} x {h} pixels are too many to read at once (the limit is {MAX_PIXELS // 10**6} million); "
            "cut it into tiles or shrink it first"
        )


@contextlib.contextmanager
def _damaged_file_is_a_user_error(name: str) -> Iterator[None]:
    """Decoders meet damage in any place and answer with almost any exception: each of them is the file's fault."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        while error.__cause__ is not None:  # rasterio's own message only points at GDAL's
            error = error.__cause__
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: is damaged or cut short ({reason:.160})") from error


def _read_with_pillow(source: Path | bytes, tiff: bool, name: str) -> np.ndarray | Image.Image:
    try:
        image = Image.open(source if isinstance(source, Path) else io.BytesIO(source))
    except Image.DecompressionBombError:
        raise UserError(f"{name}: has too many pixels to read at once (the limit is {MAX_PIXELS // 10**6} million)") from None
    except Exception as error:
        if tiff:
            raise UserError(f"{name}: Pillow cannot read this TIFF, rasterio may: pip install 'segearth-r2-jax[geo]'") from error
        raise UserError(f"{name}: is not an image that can be read (PNG, JPEG, TIFF, WebP, BMP, ...)") from error
    with image, _damaged_file_is_a_user_error(name):
        _check_size(image.height, image.width, name)
        nodata = _pillow_nodata(image)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "F" or image.mode.startswith("I"):
            values = np.asarray(image)
            valid = np.isfinite(values) if nodata is None else np.isfinite(values) & (values != nodata)
            return _to_rgb([values], valid)
        if image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA"))
            return _to_rgb([rgba[..., c] for c in range(3)], rgba[..., 3] != 0)
        if nodata is None:
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
        rgb = np.array(image.convert("RGB"))
        rgb[(rgb == nodata).all(-1)] = 0
        return rgb


def _pillow_nodata(image: Image.Image) -> float | None:
    text = getattr(image, "tag_v2", {}).get(42113)  # GDAL_NODATA
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def _read_with_rasterio(rasterio: ModuleType, source: Path | bytes, driver: str, name: str) -> np.ndarray:
    with contextlib.ExitStack() as stack, _damaged_file_is_a_user_error(name):
        if isinstance(source, bytes):
            source = stack.enter_context(rasterio.MemoryFile(source, filename="image"))
            dataset = stack.enter_context(source.open(driver=driver))
        else:
            dataset = stack.enter_context(rasterio.open(source, driver=driver))
        _check_size(dataset.height, dataset.width, name)
        kinds = [kind.name for kind in dataset.colorinterp]
        if kinds[0] == "palette":
            index = dataset.read(1)
            colours = np.zeros((max(256, int(index.max()) + 1), 4), np.uint8)
            for value, colour in dataset.colormap(1).items():
                colours[value : value + 1] = colour
            return _to_rgb([colours[index, c] for c in range(3)], dataset.dataset_mask() != 0)
        if "cyan" in kinds:
            return np.asarray(Image.fromarray(np.moveaxis(dataset.read([1, 2, 3, 4]), 0, -1), "CMYK").convert("RGB"))
        bands = dataset.read(_colour_bands(kinds))
        if np.iscomplexobj(bands):
            bands = np.abs(bands)
        return _to_rgb(list(bands), (dataset.dataset_mask() != 0) & np.isfinite(bands).all(0))


def _colour_bands(kinds: list[str]) -> list[int]:
    """The numbers (from 1) of the bands to show, from what the file says each band is."""
    if {"red", "green", "blue"} <= set(kinds):
        return [kinds.index(colour) + 1 for colour in ("red", "green", "blue")]
    colours = [number for number, kind in enumerate(kinds, 1) if kind != "alpha"]
    return colours[:3] if len(colours) >= 3 else colours[:1]


def _to_rgb(bands: list[np.ndarray], valid: np.ndarray) -> np.ndarray:
    """Bands [h, w] (one or three) of any type and the pixels that hold data, bool [h, w] -> uint8 [h, w, 3]."""
    if not valid.any():
        valid = np.isfinite(bands[0])
    bands = [band if band.dtype == np.uint8 else _stretch(band, valid) for band in bands]
    rgb = np.stack(bands if len(bands) == 3 else bands[:1] * 3, -1)
    if not valid.all():
        rgb[~valid] = 0
    return rgb


def _stretch(band: np.ndarray[Any, Any], valid: np.ndarray) -> np.ndarray:
    """A band [h, w] of any number type -> uint8, PERCENTILES of its `valid` pixels to 0 and 255."""
    sample = band[valid]
    if sample.size == 0:
        return np.zeros(band.shape, np.uint8)
    sample = sample[:: max(1, sample.size // _PERCENTILE_SAMPLES)].astype(np.float64)
    low, high = np.percentile(sample, PERCENTILES)
    if low == high:
        low, high = sample.min(), sample.max()
    scale = 255.0 / (high - low) if high > low else 0.0
    out = np.empty(band.shape, np.uint8)
    rows = max(1, _PERCENTILE_SAMPLES // band.shape[1])
    for top in range(0, band.shape[0], rows):  # in strips: eight bytes per value of a whole scene would be too many
        part = (np.nan_to_num(band[top : top + rows].astype(np.float64), posinf=high, neginf=low) - low) * scale
        out[top : top + rows] = np.clip(part, 0, 255) + 0.5
    return out
