"""The picture of a sample shows its image, its masks and all of its words."""

from __future__ import annotations

import numpy as np

from segearth_r2_jax.training.sample_picture import sample_picture

SIZE = 96
IMAGE = np.full((SIZE, SIZE, 3), 90, np.uint8)
# One target: the upper half of the image, which spans the upper half of the canvas.
MASKS, FRAME = np.zeros((1, 32, 32), np.uint8), (16, 32)
MASKS[0, :8] = 1
LOGITS = np.full((1, 24, 24), -1.0, np.float32)
LOGITS[0, :, :12] = 1


def _picture(text: str) -> np.ndarray:
    return sample_picture(IMAGE, MASKS, FRAME, LOGITS, text)


def test_image_target_and_prediction_stand_side_by_side():
    image, target, prediction = np.split(_picture("a word")[:SIZE], 3, axis=1)
    np.testing.assert_array_equal(image, IMAGE)
    changed = (target != IMAGE).any(-1)
    # The target's canvas is stretched over the picture, as its frame is; an outline reaches a little over the edge.
    assert changed[:46].mean() > 0.98
    assert not changed[52:].any()
    changed = (prediction != IMAGE).any(-1)
    assert changed[:, :46].mean() > 0.98
    assert not changed[:, 52:].any()


def test_all_words_are_shown_however_many():
    words = ["first", *["some"] * 60, "last"]
    few, many = _picture("some words"), _picture(" ".join(words))
    assert many.shape[1] == few.shape[1] == 3 * SIZE
    assert many.shape[0] > few.shape[0] + 60
    for place in (0, -1):
        other = words.copy()
        other[place] = "other"
        assert (_picture(" ".join(other)) != many).any(), words[place]
    # Nothing touches the border, where it would be cut.
    assert (many[SIZE:, -1] == 255).all()
    assert (many[-1] == 255).all()
