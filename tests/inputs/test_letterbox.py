"""An image of any shape goes into the square frame, and what was predicted there comes back onto its own pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segearth_r2_jax.inputs import letterbox
from segearth_r2_jax.inputs.letterbox import Letterbox

SHAPES = [(1, 1), (1, 500), (500, 1), (37, 211), (97, 61), (64, 64), (300, 200), (513, 700)]


def picture(height: int, width: int) -> np.ndarray:
    y, x, c = np.mgrid[:height, :width, :3]
    return ((7 * x + 13 * y + 31 * c + x * y // 17) % 256).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "placed"),
    [((60, 100), (614, 1024)), ((97, 61), (1024, 644)), ((64, 64), (1024, 1024)), ((37, 211), (180, 1024)), ((1500, 1100), (1024, 751))],
)
def test_sizes_are_those_of_the_reference(shape, placed):
    assert Letterbox(*shape, 1024).placed_size == placed


@pytest.mark.parametrize("shape", SHAPES)
def test_the_image_is_at_the_top_left_and_the_rest_is_128(shape):
    box = Letterbox(*shape, 128)
    image = picture(*shape)
    frame = box.place_image(image)
    height, width = box.placed_size
    assert max(height, width) == 128
    assert frame.shape == (128, 128, 3)
    assert frame.dtype == np.uint8
    assert (frame[height:] == 128).all()
    assert (frame[:, width:] == 128).all()
    np.testing.assert_array_equal(frame[:height, :width], Image.fromarray(image).resize((width, height), Image.BILINEAR))


def test_an_image_of_the_frame_s_size_is_unchanged():
    image = picture(96, 96)
    np.testing.assert_array_equal(Letterbox(96, 96, 96).place_image(image), image)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resolution", [32, 128])
def test_a_position_comes_back_to_where_it_was(shape, resolution):
    """Ramps over the frame are linear, so bilinear resampling must give each pixel's own frame coordinate."""
    box = Letterbox(*shape, 128)
    cell = 128 / resolution
    centre = (np.arange(resolution, dtype=np.float32) + 0.5) * cell
    for axis, (pixels, placed) in enumerate(zip(shape, box.placed_size, strict=True)):
        ramp = np.broadcast_to(centre[:, None] if axis == 0 else centre, (resolution, resolution))
        restored = box.restore(ramp)
        assert restored.shape == shape
        assert restored.dtype == np.float32
        expected = (np.arange(pixels) + 0.5) * placed / pixels
        got = restored.mean(axis=1 - axis)
        # Up to one cell (or one pixel, whichever is larger) from the edge the value is that of the nearest cell centre.
        edge = max(cell, placed / pixels)
        inner = (expected > edge) & (expected < placed - edge)
        # Exact where the map is enlarged; where it is shrunk, Pillow's sampled triangle is off centre by under a tenth of a cell.
        tolerance = 1e-3 if placed / pixels <= cell else 0.1 * cell
        np.testing.assert_allclose(got[inner], expected[inner], rtol=0, atol=tolerance)
        assert np.abs(got - expected).max() <= edge


@pytest.mark.parametrize("shape", [(10, 40), (40, 10), (90, 333), (400, 130)])
def test_padding_never_leaks_into_the_image(shape):
    box = Letterbox(*shape, 64)
    height, width = box.placed_size
    frame_map = np.full((64, 64), -1e6, np.float32)
    frame_map[:height, :width] = 3.0
    np.testing.assert_allclose(box.restore(frame_map), 3.0, rtol=1e-6)


def test_a_square_logit_map_equals_plain_resizing():
    logits = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    expected = Image.fromarray(logits).resize((300, 300), Image.BILINEAR)
    np.testing.assert_allclose(Letterbox(300, 300, 128).restore(logits), expected, atol=1e-5)


def test_strips_give_what_one_piece_gives(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    for shape in [(301, 200), (9, 50)]:
        whole = Letterbox(*shape, 128).restore(logits)
        monkeypatch.setattr(letterbox, "_STRIP_PIXELS", 7 * shape[1])
        np.testing.assert_allclose(Letterbox(*shape, 128).restore(logits), whole, atol=1e-4)
        monkeypatch.undo()


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match="cannot be placed"):
        Letterbox(0, 5, 64)
    with pytest.raises(ValueError, match=r"expected uint8 \[4, 5, 3\]"):
        Letterbox(4, 5, 64).place_image(np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="square"):
        Letterbox(4, 5, 64).restore(np.zeros((5, 4), np.float32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [64, 128])
def test_an_image_of_pillow_gives_the_same_frame(shape, size):
    image = picture(*shape)
    box = Letterbox(*shape, size)
    np.testing.assert_array_equal(box.place_picture(Image.fromarray(image)), box.place_image(image))


def test_an_image_that_fills_the_frame_is_not_changed():
    image = picture(64, 64)
    np.testing.assert_array_equal(Letterbox(64, 64, 64).place_image(image), image)
    with pytest.raises(ValueError, match="expected an RGB image of 64 x 64, got L 64 x 64"):
        Letterbox(64, 64, 64).place_picture(Image.fromarray(image).convert("L"))
    with pytest.raises(ValueError, match="expected an RGB image of 64 x 32, got RGB 64 x 64"):
        Letterbox(32, 64, 64).place_picture(Image.fromarray(image))
