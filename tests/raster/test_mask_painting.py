"""A layer shows the same as masks painted into the picture; numbers stand on their masks."""

import io

import numpy as np
import pytest
from PIL import Image

from segearth_r2_jax.raster.overlay import COLOURS, badge_places, ink, mask_layer, paint_masks


def _square(height, width, side, top=0, left=0):
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def _laid_over(picture, layer):
    """The picture under the layer as a reader of PNG files sees it."""
    buffer = io.BytesIO()
    layer.save(buffer, "PNG")
    with Image.open(buffer) as read:
        return np.asarray(Image.alpha_composite(picture.convert("RGBA"), read.convert("RGBA")).convert("RGB"))


@pytest.mark.parametrize("size", [(240, 160), (90, 60), (480, 320)])
def test_a_layer_shows_what_painting_shows(size):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))
    mask = _square(160, 240, 60, 40, 100)
    painted = np.asarray(paint_masks(picture.copy(), [mask], 15)).astype(int)
    laid = _laid_over(picture, mask_layer(mask, size, 0, 15)).astype(int)
    differing = np.abs(painted - laid).max(-1) > 3
    # The number's badge is only in the painted picture.
    x, y = badge_places([mask], size, 15)[0]
    differing[max(0, y - 14) : y + 15, max(0, x - 14) : x + 15] = False
    assert not differing.any()
    assert (laid != np.asarray(picture)).any()


def test_a_layer_of_an_empty_mask_shows_nothing_and_its_number_has_no_place():
    picture = Image.new("RGB", (50, 40), (9, 99, 199))
    empty = np.zeros((40, 50), bool)
    np.testing.assert_array_equal(_laid_over(picture, mask_layer(empty, (50, 40), 3, 15)), np.asarray(picture))
    assert badge_places([empty, _square(40, 50, 10, 5, 5)], (50, 40), 15)[0] is None


def test_numbers_stand_on_their_masks_and_not_on_each_other():
    masks = [_square(200, 300, 120, 20, 30), _square(200, 300, 120, 20, 40)]
    places = badge_places(masks, (300, 200), 15)
    for mask, (x, y) in zip(masks, places, strict=True):
        assert mask[y, x]
    assert np.hypot(places[0][0] - places[1][0], places[0][1] - places[1][1]) >= 30


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 290), (190, 0), (190, 290), (100, 150), (0, 150), (100, 0)])
def test_a_number_does_not_hide_a_small_mask_and_stays_on_the_picture(top, left):
    masks = [_square(200, 300, 10, top, left)] * 2
    places = badge_places(masks, (300, 200), 15)
    for x, y in places:
        assert 12 <= x < 288
        assert 12 <= y < 188
        inside = masks[0][max(0, y - 5) : y + 6, max(0, x - 5) : x + 6]
        assert not inside.any()
        assert np.hypot(x - left - 5, y - top - 5) < 60
    assert places[0] != places[1]


def test_numbers_can_be_read_on_every_colour():
    def luminance(colour):
        channels = [v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
        return np.dot(channels, (0.2126, 0.7152, 0.0722))

    for number, colour in enumerate(COLOURS):
        light, dark = sorted((luminance(colour), luminance(ink(number))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, "the contrast that WCAG asks for"
