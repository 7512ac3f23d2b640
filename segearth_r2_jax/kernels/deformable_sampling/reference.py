"""Multi-scale bilinear sampling in jnp, the definition (Zhu et al. 2021, Deformable DETR, equation 3).

Mirrors `ms_deform_attn_core_pytorch` (`grid_sample` with zero padding and align_corners False). A point reads four pixels, so a
query reads levels * points * 4 pixels per head: its taps. The form is the one that XLA compiles well on a CPU: each tap's gather
fuses into the accumulation, and the backward pass is written by hand, since the automatic one materialises every tap.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Shapes = tuple[tuple[int, int], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def deformable_sampling(values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sum of bilinear samples of every level, per query and head; a pixel outside its map counts as zero.

    Args:
        values: [b, s, n, d] the pixels of all levels in a row, s = sum of h * w.
        shapes: (h, w) of every level; static.
        locations: [b, q, n, levels, points, 2] as (x, y), where a map spans [0, 1] and (0.5 / w, 0.5 / h) is its first pixel's centre.
        weights: [b, q, n, levels, points]

    Returns:
        [b, q, n * d] in the dtype of `values`. Give float32 or wider: the arithmetic is done in the dtypes of the arguments.
    """
    if values.shape[1] != sum(h * w for h, w in shapes):
        raise ValueError(f"values hold {values.shape[1]} pixels, but levels of shapes {shapes} have {sum(h * w for h, w in shapes)}")
    return jax.vmap(functools.partial(_sample_image, shapes))(values, locations, weights)


def _forward(values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array):
    return deformable_sampling(values, shapes, locations, weights), (values, locations, weights)


def _backward(shapes: Shapes, residuals: tuple[jax.Array, ...], cotangent: jax.Array):
    return jax.vmap(functools.partial(_sample_image_backward, shapes))(*residuals, cotangent)


deformable_sampling.defvjp(_forward, _backward)


class _Taps(NamedTuple):
    """The pixels that the points of one image read, all [q, n, levels, points, 4]."""

    index: jax.Array  # Row of the pixel in [s * n, d].
    x: jax.Array  # Bilinear weight along x, 0 outside the map.
    y: jax.Array  # Bilinear weight along y, 0 outside the map.
    dx: jax.Array  # Derivative of `x` with respect to the location in [0, 1].
    dy: jax.Array  # Derivative of `y` with respect to the location in [0, 1].


def _taps(shapes: Shapes, locations: jax.Array) -> _Taps:
    num_heads = locations.shape[1]
    heights, widths = (np.array(sizes)[:, None] for sizes in zip(*shapes, strict=True))
    starts = np.cumsum([0] + [h * w for h, w in shapes[:-1]])[:, None]
    column, x, dx = _axis_taps(locations[..., 0], widths, np.array([0, 1, 0, 1]))
    row, y, dy = _axis_taps(locations[..., 1], heights, np.array([0, 0, 1, 1]))
    pixel = starts[..., None] + row * widths[..., None] + column
    return _Taps(pixel * num_heads + np.arange(num_heads)[:, None, None, None], x, y, dx, dy)


def _axis_taps(location: jax.Array, size: np.ndarray, side: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Along one axis: index of the pixel (0 at the lower `side` of the point, 1 at the upper), its weight, the weight's derivative."""
    position = (location * size.astype(location.dtype) - 0.5)[..., None]
    pixel = jnp.floor(position) + side.astype(location.dtype)
    last = (size[..., None] - 1).astype(location.dtype)
    inside = (pixel >= 0) & (pixel <= last)
    weight = jnp.where(inside, 1 - jnp.abs(position - pixel), 0)
    slope = jnp.where(inside, ((2 * side - 1) * size[..., None]).astype(location.dtype), 0)
    return jnp.clip(pixel, 0, last).astype(jnp.int32), weight, slope


def _sample_image(shapes: Shapes, values: jax.Array, locations: jax.Array, weights: jax.Array) -> jax.Array:
    """values [s, n, d], locations [q, n, levels, points, 2], weights [q, n, levels, points] -> [q, n * d]"""
    s, n, d = values.shape
    q = locations.shape[0]
    taps = _taps(shapes, locations)
    index = taps.index.reshape(q, n, -1)
    weight = (weights[..., None] * taps.x * taps.y).reshape(q, n, -1)
    # Without the barrier XLA fuses the index arithmetic into the loop over channels and repeats it for each of them.
    index, weight = jax.lax.optimization_barrier((index, weight))
    rows = values.reshape(s * n, d)
    total = jnp.zeros((q, n, d), values.dtype)
    for tap in range(index.shape[-1]):
        total = total + weight[..., tap, None].astype(values.dtype) * rows.at[index[..., tap]].get(mode="promise_in_bounds")
    return total.reshape(q, n * d)


def _sample_image_backward(
    shapes: Shapes, values: jax.Array, locations: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents of values, locations and weights of one image; `cotangent` is [q, n * d]."""
    s, n, d = values.shape
    q = locations.shape[0]
    taps = _taps(shapes, locations)
    index = taps.index.reshape(q, n, -1)
    weight = (weights[..., None] * taps.x * taps.y).reshape(q, n, -1)
    index, weight = jax.lax.optimization_barrier((index, weight))
    cotangent = cotangent.reshape(q, n, d)

    def add_tap(total: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        tap_index, tap_weight = tap
        return total.at[tap_index].add(tap_weight[..., None].astype(total.dtype) * cotangent, mode="promise_in_bounds"), None

    # One tap after the other: a single scatter would need every tap's update in memory at once.
    per_tap = (jnp.moveaxis(index, -1, 0), jnp.moveaxis(weight, -1, 0))
    d_values, _ = jax.lax.scan(add_tap, jnp.zeros((s * n, d), values.dtype), per_tap)

    # Dot product of every tap's pixel with the cotangent, channel by channel, so that the inner loop runs over the taps.
    scalars = values.reshape(s * n * d)
    dots = jnp.zeros(index.shape, values.dtype)
    for channel in range(d):
        dots = dots + scalars.at[index * d + channel].get(mode="promise_in_bounds") * cotangent[..., channel, None]
    # The barrier keeps XLA from repeating the loop for each of the three results.
    dots = jax.lax.optimization_barrier(dots.reshape(taps.index.shape).astype(weights.dtype))
    d_weights = (dots * taps.x * taps.y).sum(-1)
    d_x = weights * (dots * taps.dx * taps.y).sum(-1)
    d_y = weights * (dots * taps.x * taps.dy).sum(-1)
    return d_values.reshape(s, n, d), jnp.stack([d_x, d_y], -1).astype(locations.dtype), d_weights
