"""Deformable sampling as matrix products, for TPUs: a bilinear sample is (row weights) x map x (column weights).

TPUs gather and scatter slowly, and their memory pads a minor dimension of 32 channels to 128 lanes. Here every sample has two short
vectors, zero except at the two columns and the two rows around its location, and the matrix unit does the rest: a sample's column
weights times a head's map give one column, whose rows are then weighted and summed. Forward and backward are loops over heads and parts
of the queries, so that the maps of a head, what flows back into them and the columns of a part all stay in the chip's vector memory:
memory is read and written about once.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from segearth_r2_jax.kernels.interpolation import interpolation_weights

Shapes = tuple[tuple[int, int], ...]
# Queries of an image that are sampled at a time. Their points are the rows of the products: enough of them to keep the matrix unit busy,
# and few enough for the columns of four images to stay in vector memory.
_CHUNK = 256


def sample(values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array) -> jax.Array:
    """`reference.sample`, with the products in the dtype of `values` and their sums in float32 or wider."""

    def sample_head(head: tuple[jax.Array, ...]) -> jax.Array:
        pixels, *points = head
        maps = _maps(pixels, shapes)
        return jax.lax.map(lambda part: _sample_part(maps, *part), tuple(_split(x) for x in points))

    out = jax.lax.map(sample_head, tuple(_heads_first(x) for x in (values, locations, weights)))  # [n, parts, b, q of a part, d]
    b, q = locations.shape[:2]
    return out.transpose(2, 1, 3, 0, 4).reshape(b, -1, out.shape[0] * out.shape[-1])[:, :q].astype(values.dtype)


def gradients(
    values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`reference.gradients`; what flows into the values is summed in float32 or wider."""
    b, q, n = locations.shape[:3]
    exact = _exact(values)

    def head_gradients(head: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        pixels, *points = head
        maps = _maps(pixels, shapes)

        def add_part(total: list[jax.Array], part: tuple[jax.Array, ...]) -> tuple[list[jax.Array], tuple[jax.Array, jax.Array]]:
            *part_points, part_cotangent = part
            _, pull = jax.vjp(_sample_part, maps, *part_points)
            d_maps, d_locations, d_weights = pull(part_cotangent.astype(exact))
            return [t + d.astype(exact) for t, d in zip(total, d_maps, strict=True)], (d_locations, d_weights)

        zeros = [jnp.zeros(m.shape, exact) for m in maps]
        d_maps, (d_locations, d_weights) = jax.lax.scan(add_part, zeros, tuple(_split(x) for x in points))
        d_pixels = jnp.concatenate([m.swapaxes(1, 2).reshape(b, -1, m.shape[-1]) for m in d_maps], axis=1)
        return d_pixels.astype(values.dtype), _join(d_locations, q), _join(d_weights, q)

    heads = tuple(_heads_first(x) for x in (values, locations, weights, cotangent.reshape(b, q, n, -1)))
    return tuple(jnp.moveaxis(x, 0, 2) for x in jax.lax.map(head_gradients, heads))


def _sample_part(maps: list[jax.Array], locations: jax.Array, weights: jax.Array) -> jax.Array:
    """A head: maps [b, w, h, d] of every level, locations [b, q, levels, points, 2], weights [b, q, levels, points] -> [b, q, d]"""
    exact = _exact(maps[0])
    # Without it a TPU would round float32 to bfloat16 before it multiplies.
    einsum = functools.partial(jnp.einsum, precision="highest" if maps[0].dtype == exact else None)
    total = 0
    for level, pixels in enumerate(maps):
        w, h = pixels.shape[1:3]
        columns = interpolation_weights(locations[..., level, :, 0] * w - 0.5, w)
        rows = interpolation_weights(locations[..., level, :, 1] * h - 0.5, h) * weights[..., level, :, None]
        mixed = einsum("bqpx,bxyd->bqpyd", columns.astype(pixels.dtype), pixels)
        total += einsum("bqpy,bqpyd->bqd", rows.astype(pixels.dtype), mixed, preferred_element_type=exact)
    return total


def _maps(pixels: jax.Array, shapes: Shapes) -> list[jax.Array]:
    """[b, s, d] -> [b, w, h, d] of every level, so that a product over w gives all rows and channels of a column."""
    b, _, d = pixels.shape
    maps, start = [], 0
    for h, w in shapes:
        maps.append(pixels[:, start : start + h * w].reshape(b, h, w, d).swapaxes(1, 2))
        start += h * w
    return maps


def _exact(x: jax.Array) -> jax.typing.DTypeLike:
    return jnp.promote_types(x.dtype, jnp.float32)


def _heads_first(x: jax.Array) -> jax.Array:
    """[b, q, n, ...] -> [n, b, q, ...]"""
    return jnp.moveaxis(x, 2, 0)


def _split(x: jax.Array) -> jax.Array:
    """[b, q, ...] -> [parts, b, q of a part, ...], the last part padded with zeros."""
    b, q = x.shape[:2]
    x = jnp.pad(x, [(0, 0), (0, -q % _CHUNK)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(b, -1, _CHUNK, *x.shape[2:]), 1, 0)


def _join(x: jax.Array, q: int) -> jax.Array:
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :q]
