"""Deformable sampling as matrix products, for TPUs: a bilinear sample is (row weights) x map x (column weights).

TPUs gather and scatter slowly, and their memory pads a minor dimension of 32 channels to 128 lanes. Here every sample holds two short
vectors, zero except at the two rows and the two columns around its location, and the matrix unit does the rest: a sample's row
weights times a head's map give one mixed row, whose columns are then weighted and summed. A part of the queries is done at a time, so
that the mixed rows fit the chip's fast memory.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from segearth_r2_jax.kernels.interpolation import interpolation_weights

Shapes = tuple[tuple[int, int], ...]
# Queries of an image that are sampled at a time: a few thousand rows for the matrix unit with the points of eight heads.
_CHUNK = 128


def sample(values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array) -> jax.Array:
    """`reference.sample`, with the products in the dtype of `values` and their sums in float32 or wider."""
    maps = _maps(values, shapes)
    out = jax.lax.map(lambda part: _sample_part(maps, *part), (_split(locations), _split(weights)))
    return _join(out, locations.shape[1]).reshape(*locations.shape[:2], -1).astype(values.dtype)


def gradients(
    values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`reference.gradients`; what flows into the values is summed in float32 or wider."""
    b, q, n = locations.shape[:3]
    exact = _exact(values)
    maps = _maps(values, shapes)

    def add_part(total: list[jax.Array], part: tuple[jax.Array, ...]) -> tuple[list[jax.Array], tuple[jax.Array, jax.Array]]:
        *points, part_cotangent = part
        _, pull = jax.vjp(_sample_part, maps, *points)
        d_maps, d_locations, d_weights = pull(part_cotangent.astype(exact))
        return [t + d.astype(exact) for t, d in zip(total, d_maps, strict=True)], (d_locations, d_weights)

    parts = _split(locations), _split(weights), _split(cotangent.reshape(b, q, n, -1))
    d_maps, (d_locations, d_weights) = jax.lax.scan(add_part, [jnp.zeros(m.shape, exact) for m in maps], parts)
    d_values = jnp.concatenate([m.transpose(0, 3, 2, 1, 4).reshape(b, -1, n, m.shape[-1]) for m in d_maps], axis=1)
    return d_values.astype(values.dtype), _join(d_locations, q), _join(d_weights, q)


def _sample_part(maps: list[jax.Array], locations: jax.Array, weights: jax.Array) -> jax.Array:
    """maps [b, n, w, h, d] of every level, locations [b, q, n, levels, points, 2], weights [b, q, n, levels, points] -> [b, q, n, d]"""
    exact = _exact(maps[0])
    # Without it a TPU would round float32 to bfloat16 before it multiplies.
    einsum = functools.partial(jnp.einsum, precision="highest" if maps[0].dtype == exact else None)
    total = 0
    for level, pixels in enumerate(maps):
        columns = _weights(locations[..., level, :, 0], pixels.shape[2])
        rows = _weights(locations[..., level, :, 1], pixels.shape[3]) * weights[..., level, :, None]
        mixed = einsum("bqnpx,bnxyd->bqnpyd", columns.astype(pixels.dtype), pixels)
        total += einsum("bqnpy,bqnpyd->bqnd", rows.astype(pixels.dtype), mixed, preferred_element_type=exact)
    return total


def _weights(locations: jax.Array, size: int) -> jax.Array:
    return interpolation_weights(locations * size - 0.5, size)


def _maps(values: jax.Array, shapes: Shapes) -> list[jax.Array]:
    """[b, s, n, d] -> [b, n, w, h, d] of every level: the samples' columns are picked first, all rows and channels at a time."""
    b, _, n, d = values.shape
    maps, start = [], 0
    for h, w in shapes:
        maps.append(values[:, start : start + h * w].reshape(b, h, w, n, d).transpose(0, 3, 2, 1, 4))
        start += h * w
    return maps


def _exact(x: jax.Array) -> jax.typing.DTypeLike:
    return jnp.promote_types(x.dtype, jnp.float32)


def _split(x: jax.Array) -> jax.Array:
    """[b, q, ...] -> [parts, b, q of a part, ...], the last part padded with zeros."""
    b, q = x.shape[:2]
    x = jnp.pad(x, [(0, 0), (0, -q % _CHUNK)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(b, -1, _CHUNK, *x.shape[2:]), 1, 0)


def _join(x: jax.Array, q: int) -> jax.Array:
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :q]
