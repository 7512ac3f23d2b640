"""`sample_points` is bilinear inside a map and zero outside it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segearth_r2_jax.kernels.point_sampling.reference as reference
import segearth_r2_jax.kernels.point_sampling.tpu as tpu
from segearth_r2_jax.kernels.point_sampling import choice, sample_points, smallest_points

PIXELS = jnp.array([[[1.0, 2.0], [4.0, 8.0]]])


def _at(*points: tuple[float, float]) -> jax.Array:
    return sample_points(PIXELS, jnp.array([points]))[0]


def _by_hand(pixels: np.ndarray, x: float, y: float) -> float:
    """At (x, y) in [0, 1], as a sum over all pixels in float64."""
    h, w = pixels.shape
    along_x = np.maximum(0, 1 - np.abs(x * w - 0.5 - np.arange(w)))
    along_y = np.maximum(0, 1 - np.abs(y * h - 0.5 - np.arange(h)))
    return along_y @ pixels.astype(np.float64) @ along_x


def test_pixel_centres_and_the_points_between():
    np.testing.assert_array_equal(_at((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)), PIXELS.reshape(-1))
    np.testing.assert_array_equal(_at((0.5, 0.5)), [3.75])


def test_the_border_fades_to_zero():
    points = [(0, 0.25), (0, 0), (1, 1), (-0.25, 0.25), (0.25, 1.5), (-7, 1e9)]
    np.testing.assert_array_equal(_at(*points), [0.5, 0.25, 2, 0, 0, 0])


def test_every_map_has_its_own_points():
    rng = np.random.default_rng(0)
    maps, points = rng.normal(size=(3, 4, 6)).astype(np.float32), rng.uniform(-0.1, 1.1, (3, 9, 2)).astype(np.float32)
    expected = [[_by_hand(m, *p) for p in row] for m, row in zip(maps, points, strict=True)]
    np.testing.assert_allclose(sample_points(jnp.asarray(maps), jnp.asarray(points)), expected, atol=1e-5)


def test_a_region_is_sampled_as_if_it_were_the_map():
    """What lies outside the region is not seen, not even between its last pixel and the next."""
    rng = np.random.default_rng(1)
    maps = rng.normal(size=(2, 5, 6)).astype(np.float32)
    sizes = np.array([[3, 4], [5, 2]])
    points = rng.uniform(-0.1, 1.1, (2, 20, 2)).astype(np.float32)
    sampled = sample_points(jnp.asarray(maps), jnp.asarray(points), jnp.asarray(sizes))
    for i, (h, w) in enumerate(sizes):
        np.testing.assert_allclose(sampled[i], [_by_hand(maps[i, :h, :w], *p) for p in points[i]], atol=1e-5)


def test_masks_of_bytes_are_sampled_in_the_precision_of_the_points():
    sampled = sample_points((PIXELS > 2).astype(jnp.uint8), jnp.array([[[0.5, 0.5], [0.25, 0.5]]]))
    assert sampled.dtype == jnp.float32
    np.testing.assert_allclose(sampled, [[0.5, 0.5]])


def test_the_gradient_spreads_over_the_four_pixels():
    points = jnp.array([[[0.5, 0.5], [0.25, 0.25], [0.0, 0.25], [3.0, 3.0]]])
    gradient = jax.grad(lambda maps: sample_points(maps, points).sum())(PIXELS)
    np.testing.assert_allclose(gradient, [[[0.25 + 1 + 0.5, 0.25], [0.25, 0.25]]])


def _case(dtype: str) -> tuple[jax.Array, ...]:
    """Maps of 2 predictions of 3 masks, points (some outside) that do not fill the last part, valid regions and a cotangent."""
    rng = np.random.default_rng(2)
    maps = rng.integers(0, 2, (2, 3, 12, 10)) if dtype == "uint8" else rng.normal(size=(2, 3, 12, 10))
    points = np.round(rng.uniform(-0.2, 1.2, (2, 3, 530, 2)) * 40) / 40  # Some exactly at the centres of pixels.
    sizes = rng.integers(4, 10, (2, 3, 2))
    cotangent = rng.normal(size=(2, 3, 530))
    return jnp.asarray(maps, dtype), jnp.asarray(points, jnp.float32), jnp.asarray(sizes), jnp.asarray(cotangent, jnp.float32)


@pytest.mark.parametrize("form", [tpu], ids=["tpu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2), ("uint8", 0)])
def test_every_form_gives_what_the_reference_gives(form, dtype: str, tolerance: float):
    """`tolerance` is that of the maps' gradient; the samples are as exact as the points in every dtype."""
    *arguments, cotangent = _case(dtype)
    np.testing.assert_allclose(form.sample(*arguments), reference.sample(*arguments), atol=1e-5)
    maps, points = form.gradients(*arguments, cotangent)
    expected_maps, expected_points = reference.gradients(*arguments, cotangent)
    np.testing.assert_allclose(points, expected_points, atol=1e-3)
    if dtype == "uint8":
        assert maps is None
        assert expected_maps is None
    else:
        assert maps.dtype == expected_maps.dtype == dtype
        scale = np.abs(np.asarray(expected_maps, np.float32)).max()
        np.testing.assert_allclose(np.asarray(maps, np.float32), np.asarray(expected_maps, np.float32), atol=tolerance * scale)


def test_the_points_with_the_smallest_scores_in_order():
    points = jnp.array([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]]])
    scores = jnp.array([[3.0, 1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(smallest_points(points, scores, 2), points[:, [2, 1]])


def test_both_forms_of_the_choice_give_the_same_points_where_scores_tie():
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.random((2, 3, 200, 2)), jnp.float32)
    scores = jnp.asarray(rng.integers(0, 20, (2, 3, 200)), jnp.float32)
    np.testing.assert_array_equal(choice.by_sorting_points(points, scores, 70), choice.by_index(points, scores, 70))
