"""Multi-scale bilinear sampling in jnp, the definition (Zhu et al. 2021, Deformable DETR, equation 3).

Mirrors `ms_deform_attn_core_pytorch` (`grid_sample` with zero padding and align_corners False).

A point reads four pixels, so each head of a query has levels * points * 4 taps. Taps lead every array here, and both passes are
loops over them, since that is what XLA compiles well on a CPU: a loop's inputs are materialised once, whereas unrolled gathers
would each repeat the index arithmetic, and a single one would need every tap's pixel in memory. The backward pass is written by
hand for the same reason.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Shapes = tuple[tuple[int, int], ...]
_UNROLL = 8


def sample(values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array) -> jax.Array:
    """`deformable_sampling` (see `api`)."""
    b, s, n, d = values.shape
    exact = jnp.promote_types(values.dtype, jnp.float32)
    rows = values.reshape(b, s * n, d)

    def add_tap(total: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, weight = tap
        return total + weight[..., None] * _gather(rows, index), None

    total = jnp.zeros((b, locations.shape[1], n, d), exact)
    total, _ = jax.lax.scan(add_tap, total, _indices_and_weights(shapes, locations, weights, exact), unroll=_UNROLL)
    return total.reshape(b, -1, n * d).astype(values.dtype)


def gradients(
    values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What flows into values, locations and weights, given the cotangent [b, q, n * d] of `sample`."""
    b, s, n, d = values.shape
    exact = jnp.promote_types(values.dtype, jnp.float32)
    taps = _indices_and_weights(shapes, locations, weights, exact)
    cotangent = cotangent.astype(exact).reshape(b, -1, n, d)

    def scatter_tap(total: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, weight = tap
        return _scatter_add(total, index, weight[..., None] * cotangent), None

    d_values, _ = jax.lax.scan(scatter_tap, jnp.zeros((b, s * n, d), exact), taps)

    # Dot product of every tap's pixel with the cotangent, a loop over channels so that its inner loop runs over the taps.
    index = taps[0]

    def add_channel(total: jax.Array, channel: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        pixels, channel_cotangent = channel
        return total + jax.vmap(_gather, in_axes=(None, 0))(pixels, index) * channel_cotangent, None

    channels = (jnp.moveaxis(values.reshape(b, s * n, d), -1, 0), jnp.moveaxis(cotangent, -1, 0))
    # At least two iterations: an unrolled loop would be fused with its inputs, see above.
    dots, _ = jax.lax.scan(add_channel, jnp.zeros(index.shape, exact), channels, unroll=max(1, min(_UNROLL, d // 2)))

    d_locations, d_weights = [], []
    dots = dots.reshape(len(shapes), 4, -1, *index.shape[1:]).astype(locations.dtype)
    by_level = zip(_corners(shapes, locations), _points_first(weights), dots, strict=True)
    for corners, level_weights, level_dots in by_level:
        d_x = d_y = d_weight = 0.0
        for corner, dot in zip(corners, level_dots, strict=True):
            d_x += dot * corner.slope_x * corner.y
            d_y += dot * corner.slope_y * corner.x
            d_weight += dot * corner.x * corner.y
        d_locations.append(level_weights[..., None] * jnp.stack([d_x, d_y], -1))
        d_weights.append(d_weight.astype(weights.dtype))
    d_locations = _points_last(jnp.stack(d_locations)).astype(locations.dtype)
    return d_values.reshape(values.shape).astype(values.dtype), d_locations, _points_last(jnp.stack(d_weights))


class _Corner(NamedTuple):
    """One of the four pixels around the points of a level, all [points, b, q, n]."""

    index: jax.Array  # Row of the pixel in [s * n, d], unsigned.
    x: jax.Array  # Bilinear weight along x, 0 outside the map.
    y: jax.Array  # Bilinear weight along y, 0 outside the map.
    slope_x: jax.Array  # Derivative of `x` with respect to the location in [0, 1].
    slope_y: jax.Array  # Derivative of `y` with respect to the location in [0, 1].


def _corners(shapes: Shapes, locations: jax.Array) -> list[list[_Corner]]:
    """The taps by level and corner."""
    n = locations.shape[2]
    levels, start = [], 0
    for (h, w), points in zip(shapes, _points_first(locations), strict=True):
        corners = []
        for right, lower in ((0, 0), (1, 0), (0, 1), (1, 1)):
            column, x, slope_x = _axis_tap(points[..., 0], w, right)
            row, y, slope_y = _axis_tap(points[..., 1], h, lower)
            corners.append(_Corner((start + row * w + column) * n + np.arange(n, dtype=np.uint32), x, y, slope_x, slope_y))
        levels.append(corners)
        start += h * w
    return levels


def _axis_tap(location: jax.Array, size: int, side: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Along one axis: the pixel before (`side` 0) or after (1) each location, its weight, and that weight's derivative."""
    position = location * size - 0.5
    pixel = jnp.floor(position) + side
    inside = (pixel >= 0) & (pixel < size)
    weight = jnp.where(inside, 1 - jnp.abs(position - pixel), 0)
    slope = jnp.where(inside, jnp.asarray(size if side else -size, location.dtype), 0)
    return jnp.clip(pixel, 0, size - 1).astype(jnp.uint32), weight, slope


def _indices_and_weights(
    shapes: Shapes, locations: jax.Array, weights: jax.Array, dtype: jax.typing.DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """Index and total weight of every tap: [taps, b, q, n], in the order level, corner, point."""
    index, weight = [], []
    for corners, level_weights in zip(_corners(shapes, locations), _points_first(weights), strict=True):
        index += [corner.index for corner in corners]
        weight += [(level_weights * corner.x * corner.y).astype(dtype) for corner in corners]
    return jnp.concatenate(index), jnp.concatenate(weight)


def _points_first(x: jax.Array) -> jax.Array:
    """[b, q, n, levels, points, ...] -> [levels, points, b, q, n, ...]"""
    return jnp.moveaxis(x, (3, 4), (0, 1))


def _points_last(x: jax.Array) -> jax.Array:
    """The inverse of `_points_first`."""
    return jnp.moveaxis(x, (0, 1), (3, 4))


def _gather(rows: jax.Array, index: jax.Array) -> jax.Array:
    """rows [b, r, ...], index [b, q, n] -> [b, q, n, ...]"""
    return jax.vmap(lambda r, i: r.at[i].get(mode="promise_in_bounds"))(rows, index)


def _scatter_add(rows: jax.Array, index: jax.Array, updates: jax.Array) -> jax.Array:
    """The transpose of `_gather`, added to `rows`."""
    return jax.vmap(lambda r, i, u: r.at[i].add(u, mode="promise_in_bounds"))(rows, index, updates)
