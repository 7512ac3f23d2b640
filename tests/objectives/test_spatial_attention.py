import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segearth_r2_jax.objectives.spatial_attention import attention_losses, attention_target


def _target(mask: np.ndarray, canvas: int, grid: int) -> np.ndarray:
    padded = np.zeros((1, canvas, canvas), np.uint8)
    padded[0, : mask.shape[0], : mask.shape[1]] = mask
    return np.asarray(attention_target(jnp.asarray(padded), jnp.asarray([mask.shape]), grid))[0].reshape(grid, grid)


def test_target_of_a_quadrant():
    mask = np.zeros((100, 100), np.uint8)
    mask[:50, :50] = 1
    target = _target(mask, 128, 9)
    # The middle cell's 2 x 2 samples straddle the edge: one sample inside is enough.
    assert target[:5, :5].all()
    assert target.sum() == 25


def test_the_valid_region_spans_the_grid_whatever_its_aspect_ratio():
    mask = np.zeros((60, 120), np.uint8)
    mask[:, 60:] = 1
    target = _target(mask, 128, 8)
    np.testing.assert_array_equal(target, np.broadcast_to(np.arange(8) >= 4, (8, 8)))


def test_an_object_between_the_samples_vanishes():
    mask = np.zeros((800, 800), np.uint8)
    mask[2:6, 2:6] = 1  # the first samples of a 27-grid lie at rows 14 and 15
    assert not _target(mask, 800, 27).any()
    mask[14, 14] = 1
    assert _target(mask, 800, 27).sum() == 1


def test_loss_of_a_hand_computed_row():
    rows = jnp.asarray([[[0.5, 0.3, 0.1, 0.1]]])
    target = jnp.asarray([[True, True, False, False]])
    background = 0.1
    expected = -np.log(((0.5 - background) ** 2 + (0.3 - background) ** 2) / 2 + 1e-8)
    assert attention_losses(rows, target, jnp.ones(1, bool))[0] == pytest.approx(expected, rel=1e-6)


def test_empty_target_adds_nothing_but_counts_and_padding_does_not_count():
    rows = jnp.asarray(np.random.default_rng(0).random((2, 3, 4)), jnp.float32)
    target = jnp.asarray([[True, False, False, True], [False] * 4, [True] * 4])
    first = attention_losses(rows[:, :1], target[:1], jnp.ones(1, bool))
    np.testing.assert_allclose(attention_losses(rows[:, :2], target[:2], jnp.ones(2, bool)), first / 2, rtol=1e-6)
    np.testing.assert_allclose(attention_losses(rows, target, jnp.asarray([True, False, False])), first, rtol=1e-6)


def test_a_target_that_fills_the_image_has_background_zero():
    rows, target = jnp.full((1, 1, 4), 0.25), jnp.ones((1, 4), bool)
    assert attention_losses(rows, target, jnp.ones(1, bool))[0] == pytest.approx(-np.log(0.0625 + 1e-8), rel=1e-6)


def test_gradients_are_finite_for_every_kind_of_target():
    rows = jnp.full((1, 3, 4), 0.25)
    target = jnp.asarray([[True, False, False, True], [False] * 4, [True] * 4])
    gradient = jax.grad(lambda r: attention_losses(r, target, jnp.ones(3, bool)).sum())(rows)
    assert np.isfinite(gradient).all()
