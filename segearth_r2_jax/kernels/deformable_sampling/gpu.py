"""Deformable sampling as a Pallas kernel for GPUs (by way of Triton), one pass over memory forward and one backward.

A program takes a block of queries and one head: it reads the four pixels of every point of every level and sums them in registers, so that
a tap is a read of one pixel's channels and nothing else. Backward, what flows into a pixel is added to it in memory by atomic additions,
in float32 and in no fixed order: two runs may differ in rounding.

Queries are padded to whole blocks. Locations are read as they are: one that is not a number reads the map's first pixel with weight 0.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Shapes = tuple[tuple[int, int], ...]
# Queries of a program. 32 of them with 32 channels give every thread of four warps two vectors of four channels.
_BLOCK = 32
_WARPS = 4
_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def fits(values: jax.Array, locations: jax.Array) -> bool:
    """Whether the kernel takes these: Triton's arrays have sizes that are powers of two, and its offsets are 32 bits wide."""
    d = values.shape[-1]
    return (
        values.dtype in _DTYPES
        and locations.dtype == jnp.float32
        and d & (d - 1) == 0
        and d <= 256
        and max(values.size, locations.size) < 2**31
    )


def sample(values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array, *, interpret: bool = False) -> jax.Array:
    """`reference.sample` of what `fits`, but [b, q, n, d]; `interpret` runs it anywhere, slowly."""
    b, q, n = locations.shape[:3]
    locations, weights = _whole_blocks(locations), _whole_blocks(weights)
    out = _call(
        functools.partial(_sample_kernel, shapes),
        (values, locations, weights),
        (jax.ShapeDtypeStruct((b, locations.shape[1], n, values.shape[-1]), values.dtype),),
        interpret=interpret,
    )
    return out[0][:, :q]


def gradients(
    values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array, cotangent: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`reference.gradients` of what `fits`, given the cotangent [b, q, n, d]."""
    q = locations.shape[1]
    locations, weights, cotangent = _whole_blocks(locations), _whole_blocks(weights), _whole_blocks(cotangent)
    zeros = jnp.zeros(values.shape, jnp.float32)
    d_values, d_locations, d_weights = _call(
        functools.partial(_gradients_kernel, shapes),
        (values, locations, weights, cotangent, zeros),
        tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (zeros, locations, weights)),
        aliases={4: 0},
        interpret=interpret,
    )
    return d_values.astype(values.dtype), d_locations[:, :q], d_weights[:, :q]


def _sample_kernel(shapes: Shapes, values: jax.Ref, locations: jax.Ref, weights: jax.Ref, out: jax.Ref) -> None:
    """values [s, d]; locations [block, levels, points, 2], weights [block, levels, points], out [block, d]"""
    channels = jnp.arange(values.shape[1])[None, :]

    def add_point(point: jax.Array, total: jax.Array) -> jax.Array:
        for level in range(len(shapes)):
            weight = weights[:, level, point].astype(jnp.float32)
            for row, x, y, _, _ in _corners(shapes, level, locations[:, level, point, 0], locations[:, level, point, 1]):
                pixels = values[row[:, None], channels].astype(jnp.float32)
                total += (weight * x * y)[:, None] * pixels
        return total

    total = jax.lax.fori_loop(0, weights.shape[2], add_point, jnp.zeros(out.shape, jnp.float32))
    out[...] = total.astype(out.dtype)


def _gradients_kernel(
    shapes: Shapes,
    values: jax.Ref,
    locations: jax.Ref,
    weights: jax.Ref,
    cotangent: jax.Ref,
    zeros: jax.Ref,
    d_values: jax.Ref,
    d_locations: jax.Ref,
    d_weights: jax.Ref,
) -> None:
    """As `_sample_kernel`; cotangent [block, d]. `d_values` starts as `zeros`, which is the same memory."""
    del zeros
    channels = jnp.arange(values.shape[1])[None, :]
    flow = cotangent[...].astype(jnp.float32)

    def point_gradients(point: jax.Array, _: None) -> None:
        for level in range(len(shapes)):
            weight = weights[:, level, point].astype(jnp.float32)
            d_x = d_y = d_weight = jnp.zeros_like(weight)
            for row, x, y, slope_x, slope_y in _corners(shapes, level, locations[:, level, point, 0], locations[:, level, point, 1]):
                pixels = values[row[:, None], channels].astype(jnp.float32)
                dot = (pixels * flow).sum(1)
                d_x += dot * slope_x * y
                d_y += dot * slope_y * x
                d_weight += dot * x * y
                # On a GPU this is an atomic addition: programs meet at a pixel, and so do queries of one program.
                jax.ref.addupdate(d_values, (row[:, None], channels), (weight * x * y)[:, None] * flow)
            d_locations[:, level, point, 0] = weight * d_x
            d_locations[:, level, point, 1] = weight * d_y
            d_weights[:, level, point] = d_weight.astype(d_weights.dtype)

    jax.lax.fori_loop(0, weights.shape[2], point_gradients, None)


def _corners(shapes: Shapes, level: int, x: jax.Array, y: jax.Array) -> list[tuple[jax.Array, ...]]:
    """The four pixels around locations (x, y) [block] of a level: row in [0, s), weights along x and y, and their slopes."""
    h, w = shapes[level]
    start = sum(height * width for height, width in shapes[:level])
    columns, rows = ([_axis_tap(location, size, side) for side in (0, 1)] for location, size in ((x, w), (y, h)))
    return [
        (start + row * w + column, weight_x, weight_y, slope_x, slope_y)
        for row, weight_y, slope_y in rows
        for column, weight_x, slope_x in columns
    ]


def _axis_tap(location: jax.Array, size: int, side: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Along one axis: the pixel before (`side` 0) or after (1) each location, its weight, and that weight's derivative."""
    position = location * size - 0.5
    pixel = jnp.floor(position) + side
    inside = (pixel >= 0) & (pixel < size)
    weight = jnp.where(inside, 1 - jnp.abs(position - pixel), 0.0)
    slope = jnp.where(inside, float(size if side else -size), 0.0)
    return jnp.where(inside, pixel, 0.0).astype(jnp.int32), weight, slope


def _call(kernel, arrays: tuple[jax.Array, ...], outputs: tuple[jax.ShapeDtypeStruct, ...], *, interpret: bool, aliases=None):
    """Runs `kernel` for every image, block of queries and head. The first array, and every output that shares memory with one, has
    pixels where the others [b, q, n, ...] have queries, and a program sees all of them.
    """
    b, q, n = arrays[1].shape[:3]
    aliases = aliases or {}
    whole = {0, *aliases}

    def spec(shape: tuple[int, ...], pixels: bool) -> pl.BlockSpec:
        rest = (0,) * (len(shape) - 3)
        block = (None, shape[1] if pixels else _BLOCK, None, *shape[3:])
        return pl.BlockSpec(block, lambda head, part, image: (image, 0 if pixels else part, head, *rest))

    return pl.pallas_call(
        kernel,
        grid=(n, q // _BLOCK, b),
        in_specs=[spec(x.shape, i in whole) for i, x in enumerate(arrays)],
        out_specs=tuple(spec(x.shape, i in aliases.values()) for i, x in enumerate(outputs)),
        out_shape=outputs,
        input_output_aliases=aliases,
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
    )(*arrays)


def _whole_blocks(x: jax.Array) -> jax.Array:
    """[b, q, ...] with queries of zeros up to a multiple of the block."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % _BLOCK)] + [(0, 0)] * (x.ndim - 2))
