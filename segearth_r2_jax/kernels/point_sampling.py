"""Bilinear samples of maps at points, as the mask losses need them.

Mirrors `point_sample` of the reference: `grid_sample` with zero padding and align_corners False.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sample_points(maps: jax.Array, points: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
    """Bilinear samples of every map at its own points; everything outside the map counts as zero.

    Args:
        maps: [n, h, w]
        points: [n, p, 2] as (x, y), where a map spans [0, 1].
        sizes: int [n, 2], (height, width) of the valid region at the top left of each map: [0, 1] spans that region, and
            everything outside it counts as zero. Without it the whole map is valid.

    Returns:
        [n, p] in the dtype of `maps`.
    """
    n, h, w = maps.shape
    heights, widths = (h, w) if sizes is None else (sizes[:, :1, None], sizes[:, 1:, None])
    column, x = _axis_taps(points[..., 0], widths)
    row, y = _axis_taps(points[..., 1], heights)
    total = jnp.zeros(points.shape[:2], maps.dtype)
    pixels = maps.reshape(n, h * w)
    for i in range(2):
        for j in range(2):
            tap = row[..., i] * w + column[..., j]
            value = jax.vmap(lambda m, t: m.at[t].get(mode="promise_in_bounds"))(pixels, tap)
            total = total + value * (y[..., i] * x[..., j]).astype(maps.dtype)
    return total


def _axis_taps(location: jax.Array, size: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The two pixels [n, p, 2] next to each location along one axis, and their weights, 0 outside the map."""
    size = jnp.asarray(size).astype(location.dtype)
    position = location[..., None] * size - 0.5
    pixel = jnp.floor(position) + jnp.arange(2, dtype=location.dtype)
    inside = (pixel >= 0) & (pixel <= size - 1)
    weight = jnp.where(inside, 1 - jnp.abs(position - pixel), 0)
    return jnp.clip(pixel, 0, size - 1).astype(jnp.int32), weight
