"""Point sampling by gathers, the definition; mirrors `point_sample` of the reference: `grid_sample` with zero padding and
align_corners False.

On a CPU both this gather and its automatic backward (a scatter) are many times faster than products with interpolation matrices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sample(maps: jax.Array, points: jax.Array, sizes: jax.Array) -> jax.Array:
    """`sample_points` (see `api`): maps [..., h, w], points [..., k, 2], sizes [..., 2] -> [..., k]"""
    if jnp.issubdtype(maps.dtype, jnp.inexact):
        # So that the gradients of a pixel are summed in the wider dtype too.
        maps = maps.astype(jnp.promote_types(maps.dtype, points.dtype))
    function = _sample_map
    for _ in range(maps.ndim - 2):
        function = jax.vmap(function)
    return function(maps, points, sizes)


def gradients(maps: jax.Array, points: jax.Array, sizes: jax.Array, cotangent: jax.Array) -> tuple[jax.Array | None, jax.Array]:
    """What flows into the maps (None if they are of integers) and into the points, given the cotangent [..., k] of `sample`."""
    if not jnp.issubdtype(maps.dtype, jnp.inexact):
        _, pull = jax.vjp(lambda x: sample(maps, x, sizes), points)
        return None, *pull(cotangent)
    _, pull = jax.vjp(lambda m, x: sample(m, x, sizes), maps, points)
    return pull(cotangent)


def _sample_map(pixels: jax.Array, points: jax.Array, size: jax.Array) -> jax.Array:
    """pixels [h, w], points [k, 2], size [2] -> [k]"""
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
