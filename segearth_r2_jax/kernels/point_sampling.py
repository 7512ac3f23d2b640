"""Bilinear samples of maps at points, as the mask losses need them.

Mirrors `point_sample` of the reference: `grid_sample` with zero padding and align_corners False. On a CPU both this gather and its
automatic backward (a scatter) are many times faster than the products with interpolation matrices that suit a TPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sample_points(maps: jax.Array, points: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
    """Bilinear samples of every map at its own points; everything outside the map counts as zero.

    Args:
        maps: [n, h, w], of any numeric dtype.
        points: [n, p, 2] as (x, y), where a map spans [0, 1] and (0.5 / w, 0.5 / h) is the centre of its first pixel.
        sizes: int [n, 2], (height, width) of the valid region at the top left of each map: [0, 1] spans that region, and
            everything outside it counts as zero. Without it the whole map is valid.

    Returns:
        [n, p] in the wider dtype of `maps` and `points`.
    """
    n, h, w = maps.shape
    sizes = jnp.broadcast_to(jnp.array([h, w]), (n, 2)) if sizes is None else sizes
    return jax.vmap(_sample_map)(maps, points, sizes)


def _sample_map(pixels: jax.Array, points: jax.Array, size: jax.Array) -> jax.Array:
    """pixels [h, w], points [p, 2], size [2] -> [p]"""
    _, w = pixels.shape
    pixels = pixels.reshape(-1)
    height, width = size.astype(points.dtype)
    x = points[:, 0] * width - 0.5
    y = points[:, 1] * height - 0.5
    total = jnp.zeros(points.shape[:1], jnp.promote_types(pixels.dtype, points.dtype))
    for dy in range(2):
        for dx in range(2):
            column, row = jnp.floor(x) + dx, jnp.floor(y) + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = jnp.where(inside, (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row)), 0)
            index = jnp.clip(row, 0, height - 1).astype(jnp.int32) * w + jnp.clip(column, 0, width - 1).astype(jnp.int32)
            total = total + pixels.at[index].get(mode="promise_in_bounds") * weight
    return total
