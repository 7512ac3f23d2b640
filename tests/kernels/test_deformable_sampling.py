"""`deformable_sampling` sums bilinear samples over levels and points; what lies outside a map is exactly zero."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from jax.test_util import check_grads

import segearth_r2_jax.kernels.deformable_sampling.gpu as gpu
import segearth_r2_jax.kernels.deformable_sampling.reference as reference
import segearth_r2_jax.kernels.deformable_sampling.tpu as tpu
from segearth_r2_jax.kernels.deformable_sampling import deformable_sampling

SHAPES = ((2, 3), (4, 5))
S = sum(h * w for h, w in SHAPES)


def _inputs(b: int = 2, q: int = 3, n: int = 2, d: int = 3, points: int = 2, dtype: str = "float32") -> list[jax.Array]:
    """Values, locations (a third of them outside the maps) and weights."""
    rng = np.random.default_rng(0)
    points_shape = (b, q, n, len(SHAPES), points)
    arrays = rng.normal(size=(b, S, n, d)), rng.uniform(-0.3, 1.3, (*points_shape, 2)), rng.normal(size=points_shape)
    return [jnp.asarray(a, dtype) for a in arrays]


def _pixel(level: np.ndarray, row: int, column: int) -> np.ndarray:
    h, w = level.shape[:2]
    return level[row, column] if 0 <= row < h and 0 <= column < w else np.zeros(level.shape[2:])


def _by_hand(values, locations, weights) -> np.ndarray:
    """One sample after the other, in float64."""
    values, locations, weights = (np.asarray(a, np.float64) for a in (values, locations, weights))
    b, q, n, levels, points = weights.shape
    out = np.zeros((b, q, n, values.shape[-1]))
    starts = np.cumsum([0] + [h * w for h, w in SHAPES])
    for i, query, head, level, point in np.ndindex(b, q, n, levels, points):
        h, w = SHAPES[level]
        pixels = values[i, starts[level] : starts[level + 1], head].reshape(h, w, -1)
        x, y = locations[i, query, head, level, point] * (w, h) - 0.5
        column, row = int(np.floor(x)), int(np.floor(y))
        fx, fy = x - column, y - row
        upper = (1 - fx) * _pixel(pixels, row, column) + fx * _pixel(pixels, row, column + 1)
        lower = (1 - fx) * _pixel(pixels, row + 1, column) + fx * _pixel(pixels, row + 1, column + 1)
        out[i, query, head] += weights[i, query, head, level, point] * ((1 - fy) * upper + fy * lower)
    return out.reshape(b, q, -1)


def _sample(points: list[tuple[float, float]], values: jax.Array) -> jax.Array:
    """A 2 x 2 map with the pixels `values` [4], sampled by one query per point: [points]."""
    locations = jnp.array(points).reshape(1, -1, 1, 1, 1, 2)
    return deformable_sampling(values.reshape(1, 4, 1, 1), ((2, 2),), locations, jnp.ones(locations.shape[:-1])).reshape(-1)


PIXELS = jnp.array([1.0, 2.0, 4.0, 8.0])


def test_a_pixel_centre_gives_the_pixel():
    np.testing.assert_array_equal(_sample([(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)], PIXELS), PIXELS)


def test_between_pixels_the_sample_is_their_mean_and_beyond_the_last_it_fades_to_zero():
    points = [(0.5, 0.25), (0.5, 0.5), (0.0, 0.25), (0.0, 0.0), (1.0, 0.75), (1.25, 0.75)]
    np.testing.assert_array_equal(_sample(points, PIXELS), [1.5, 3.75, 0.5, 0.25, 4.0, 0.0])


def test_outside_the_map_value_and_gradients_are_zero():
    locations = jnp.array([(-0.3, 0.25), (1.3, 0.25), (0.25, -5.0), (0.25, 1e9), (-1e30, 1e30)]).reshape(1, -1, 1, 1, 1, 2)

    def sampled(values: jax.Array, at: jax.Array) -> jax.Array:
        return deformable_sampling(values, ((2, 2),), at, jnp.ones(at.shape[:-1]))

    out, pull = jax.vjp(sampled, PIXELS.reshape(1, 4, 1, 1), locations)
    np.testing.assert_array_equal(out, 0)
    for gradient in pull(jnp.ones(out.shape)):
        np.testing.assert_array_equal(gradient, 0)


def test_levels_heads_and_points_by_hand():
    values, locations, weights = _inputs()
    out = deformable_sampling(values, SHAPES, locations, weights)
    np.testing.assert_allclose(out, _by_hand(values, locations, weights), atol=1e-5)


@pytest.mark.parametrize(("d", "points"), [(1, 1), (9, 3)])
def test_gradients_are_those_of_finite_differences(d: int, points: int):
    with jax.enable_x64(True):
        values, locations, weights = _inputs(b=1, d=d, points=points, dtype="float64")
        sampled = jax.jit(lambda v, x, w: deformable_sampling(v, SHAPES, x, w))
        check_grads(sampled, (values, locations, weights), order=1, modes=["rev"], eps=1e-6, atol=1e-7, rtol=1e-7)


def _interpreted_sample(values, shapes, locations, weights):
    return gpu.sample(values, shapes, locations, weights, interpret=True).reshape(*locations.shape[:2], -1)


def _interpreted_gradients(values, shapes, locations, weights, cotangent):
    cotangent = cotangent.reshape(*locations.shape[:3], -1)
    return gpu.gradients(values, shapes, locations, weights, cotangent, interpret=True)


INTERPRETED_GPU = SimpleNamespace(sample=_interpreted_sample, gradients=_interpreted_gradients)


@pytest.mark.parametrize("form", [tpu, INTERPRETED_GPU], ids=["tpu", "gpu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_every_form_gives_what_the_reference_gives(form, dtype: str, tolerance: float):
    """Values and all gradients; queries that do not fill the last part, locations outside the maps and exactly on pixels."""
    values, locations, weights = _inputs(q=270, n=4, d=8)
    locations = locations.at[:, :20].set(jnp.round(locations[:, :20] * 10) / 10)
    locations = locations.at[:, 20].set(1e9).at[:, 21].set(-1e30)
    arguments = values.astype(dtype), SHAPES, locations, weights
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(2, 270, 32)), dtype)
    expected = reference.sample(*arguments), *reference.gradients(*arguments, cotangent)
    for ours, theirs in zip((form.sample(*arguments), *form.gradients(*arguments, cotangent)), expected, strict=True):
        assert ours.dtype == theirs.dtype
        scale = np.abs(np.asarray(theirs, np.float32)).max()
        np.testing.assert_allclose(np.asarray(ours, np.float32) / scale, np.asarray(theirs, np.float32) / scale, atol=tolerance)


def test_the_gpu_kernel_reads_no_pixel_for_a_location_that_is_not_a_number():
    values, locations, weights = _inputs(d=8)
    out = _interpreted_sample(values, SHAPES, locations.at[0, 0].set(jnp.nan), weights)
    np.testing.assert_array_equal(out[0, 0], 0)
    np.testing.assert_allclose(out[0, 1:], reference.sample(values, SHAPES, locations, weights)[0, 1:], atol=1e-5)


def _lowered_for_a_gpu(values, locations, weights) -> str:
    def forward_and_backward(values, locations, weights):
        out, pull = jax.vjp(lambda v, x, w: deformable_sampling(v, SHAPES, x, w), values, locations, weights)
        return out, pull(out)

    # A GPU that need not be there.
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        return jax.jit(forward_and_backward).trace(values, locations, weights).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowered_for_a_gpu_it_is_one_kernel_forward_and_one_backward_that_adds_atomically(dtype: str):
    values, locations, weights = _inputs(q=40, d=32)
    text = _lowered_for_a_gpu(values.astype(dtype), locations, weights)
    assert text.count("xla.gpu.triton") == 2
    assert text.count("atomic_rmw") == 1
    assert "gather" not in text


def test_what_the_gpu_kernel_does_not_take_is_gathered():
    assert "xla.gpu.triton" not in _lowered_for_a_gpu(*_inputs(d=24))
    with jax.enable_x64(True):
        assert "xla.gpu.triton" not in _lowered_for_a_gpu(*_inputs(d=32, dtype="float64"))


def test_gradients_in_scanned_recomputed_layers_over_mapped_images():
    """As a network uses it: jit, vmap, lax.scan and jax.checkpoint around it change no number."""
    values, locations, weights = _inputs()

    def layers(values, locations, weights):
        def layer(x, _):
            return x + deformable_sampling(x, SHAPES, locations, weights).mean(1)[:, None, None, :3], None

        return (jax.lax.scan(jax.checkpoint(layer), values, None, length=2)[0] ** 2).sum()

    def plain(values, locations, weights):
        for _ in range(2):
            values = values + deformable_sampling(values, SHAPES, locations, weights).mean(1)[:, None, None, :3]
        return (values**2).sum()

    images = [jnp.stack([x, 0.5 * x]) for x in (values, locations, weights)]
    expected = [jax.grad(plain, argnums=(0, 1, 2))(*(x[i] for x in images)) for i in range(2)]
    mapped = jax.jit(jax.vmap(jax.grad(layers, argnums=(0, 1, 2))))(*images)
    for i, gradients in enumerate(expected):
        for ours, theirs in zip(mapped, gradients, strict=True):
            np.testing.assert_allclose(ours[i], theirs, atol=1e-4)


def test_values_that_do_not_fit_the_shapes_are_refused():
    values, locations, weights = _inputs()
    with pytest.raises(ValueError, match="25 pixels, but levels"):
        deformable_sampling(values[:, 1:], SHAPES, locations, weights)
