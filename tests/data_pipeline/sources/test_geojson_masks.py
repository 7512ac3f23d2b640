"""GeoJSON masks of a folder of one's own: brought from their coordinate system to the image's pixels."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest
from source_example import annotations, loaded, picture, reasons

from data_pipeline.sources.folder import SOURCE
from segearth_r2_jax.errors import UserError

rasterio = pytest.importorskip("rasterio")

UTM = "EPSG:32633"
LEFT, TOP, PIXEL = 500000.0, 5400000.0, 2.0
HEIGHT, WIDTH = 60, 80


def ring(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    """A closed ring in the map's metres around the pixels left..right, top..bottom (upper bounds excluded)."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return [[LEFT + PIXEL * x, TOP - PIXEL * y] for x, y in corners]


def expected(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def named(crs: str) -> dict:
    return {"crs": {"type": "name", "properties": {"name": crs}}}


def in_degrees(points: list[list[float]]) -> list[list[float]]:
    from rasterio.warp import transform

    return [list(point) for point in zip(*transform(UTM, "OGC:CRS84", *zip(*points, strict=True)), strict=True)]


@pytest.fixture
def folder(tmp_path):
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 3, "dtype": "uint8", "crs": UTM}
    affine = rasterio.transform.from_origin(LEFT, TOP, PIXEL, PIXEL)
    with rasterio.open(tmp_path / "map.tif", "w", transform=affine, **profile) as dataset:
        dataset.write(np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), np.uint8))
    # Rows go east, columns go south.
    turned = rasterio.Affine(0, PIXEL, LEFT, -PIXEL, 0, TOP)
    with rasterio.open(tmp_path / "turned.tif", "w", transform=turned, **profile) as dataset:
        dataset.write(np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), np.uint8))
    return tmp_path


def write(folder, *masks, image="map.tif"):
    (folder / "a.jsonl").write_text(json.dumps({"id": "x", "image": image, "instruction": "the fields", "masks": list(masks)}))


def one_mask(folder, mask, image="map.tif") -> np.ndarray:
    write(folder, mask, image=image)
    (row,) = annotations(SOURCE, folder, "train")
    (found,) = loaded(row)[1]
    return found


SQUARE = ring(10, 20, 30, 35)


@pytest.mark.parametrize(
    "mask",
    [
        {"type": "Polygon", "coordinates": [SQUARE], **named(UTM)},
        {"type": "Polygon", "coordinates": [SQUARE], **named("urn:ogc:def:crs:EPSG::32633")},
        {"type": "Polygon", "coordinates": [[[*point, 250.0] for point in SQUARE]], **named(UTM)},  # with heights
        {"type": "Polygon", "coordinates": [in_degrees(SQUARE)]},
        {"geojson": {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [in_degrees(SQUARE)]}}},
        {"type": "Polygon", "coordinates": [in_degrees(SQUARE)], **named("urn:ogc:def:crs:OGC:1.3:CRS84")},
    ],
)
def test_every_system_gives_the_same_pixels(folder, mask):
    np.testing.assert_array_equal(one_mask(folder, mask), expected((10, 20, 30, 35)))


def test_a_turned_grid(folder):
    mask = one_mask(folder, {"type": "Polygon", "coordinates": [ring(10, 20, 30, 35)], **named(UTM)}, image="turned.tif")
    np.testing.assert_array_equal(mask, expected((20, 10, 35, 30)))


def test_files_of_several_features_are_one_mask(folder):
    square, other, outside = ring(10, 20, 30, 35), ring(60, 5, 90, 9), ring(500, 500, 510, 510)
    hole = ring(12, 22, 14, 24)
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square, hole]}, "properties": {"a": 1}},
        {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [[other], [outside]]}},
    ]
    content = {"type": "FeatureCollection", **named(UTM), "features": features}
    (folder / "labels").mkdir()
    (folder / "labels/fields.GeoJSON").write_text(json.dumps(content))
    result = expected((10, 20, 30, 35), (60, 5, WIDTH, 9))  # What leaves the image is cut off, what lies elsewhere does not count.
    result[22:24, 12:14] = 0
    for mask in ("labels/fields.GeoJSON", {"geojson": "labels/fields.GeoJSON"}, {"geojson": content}, content):
        np.testing.assert_array_equal(one_mask(folder, mask), result)
    geometries = {"type": "GeometryCollection", "geometries": [feature["geometry"] for feature in features], **named(UTM)}
    np.testing.assert_array_equal(one_mask(folder, geometries), result)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"type": "Point", "coordinates": [1, 2]}, "expected a GeoJSON Polygon, MultiPolygon, .*; it is of the type 'Point'"),
        ({"geojson": 3}, "expected a GeoJSON .*; it has no type"),
        ({"geojson": {"type": 3}}, "expected a GeoJSON .*; it has no type"),
        ({"type": "Feature", "geometry": None}, "expected a GeoJSON .*; it has no type"),
        ({"type": "FeatureCollection", "features": {}}, "a GeoJSON FeatureCollection has a list of features"),
        ({"type": "FeatureCollection", "features": []}, "holds no polygon"),
        ({"type": "Polygon"}, "a GeoJSON Polygon has a list of coordinates"),
        ({"type": "Polygon", "coordinates": []}, "a GeoJSON Polygon has a list of coordinates"),
        ({"type": "MultiPolygon", "coordinates": [SQUARE]}, r"a ring of a GeoJSON polygon is a list of points \[x, y\]"),
        ({"type": "MultiPolygon", "coordinates": [3]}, "a GeoJSON polygon is a list of rings"),
        ({"type": "Polygon", "coordinates": [SQUARE[:2]]}, "has at least three points"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [0, float("nan")], [1, 1]]]}, "of finite numbers"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [0, 10**400], [1, 1]]]}, "is a list of points"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [0], [1, 1]]]}, "is a list of points"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [0, "x"], [1, 1]]]}, "is a list of points"),
        ({"type": "Polygon", "coordinates": [SQUARE], "crs": None}, "crs must be"),
        ({"type": "Polygon", "coordinates": [SQUARE], "crs": {"properties": {"name": 3}}}, "crs must be"),
        ({"type": "Polygon", "coordinates": [SQUARE], **named("the moon")}, "'the moon' is no known coordinate system"),
        ({"type": "Polygon", "coordinates": [SQUARE], **named("EPSG:99999999")}, "'EPSG:99999999' is no known coordinate system"),
        ({"type": "Polygon", "coordinates": [SQUARE], **named("/etc/hostname")}, "'/etc/hostname' is no known coordinate system"),
        ({"type": "Polygon", "coordinates": [SQUARE], **named("EPSG:\ud800")}, "is no known coordinate system"),
        ("absent.geojson", "file .*absent.geojson does not exist"),
        ("../map.geojson", "leaves the folder"),
        ({"geojson": "../map.geojson"}, "leaves the folder"),
    ],
)
def test_damaged_geojson_is_named(folder, mask, message):
    write(folder, mask)
    with pytest.raises(UserError, match=rf"a\.jsonl: line 1: row 'x': mask 0: .*{message}"):
        annotations(SOURCE, folder, "train")


def test_deep_collections_are_named(folder):
    geometry = {"type": "Polygon", "coordinates": [SQUARE]}
    for _ in range(50):
        geometry = {"type": "GeometryCollection", "geometries": [geometry]}
    write(folder, geometry)
    assert "lie too deep within each other" in reasons(SOURCE, folder, "train")[0]


@pytest.mark.parametrize(("content", "message"), [("", "not a JSON file"), ("[]", "expected a GeoJSON object"), ("{}", "it has no type")])
def test_a_damaged_file_is_named(folder, content, message):
    (folder / "x.geojson").write_text(content)
    write(folder, "x.geojson")
    (reason,) = reasons(SOURCE, folder, "train")
    assert message in reason
    assert "x.geojson" in reason


@pytest.mark.parametrize(
    ("mask", "image", "message"),
    [
        ({"type": "Polygon", "coordinates": [SQUARE]}, "map.tif", "has no place in EPSG:32633|none of its 1 polygons|cannot be brought"),
        ({"type": "Polygon", "coordinates": [ring(500, 500, 510, 510)], **named(UTM)}, "map.tif", "none of its 1 polygons lies within"),
        ({"type": "Polygon", "coordinates": [SQUARE], **named(UTM)}, "plain.png", "is GeoJSON, but .*plain.png has no coordinate system"),
    ],
)
def test_what_only_the_image_tells_is_said_with_it(folder, mask, image, message):
    picture(folder / "plain.png")
    write(folder, mask, image=image)
    with pytest.raises(UserError, match=rf"a\.jsonl: line 1: row 'x': mask 0.*({message})"):
        annotations(SOURCE, folder, "train")[0].load()


def test_without_rasterio_one_line_says_what_is_missing(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for mask in ("a.geojson", {"type": "Polygon", "coordinates": [SQUARE]}, {"geojson": {}}):
        write(folder, mask)
        with pytest.raises(
            UserError, match=r"a\.jsonl: line 1: has GeoJSON masks, which need rasterio: pip install 'segearth-r2-jax\[geo\]'"
        ):
            list(SOURCE.read(folder, "train"))
    write(folder, {"polygon": [[1, 2], [5, 2], [5, 9]]})
    assert len(annotations(SOURCE, folder, "train")) == 1


def test_real_footprints_on_a_real_image(data_dir, tmp_path):
    """The 43 footprints of the SpaceNet sample against their mask, which another program drew."""
    from PIL import Image

    for name in ("sample_geotiff.tif", "geotiff_labels.geojson"):
        shutil.copyfile(data_dir / "solaris_spacenet" / name, tmp_path / name)
    mask = one_mask(tmp_path, "geotiff_labels.geojson", image="sample_geotiff.tif")
    drawn = np.asarray(Image.open(data_dir / "tiny_eval/masks/solaris_buildings_0.png")) > 0
    assert (mask.astype(bool) & drawn).sum() / (mask.astype(bool) | drawn).sum() > 0.99
