"""Run lengths, polygons and mask images become masks of their image's size, or one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.targets import ImageFile, MaskImage, Polygons, RunLengths, Union, fill_even_odd
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.raster.rle import encode

IMAGE = ImageFile(Path("image.png"), 5, 7)


def test_run_lengths_in_every_form():
    mask = (np.random.default_rng(0).random((5, 7)) < 0.5).astype(np.uint8)
    runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=1 - mask[0, 0], append=2)))
    counts = [0] * int(mask[0, 0]) + [int(n) for n in runs]
    compressed = encode(mask)
    for rle in ({"size": [5, 7], "counts": counts}, compressed, {"size": (5, 7), "counts": compressed["counts"].encode()}):
        np.testing.assert_array_equal(RunLengths(rle).rasterize(IMAGE, "r"), mask)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        (encode(np.ones((7, 5))), r"is 7 x 5, its image 5 x 7 \(height x width\)"),
        ({"size": [5, 7], "counts": "0"}, "runs cover 0 pixels"),
        ({"size": [5, 7]}, "an RLE mask is"),
        ({"size": 35, "counts": "0"}, "size must be two"),
        ("RLE", "an RLE mask is"),
        (None, "an RLE mask is"),
    ],
)
def test_damaged_run_lengths(rle, message):
    with pytest.raises(UserError, match=f"^row 3: mask 0.*{message}"):
        RunLengths(rle).rasterize(IMAGE, "row 3: mask 0")


def test_a_pixel_belongs_where_its_centre_lies_inside():
    square = ((1.0, 1.0), (4.0, 1.0), (4.0, 3.0), (1.0, 3.0))
    expected = np.zeros((5, 7), np.uint8)
    expected[1:3, 1:4] = 1
    np.testing.assert_array_equal(Polygons((square,)).rasterize(IMAGE, "r"), expected)
    moved = tuple((x + 0.49, y - 0.49) for x, y in square)
    np.testing.assert_array_equal(Polygons((moved,)).rasterize(IMAGE, "r"), expected)
    # A ring that runs over itself: what is enclosed twice is outside, as the even-odd rule says.
    bow = ((0, 0), (7, 5), (7, 0), (0, 5))
    mask = Polygons((bow,)).rasterize(IMAGE, "r")
    assert mask[2, [0, 6]].all()
    assert not mask[[0, 4], 3].any()


def test_the_filled_area_is_right_on_average():
    """Against the shoelace formula, over random polygons; and a shared border is owned once."""
    rng = np.random.default_rng(1)
    image = ImageFile(Path("image.png"), 64, 64)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        ring = np.stack([32 + 25 * np.cos(angles), 32 + 25 * np.sin(angles)], 1)
        x, y = ring.T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        assert abs(int(Polygons((ring,)).rasterize(image, "r").sum()) - area) < 40  # of up to 1960; the outline has some 150 pixels
    left = Polygons((((0, 0), (30.5, 0), (20.5, 64), (0, 64)),)).rasterize(image, "r")
    right = Polygons((((30.5, 0), (64, 0), (64, 64), (20.5, 64)),)).rasterize(image, "r")
    assert (left + right == 1).all()


def test_edges_belong_to_a_polygon_where_the_source_says_so():
    square = ((1.9, 1.0), (4.0, 1.0), (4.0, 3.0), (1.9, 3.0))
    expected = np.zeros((5, 7), np.uint8)
    expected[1:4, 1:5] = 1
    np.testing.assert_array_equal(Polygons((square,), edges=True).rasterize(IMAGE, "r"), expected)


def test_what_leaves_the_image_is_cut():
    beyond = ((-50, -50), (3, -50), (3, 50), (-50, 50))
    for edges, last in ((False, 3), (True, 4)):
        expected = np.zeros((5, 7), np.uint8)
        expected[:, :last] = 1
        np.testing.assert_array_equal(Polygons((beyond,), edges).rasterize(IMAGE, "r"), expected)


@pytest.mark.parametrize(
    ("rings", "message"),
    [
        ((), "has no polygon"),
        ((((0, 0), (1, 1)),), "at least three points, this one has 2"),
        (((1, 2, 3, 4, 5, 6),), "is a list of points"),
        ((((0, 0), (1, float("nan")), (2, 2)),), "is a list of points"),
        ((((0, 0), (1, "a"), (2, 2)),), "is a list of points"),
        ((((0, 0), (1e300, 0), (2, 2)),), "expected pixels"),
        ((((0, 0), (10**400, 0), (2, 2)),), "is a list of points"),
        ((((8, 0), (9, 0), (9, 3)),), "outside of its image of 7 x 5"),
    ],
)
def test_damaged_polygons(rings, message):
    with pytest.raises(UserError, match=f"^row 3: mask 0.*{message}"):
        Polygons(rings).rasterize(IMAGE, "row 3: mask 0")


def test_polygons_that_were_drawn_on_an_image_of_another_size():
    square = ((1, 1), (4, 1), (4, 3), (1, 3))
    assert Polygons((square,), size=(5, 7)).rasterize(IMAGE, "r").sum() == 6
    with pytest.raises(UserError, match=r"^row 3: mask 0 was drawn on 7 x 5 pixels, its image has 5 x 7 \(height x width\)"):
        Polygons((square,), size=(7, 5)).rasterize(IMAGE, "row 3: mask 0")


def test_a_ring_within_a_ring_is_a_hole():
    outer = np.array(((0, 0), (7, 0), (7, 5), (0, 5)), float)
    hole = np.array(((2, 1), (4, 1), (4, 3), (2, 3)), float)
    expected = np.ones((5, 7), np.uint8)
    expected[1:3, 2:4] = 0
    np.testing.assert_array_equal(fill_even_odd((outer, hole), IMAGE), expected)


def test_a_union():
    left, right = encode(np.arange(7) < np.full((5, 1), 2)), encode(np.arange(7) > np.full((5, 1), 4))
    expected = np.broadcast_to([1, 1, 0, 0, 0, 1, 1], (5, 7))
    np.testing.assert_array_equal(Union((RunLengths(left), RunLengths(right))).rasterize(IMAGE, "r"), expected)
    with pytest.raises(UserError, match=r"^row 3: mask 0 is empty"):
        Union(()).rasterize(IMAGE, "row 3: mask 0")
    with pytest.raises(UserError, match=r"^row 3: mask 0: an RLE mask is"):
        Union((RunLengths(left), RunLengths(None))).rasterize(IMAGE, "row 3: mask 0")


def test_mask_images(tmp_path):
    numbers = np.arange(35, dtype=np.uint8).reshape(5, 7)
    Image.fromarray(numbers).save(tmp_path / "grey.png")
    palette = Image.fromarray(numbers, "P")
    palette.putpalette([0] * 768)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(numbers % 2 == 1).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(MaskImage(tmp_path / "grey.png").rasterize(IMAGE, "r"), numbers > 0)
    np.testing.assert_array_equal(MaskImage(tmp_path / "palette.png", (3, 9)).rasterize(IMAGE, "r"), np.isin(numbers, (3, 9)))
    np.testing.assert_array_equal(MaskImage(tmp_path / "bit.png").rasterize(IMAGE, "r"), numbers % 2)
    # A grey mask that was saved as a colour picture.
    Image.fromarray(numbers).convert("RGB").save(tmp_path / "replicated.png")
    np.testing.assert_array_equal(MaskImage(tmp_path / "replicated.png", (3, 9)).rasterize(IMAGE, "r"), np.isin(numbers, (3, 9)))


def test_damaged_mask_images(tmp_path):
    Image.new("L", (5, 7)).save(tmp_path / "turned.png")
    Image.new("RGB", (7, 5), (255, 0, 0)).save(tmp_path / "colour.png")
    Image.new("LA", (7, 5)).save(tmp_path / "alpha.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "turned.png").read_bytes()[:40])
    (tmp_path / "empty.png").touch()
    for file, message in (
        ("turned.png", r"is 7 x 5, its image 5 x 7"),
        ("colour.png", "has 3 different bands; a mask has one"),
        ("alpha.png", "has 2 different bands; a mask has one"),
        ("cut.png", "is not a readable picture"),
        ("empty.png", "is not a readable picture"),
        ("absent.png", "does not exist"),
    ):
        with pytest.raises(UserError, match=f"^row 3: mask 0: .*{file}:? {message}"):
            MaskImage(tmp_path / file).rasterize(IMAGE, "row 3: mask 0")
