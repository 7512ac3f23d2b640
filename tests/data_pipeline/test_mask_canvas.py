"""Target masks lie on the canvas at their own size, or shrunk without losing an object."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.mask_canvas import canvas_size, cut_masks
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.raster.rle import encode


def on_canvas(masks: list[np.ndarray], canvas: int, slots: int = 4) -> np.ndarray:
    """The masks of one image as a batch holds them."""
    h, w = masks[0].shape
    out = np.zeros((slots, canvas, canvas), np.uint8)
    cut_masks([encode(mask) for mask in masks], h, w, canvas, "r").paste(out)
    return out


def random_mask(h: int, w: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((h, w)) < 0.4).astype(np.uint8)


def test_masks_that_fit_are_unchanged():
    sparse = np.zeros((20, 31), np.uint8)
    sparse[7:9, 20:25] = 1
    masks = [random_mask(20, 31, 0), sparse, random_mask(20, 31, 1)]
    got = on_canvas(masks, 40)
    np.testing.assert_array_equal(got[:3, :20, :31], masks)
    assert got.sum() == sum(mask.sum() for mask in masks)


def test_only_the_box_of_an_object_travels():
    mask = np.zeros((500, 600), np.uint8)
    mask[100:110, 400:430] = 1
    cut = cut_masks([encode(mask)], 500, 600, 600, "r")
    assert cut.boxes.tolist() == [[100, 400, 10, 30]]
    assert cut.pixels.shape == (300,)


def test_no_mask():
    cut = cut_masks((), 20, 31, 64, "r")
    assert (cut.boxes.shape, cut.pixels.shape) == ((0, 4), (0,))
    canvas = np.zeros((2, 64, 64), np.uint8)
    cut.paste(canvas)
    assert not canvas.any()


@pytest.mark.parametrize(
    ("size", "canvas", "expected"), [((100, 50), 50, (50, 25)), ((64, 64), 32, (32, 32)), ((3, 900), 90, (1, 90)), ((900, 1), 90, (90, 1))]
)
def test_larger_masks_are_shrunk_to_the_canvas(size, canvas, expected):
    assert canvas_size(*size, canvas) == expected
    got = on_canvas([np.ones(size, np.uint8)], canvas)
    assert got[0, : expected[0], : expected[1]].all()
    assert got.sum() == expected[0] * expected[1]


def test_a_cell_is_set_where_half_of_it_is_covered():
    coarse = random_mask(12, 9)
    full = np.kron(coarse, np.ones((4, 4), np.uint8))
    full[0, 0] ^= 1  # One pixel of sixteen decides nothing.
    np.testing.assert_array_equal(on_canvas([full], 12)[0, :, :9], coarse)


def test_a_small_object_does_not_vanish():
    full = np.zeros((80, 80), np.uint8)
    full[43, 61] = 1
    shrunk = on_canvas([full], 10)[0]
    assert shrunk.sum() == 1
    assert shrunk[43 // 8, 61 // 8] == 1


@pytest.mark.parametrize("canvas", [10, 80])
def test_an_empty_mask_stays_empty(canvas):
    assert not on_canvas([np.zeros((80, 80), np.uint8)], canvas).any()


@pytest.mark.parametrize("canvas", [4, 8])
def test_a_damaged_mask_is_named(canvas):
    good, bad = encode(np.ones((8, 8), np.uint8)), {"size": [8, 8], "counts": "0"}
    with pytest.raises(UserError, match=r"^row 3: mask 1: "):
        cut_masks([good, bad], 8, 8, canvas, "row 3")
