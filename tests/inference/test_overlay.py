"""The overlay can be read at any image size and shows every mask with its number."""

import numpy as np
import pytest

from segearth_r2_jax.inference.overlay import draw_overlay
from segearth_r2_jax.inference.segment import Segmentation, Target
from segearth_r2_jax.raster.overlay import COLOURS


def _target(mask, phrase="pond"):
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1) if xs.size else None
    return Target(mask, 0.5, phrase, box, int(mask.sum()))


def _answer(words, *masks, finished=True):
    return Segmentation(words, [_target(mask) for mask in masks], finished, np.zeros((len(masks), 4, 4), np.float32))


def _square(height, width, side, top=0, left=0):
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def _has_colour(picture, colour, rows=slice(None)):
    return bool((np.asarray(picture)[rows] == colour).all(-1).any())


@pytest.mark.parametrize("size", [(1, 1), (7, 4000), (4000, 7), (300, 400), (1024, 1024), (3000, 2500)])
def test_there_is_room_for_text_at_any_size(size):
    height, width = size
    image = np.full((height, width, 3), 90, np.uint8)
    page = draw_overlay(image, "find the pond", _answer("It is [SEG].", _square(height, width, max(1, min(size) // 2))))
    assert page.mode == "RGB"
    assert 640 <= page.width <= 1700
    assert page.height <= 2200
    assert _has_colour(page, COLOURS[0])


def test_the_image_shows_through_and_is_untouched_where_there_is_no_mask():
    image = np.random.default_rng(0).integers(0, 256, (900, 900, 3)).astype(np.uint8)
    page = np.asarray(draw_overlay(image, "find", _answer("[SEG]", _square(900, 900, 200))))
    np.testing.assert_array_equal(page[300:900, :900], image[300:900])
    inside = page[50:90, 20:60].astype(int)
    for band in range(3):
        assert np.corrcoef(inside[..., band].ravel(), image[50:90, 20:60, band].ravel())[0, 1] > 0.99
    assert np.abs(inside - image[50:90, 20:60]).mean() > 10


def test_a_target_smaller_than_a_shown_pixel_is_still_marked():
    image = np.full((6000, 6000, 3), 90, np.uint8)
    page = draw_overlay(image, "find", _answer("[SEG]", _square(6000, 6000, 1, 3001, 2999)))
    assert _has_colour(page, COLOURS[0], slice(780, 820))


def test_masks_and_legend_have_the_same_distinct_colours():
    image = np.full((800, 800, 3), 90, np.uint8)
    masks = [_square(800, 800, 90, 100, 100 * i) for i in range(7)]
    page = draw_overlay(image, "find", _answer(" and ".join(["[SEG]"] * 7), *masks))
    for colour in COLOURS:
        assert _has_colour(page, colour, slice(0, 800)), "on the image"
        assert _has_colour(page, colour, slice(800, None)), "in the legend"
    assert len(set(COLOURS)) == 7


def test_more_masks_than_colours_and_masks_on_each_other():
    image = np.full((200, 200, 3), 90, np.uint8)
    page = draw_overlay(image, "find", _answer("[SEG]" * 30, *[_square(200, 200, 150)] * 30))
    assert page.height > 768


def test_an_answer_without_masks_or_words_and_an_empty_mask():
    image = np.full((300, 300, 3), 90, np.uint8)
    draw_overlay(image, "find", _answer("", finished=False))
    page = draw_overlay(image, "find", _answer("[SEG]", np.zeros((300, 300), bool)))
    assert not _has_colour(page, COLOURS[0], slice(0, 768))


def test_a_long_question_makes_the_page_longer_and_none_of_it_is_cut():
    image = np.full((300, 300, 3), 90, np.uint8)
    heights = [draw_overlay(image, text, _answer("yes")).height for text in ("a", "word " * 300, "w" * 1500, "湖" * 300)]
    assert all(height > heights[0] + 100 for height in heights[1:])
