"""Point sampling as matrix products, for TPUs, where gathers of single numbers are slow.

A bilinear sample is (row weights) x map x (column weights), and the weights are zero except at the two rows and the two columns around
the point. The matrix unit mixes the rows; their columns are weighted and summed after it. The maps of one prediction and a part of
their points are sampled at a time, so that the mixed rows stay small, and the program, too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from segearth_r2_jax.kernels.interpolation import interpolation_weights

# Points of a map that are sampled at a time.
_CHUNK = 256


def sample(maps: jax.Array, points: jax.Array, sizes: jax.Array) -> jax.Array:
    """`reference.sample`; as exact as the points, whatever the dtype of the maps."""
    if maps.ndim > 3:
        return jax.lax.map(lambda one: sample(*one), (maps, points, sizes))
    dtype = jnp.promote_types(maps.dtype, points.dtype)
    if maps.dtype in (jnp.uint8, jnp.int8, jnp.bool_):
        # The matrix unit takes no integers, and bfloat16 holds these exactly.
        maps = maps.astype(jnp.bfloat16)
    sampled = jax.lax.map(lambda part: _sample_part(maps, part, sizes), _split(points))
    return _join(sampled[..., None], points.shape[-2])[..., 0].astype(dtype)


def gradients(maps: jax.Array, points: jax.Array, sizes: jax.Array, cotangent: jax.Array) -> tuple[jax.Array | None, jax.Array]:
    """`reference.gradients`; the products in the dtype of the maps and their sums in that of the points."""
    if maps.ndim > 3:
        return jax.lax.map(lambda one: gradients(*one), (maps, points, sizes, cotangent))
    d_maps = _map_gradient(maps, points, sizes, cotangent) if jnp.issubdtype(maps.dtype, jnp.inexact) else None
    operand = maps.astype(jnp.promote_types(maps.dtype, points.dtype))

    def part_gradient(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        part_points, part_cotangent = part
        _, pull = jax.vjp(lambda x: _sample_part(operand, x, sizes), part_points)
        return pull(part_cotangent[..., 0])[0]

    d_points = jax.lax.map(part_gradient, (_split(points), _split(cotangent[..., None].astype(operand.dtype))))
    return d_maps, _join(d_points, points.shape[-2])


def _map_gradient(maps: jax.Array, points: jax.Array, sizes: jax.Array, cotangent: jax.Array) -> jax.Array:
    def add_part(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        part_points, part_cotangent = part
        rows, columns = _weights(maps, part_points, sizes)
        spread = (columns * part_cotangent).astype(maps.dtype)
        product = jnp.einsum("...kh,...kw->...hw", rows.astype(maps.dtype), spread, precision="highest", preferred_element_type=total.dtype)
        return total + product, None

    exact = jnp.promote_types(maps.dtype, points.dtype)
    parts = _split(points), _split(cotangent[..., None].astype(exact))
    return jax.lax.scan(add_part, jnp.zeros(maps.shape, exact), parts)[0].astype(maps.dtype)


def _sample_part(maps: jax.Array, points: jax.Array, sizes: jax.Array) -> jax.Array:
    """maps [..., h, w] from `_operand`, points [..., k, 2], sizes [..., 2] -> [..., k]"""
    rows, columns = _weights(maps, points, sizes)
    # "highest": without it a TPU would round float32 to bfloat16 before it multiplies.
    terms = [rows]
    if maps.dtype == jnp.bfloat16:
        # Two products in bfloat16, of the weights and of what their rounding left, cost a third of one in float32.
        # Not rounded by a cast to bfloat16 and back, which XLA may leave out.
        rounded = jax.lax.reduce_precision(rows, exponent_bits=8, mantissa_bits=7)
        terms = [rounded.astype(jnp.bfloat16), (rows - rounded).astype(jnp.bfloat16)]
    mixed = sum(jnp.einsum("...kh,...hw->...kw", t, maps, precision="highest", preferred_element_type=columns.dtype) for t in terms)
    return (mixed * columns).sum(-1)


def _weights(maps: jax.Array, points: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights of the rows [..., k, h] and of the columns [..., k, w] of every point; zero outside the valid region."""
    weights = []
    for axis, size in ((1, maps.shape[-2]), (0, maps.shape[-1])):
        valid = sizes[..., 1 - axis, None].astype(points.dtype)
        inside = jnp.arange(size) < valid[..., None]
        weights.append(jnp.where(inside, interpolation_weights(points[..., axis] * valid - 0.5, size), 0))
    return tuple(weights)


def _split(x: jax.Array) -> jax.Array:
    """[..., k, c] -> [parts, ..., k of a part, c], the last part padded with zeros."""
    *batch, k, c = x.shape
    x = jnp.pad(x, [(0, 0)] * len(batch) + [(0, -k % _CHUNK), (0, 0)])
    return jnp.moveaxis(x.reshape(*batch, -1, _CHUNK, c), -3, 0)


def _join(x: jax.Array, k: int) -> jax.Array:
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])[..., :k, :]
