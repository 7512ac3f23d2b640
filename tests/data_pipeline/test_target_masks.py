"""Target masks lie on the canvas at their own size, or shrunk without losing an object."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.masks import canvas_masks, canvas_size
from segearth_r2_jax.raster.rle import encode


def random_mask(h: int, w: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((h, w)) < 0.4).astype(np.uint8)


def test_masks_that_fit_are_unchanged():
    masks = [random_mask(20, 31, seed) for seed in range(3)]
    np.testing.assert_array_equal(canvas_masks([encode(m) for m in masks], 20, 31, 31, "r"), masks)


def test_no_mask():
    assert canvas_masks((), 20, 31, 64, "r").shape == (0, 20, 31)


@pytest.mark.parametrize(
    ("size", "canvas", "expected"), [((100, 50), 50, (50, 25)), ((64, 64), 32, (32, 32)), ((3, 900), 90, (1, 90)), ((900, 1), 90, (90, 1))]
)
def test_larger_masks_are_shrunk_to_the_canvas(size, canvas, expected):
    assert canvas_size(*size, canvas) == expected
    full = np.ones(size, np.uint8)
    np.testing.assert_array_equal(canvas_masks([encode(full)], *size, canvas, "r")[0], np.ones(expected))


def test_a_cell_is_set_where_half_of_it_is_covered():
    coarse = random_mask(12, 9)
    full = np.kron(coarse, np.ones((4, 4), np.uint8))
    full[0, 0] ^= 1  # One pixel of sixteen decides nothing.
    np.testing.assert_array_equal(canvas_masks([encode(full)], 48, 36, 12, "r")[0], coarse)


def test_a_small_object_does_not_vanish():
    full = np.zeros((80, 80), np.uint8)
    full[43, 61] = 1
    shrunk = canvas_masks([encode(full)], 80, 80, 10, "r")[0]
    assert shrunk.sum() == 1
    assert shrunk[43 // 8, 61 // 8] == 1


def test_an_empty_mask_stays_empty():
    assert not canvas_masks([encode(np.zeros((80, 80)))], 80, 80, 10, "r").any()
