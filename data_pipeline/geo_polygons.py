"""Targets on the map: GeoJSON polygons, brought to the pixels of their georeferenced image through rasterio (extra `geo`).

GeoJSON (RFC 7946) is in longitude and latitude of WGS 84; files written before it name another system in a `crs` member, which is
obeyed. A pixel belongs where its centre lies inside a polygon and in none of its holes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.targets import ImageFile, fill_even_odd
from segearth_r2_jax.errors import UserError

WGS84 = "OGC:CRS84"
_COLLECTIONS = {"FeatureCollection": "features", "GeometryCollection": "geometries"}
_TYPES = ("Polygon", "MultiPolygon", "Feature", *_COLLECTIONS)
_DEEPEST = 8
# Only names: GDAL would also take the path or address of a file.
_CRS_NAME = re.compile(r"(urn:ogc:def:crs:)?[A-Za-z]+:([0-9.]*:)?[A-Za-z0-9]+")


@dataclasses.dataclass(frozen=True)
class GeoPolygons:
    """The union of polygons, each its outer ring and its holes, a ring being points (x, y) in `crs` (longitude first).

    `path` is the file that they come from, if it is one of their own.
    """

    polygons: tuple[tuple[tuple[tuple[float, float], ...], ...], ...]
    crs: str
    path: Path | None = None

    def rasterize(self, image: ImageFile, name: str) -> np.ndarray:
        """The mask uint8 [h, w]. UserError if the image has no place on the map or none of the polygons reaches into it."""
        import rasterio
        from rasterio.warp import transform

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                with rasterio.open(image.path) as dataset:
                    crs, to_pixels, size = dataset.crs, ~dataset.transform, (dataset.height, dataset.width)
        except Exception as error:  # GDAL's own errors have no base that rasterio exports.
            raise UserError(f"{name}: {image.path} cannot be opened as a map ({' '.join(str(error).split()):.120})") from None
        if crs is None:
            raise UserError(f"{name} is GeoJSON, but {image.path} has no coordinate system; give its polygons in pixels")
        if size != (image.height, image.width):
            raise UserError(f"{name}: {image.path} is turned when it is shown; a map image must not be")
        mask = np.zeros((image.height, image.width), np.uint8)
        reaches = False
        for polygon in self.polygons:
            rings = []
            for ring in polygon:
                try:
                    x, y = np.asarray(transform(self.crs, crs, *zip(*ring, strict=True)), np.float64)
                except Exception as error:
                    raise UserError(f"{name}: cannot be brought from {self.crs} to {crs} ({' '.join(str(error).split()):.120})") from None
                points = np.stack([to_pixels.a * x + to_pixels.b * y + to_pixels.c, to_pixels.d * x + to_pixels.e * y + to_pixels.f], 1)
                if not np.isfinite(points).all():
                    raise UserError(f"{name}: a point of {self.crs} has no place in {crs}, the system of {image.path}")
                rings.append(points)
            low, high = rings[0].min(0), rings[0].max(0)
            if high[0] <= 0 or high[1] <= 0 or low[0] >= image.width or low[1] >= image.height:
                continue
            reaches = True
            mask |= fill_even_odd(rings, image)
        if not reaches:
            raise UserError(f"{name}: none of its {len(self.polygons)} polygons lies within {image.path}")
        return mask


def check_installed(name: str) -> None:
    """UserError beginning with `name` where rasterio is absent."""
    if importlib.util.find_spec("rasterio") is None:
        raise UserError(f"{name}: has GeoJSON masks, which need rasterio: pip install 'segearth-r2-jax[geo]'")


def parse_geojson(content: Any, name: str) -> GeoPolygons:
    """The polygons of a GeoJSON geometry, feature or collection; UserError beginning with `name` if it is none or holds other shapes."""
    polygons = tuple(_polygons(content, name, 0))
    if not polygons:
        raise UserError(f"{name}: holds no polygon")
    return GeoPolygons(polygons, _crs(content, name))


def is_geojson(content: Any) -> bool:
    """Whether `content` says of itself that it is a GeoJSON object."""
    return isinstance(content, Mapping) and isinstance(content.get("type"), str)


def _polygons(content: Any, name: str, depth: int) -> list[tuple[Any, ...]]:
    kind = content.get("type") if isinstance(content, Mapping) else None
    if not isinstance(kind, str) or kind not in _TYPES:
        found = f"it is of the type {kind!r:.40}" if isinstance(kind, str) else "it has no type"
        raise UserError(f"{name}: expected a GeoJSON {', '.join(_TYPES)}; {found}")
    if depth > _DEEPEST:
        raise UserError(f"{name}: GeoJSON collections lie too deep within each other")
    if kind == "Feature":
        return _polygons(content.get("geometry"), name, depth + 1)
    if kind in _COLLECTIONS:
        members = content.get(_COLLECTIONS[kind])
        if not isinstance(members, list):
            raise UserError(f"{name}: a GeoJSON {kind} has a list of {_COLLECTIONS[kind]}")
        return [polygon for member in members for polygon in _polygons(member, name, depth + 1)]
    coordinates = content.get("coordinates")
    if not isinstance(coordinates, list) or not coordinates:
        raise UserError(f"{name}: a GeoJSON {kind} has a list of coordinates")
    return [_rings(polygon, name) for polygon in ([coordinates] if kind == "Polygon" else coordinates)]


def _rings(polygon: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(polygon, list) or not polygon:
        raise UserError(f"{name}: a GeoJSON polygon is a list of rings")
    rings = []
    for ring in polygon:
        try:
            points = tuple((float(x), float(y)) for x, y, *_ in ring)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{name}: a ring of a GeoJSON polygon is a list of points [x, y]") from None
        if len(points) < 3 or not np.isfinite(points).all():
            raise UserError(f"{name}: a ring of a GeoJSON polygon has at least three points of finite numbers")
        rings.append(points)
    return tuple(rings)


def _crs(content: Mapping[str, Any], name: str) -> str:
    """The coordinate system that the outermost object names; WGS 84 where it names none."""
    if "crs" not in content:
        return WGS84
    member = content["crs"]
    properties = member.get("properties") if isinstance(member, Mapping) else None
    crs = properties.get("name") if isinstance(properties, Mapping) else None
    if not isinstance(crs, str):
        raise UserError(f'{name}: crs must be {{"type": "name", "properties": {{"name": "EPSG:..."}}}}')
    from rasterio.crs import CRS

    try:
        if _CRS_NAME.fullmatch(crs) is None:
            raise ValueError
        CRS.from_user_input(crs)
    except Exception:  # GDAL's own errors have no base that rasterio exports.
        raise UserError(f"{name}: {crs!r:.60} is no known coordinate system, such as EPSG:32633") from None
    return crs
