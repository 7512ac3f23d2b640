import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segearth_r2_jax.objectives.mask_losses import PointDraws, PointSampling, draw_points, mask_losses, select_points

SAMPLING = PointSampling(num_points=64)


def _random_case(n=2, p=3, size=16):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(p, n, size, size)), jnp.float32)
    masks = jnp.asarray(rng.random((n, 32, 32)) > 0.5, jnp.uint8)
    return logits, masks, jnp.full((n, 2), 32), draw_points(jax.random.key(1), p, n, SAMPLING)


def test_counts_of_points():
    assert (SAMPLING.num_candidates, SAMPLING.num_uncertain, SAMPLING.num_uniform) == (192, 48, 16)
    assert PointSampling().num_candidates == 37632
    assert PointSampling().num_uncertain == 9408


def test_the_uncertain_points_have_the_smallest_logits():
    # A ramp over x that is zero in the middle: the uncertain points crowd around x = 0.5.
    ramp = jnp.broadcast_to((jnp.arange(16) - 7.5)[None, :], (16, 16))[None, None]
    draws = draw_points(jax.random.key(0), 1, 1, SAMPLING)
    points = np.asarray(select_points(ramp, draws, SAMPLING))[0, 0]
    # Within half a pixel of the border the zero padding makes a point less certain; everywhere else only x counts.
    inside = (np.abs(points[: SAMPLING.num_uncertain] - 0.5) < 0.5 - 0.5 / 16).all(-1)
    chosen = np.abs(points[: SAMPLING.num_uncertain, 0] - 0.5)[inside]
    candidates = np.sort(np.abs(np.asarray(draws.candidates)[0, 0, :, 0] - 0.5))
    assert len(chosen) > SAMPLING.num_uncertain / 2
    assert chosen.max() <= candidates[SAMPLING.num_uncertain - 1]
    np.testing.assert_array_equal(points[SAMPLING.num_uncertain :], draws.uniform[0, 0])


def test_no_gradient_through_the_choice_of_points():
    logits, _, _, draws = _random_case()
    gradient = jax.grad(lambda x: select_points(x, draws, SAMPLING).sum())(logits)
    assert not np.any(gradient)


def test_perfect_and_opposite_predictions():
    masks = jnp.zeros((1, 16, 16), jnp.uint8).at[:, :8].set(1)
    logits = jnp.where(masks > 0, 50.0, -50.0)[None]
    # Away from the edge of the object, where bilinear samples are 0 or 1.
    y = jnp.asarray([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    points = jnp.stack([jnp.full_like(y, 0.5), y], -1)[None, None]
    valid, frames = jnp.ones(1, bool), jnp.full((1, 2), 16)
    bce, dice = mask_losses(logits, masks, frames, valid, points)
    assert bce[0] == pytest.approx(0, abs=1e-6)
    assert dice[0] == pytest.approx(0, abs=1e-6)
    bce, dice = mask_losses(-logits, masks, frames, valid, points)
    assert bce[0] == pytest.approx(50)
    assert dice[0] == pytest.approx(1 - 1 / 7)


def test_padding_masks_neither_add_nor_count():
    logits, masks, frames, draws = _random_case(n=3)
    points = select_points(logits, draws, SAMPLING)
    padded = mask_losses(logits, masks, frames, jnp.asarray([True, True, False]), points)
    alone = mask_losses(logits[:, :2], masks[:2], frames[:2], jnp.ones(2, bool), points[:, :2])
    np.testing.assert_allclose(padded, alone, rtol=1e-6)


def test_every_target_is_sampled_at_its_own_size():
    """The same object at half the resolution, in the corner of the same canvas, has the same loss as at full resolution."""
    logits, _, _, draws = _random_case(n=1, p=1)
    large = jnp.zeros((1, 32, 32), jnp.uint8).at[:, :, :16].set(1)
    small = jnp.zeros((1, 32, 32), jnp.uint8).at[:, :16, :8].set(1)
    points = np.asarray(select_points(logits, draws, SAMPLING))
    # Away from the object's edge and the border, where the resolution itself shows.
    flat = ((np.abs(points[..., 0] - 0.5) > 0.1) & (points > 0.05).all(-1) & (points < 0.95).all(-1)).all((0, 1))
    assert flat.sum() > 5
    points = jnp.asarray(points[:, :, flat])
    full = mask_losses(logits, large, jnp.full((1, 2), 32), jnp.ones(1, bool), points)
    half = mask_losses(logits, small, jnp.full((1, 2), 16), jnp.ones(1, bool), points)
    np.testing.assert_allclose(full, half, rtol=1e-6)


def test_draws_have_the_documented_shapes_and_range():
    draws = draw_points(jax.random.key(0), 4, 5, SAMPLING)
    assert isinstance(draws, PointDraws)
    assert draws.candidates.shape == (4, 5, 192, 2)
    assert draws.uniform.shape == (4, 5, 16, 2)
    assert draws.candidates.min() >= 0
    assert draws.candidates.max() < 1
