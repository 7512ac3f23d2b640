"""Masked attention for NVIDIA GPUs, as Pallas kernels that Triton compiles: every block of pixels on its own, then their sum.

A program takes a block of pixels of one image and all heads: the mask is computed once, and keys, values and mask features are read once.
For each query it sums up the open pixels of its block, or all of them if it has none, and says which. `_sum_of_blocks` then drops the
blocks without an open pixel of every query that has one elsewhere.

Lowered for CUDA and run in interpret mode; its speed was never measured.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from segearth_r2_jax.kernels.masked_attention.reference import inner_products, lowest_open_logit

_BLOCK = 128
# The smallest side of a product on tensor cores.
_SMALLEST = 16
# Channels of mask embedding and features that are multiplied at a time: a float32 block of all 256 would fill the shared memory.
_CHANNELS = 64
# A score that no exponential survives; finite, so that nothing becomes NaN.
_NEVER = -1e30


def takes(q: jax.Array, mask_features: jax.Array) -> bool:
    """Whether the kernels can: Triton's arrays have powers of two as sizes."""
    return all(size >= _SMALLEST and size == pl.next_power_of_2(size) for size in (q.shape[-1], mask_features.shape[-1]))


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask_embed: jax.Array, mask_features: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`reference.attend`"""
    b, queries, n, d = q.shape
    s = k.shape[1]
    q, mask_embed = (_pad_queries(x, 1) for x in (q, mask_embed))
    k, v, mask_features = (_pad(x, 1, -s % _BLOCK) for x in (k, v, mask_features))
    blocks, padded = k.shape[1] // _BLOCK, q.shape[1]
    shapes = (b, blocks, n, padded, d), (b, blocks, n, padded), (b, blocks, n, padded), (b, blocks, padded)
    parts = pl.pallas_call(
        functools.partial(_attend_kernel, s=s),
        grid=(b, blocks),
        in_specs=[_whole(q), _part(k), _part(v), _whole(mask_embed), _part(mask_features)],
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        out_specs=[_own(shape) for shape in shapes],
        compiler_params=plgpu.CompilerParams(num_warps=4),
        interpret=interpret,
        name="masked_attention",
    )(q, k, v, mask_embed, mask_features)
    out, logsumexp, masked = _sum_of_blocks(*parts)
    return out.swapaxes(1, 2)[:, :queries].astype(q.dtype), logsumexp[..., :queries], masked[:, :queries]


def gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask_embed: jax.Array,
    mask_features: jax.Array,
    out: jax.Array,
    logsumexp: jax.Array,
    masked: jax.Array,
    cotangent: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`reference.gradients`"""
    b, queries = q.shape[:2]
    s = k.shape[1]
    means = inner_products(out, cotangent)
    q, mask_embed, cotangent, masked = (_pad_queries(x, 1) for x in (q, mask_embed, cotangent, masked.astype(jnp.float32)))
    logsumexp, means = (_pad_queries(x, 2) for x in (logsumexp, means))
    k, v, mask_features = (_pad(x, 1, -s % _BLOCK) for x in (k, v, mask_features))
    blocks = k.shape[1] // _BLOCK
    parts = jax.ShapeDtypeStruct((b, blocks, *q.shape[1:]), jnp.float32)
    d_q, d_k, d_v = pl.pallas_call(
        functools.partial(_gradients_kernel, s=s),
        grid=(b, blocks),
        in_specs=[
            *(_whole(q), _part(k), _part(v), _whole(mask_embed), _part(mask_features)),
            *map(_whole, (logsumexp, masked, means, cotangent)),
        ],
        out_shape=[parts, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v))],
        out_specs=[_own(parts.shape), _part(k), _part(v)],
        compiler_params=plgpu.CompilerParams(num_warps=4),
        interpret=interpret,
        name="masked_attention_gradients",
    )(q, k, v, mask_embed, mask_features, logsumexp, masked, means, cotangent)
    return d_q.sum(1)[:, :queries].astype(q.dtype), d_k[:, :s], d_v[:, :s]


def _attend_kernel(q, k, v, mask_embed, mask_features, weighted, highest, total, has_open, *, s: int):
    """The softmax of a block of pixels of one image: weighted sum of values, highest score and sum of weights, by head and query."""
    is_open = _open(mask_embed, mask_features)
    any_open = jnp.where(is_open & _exists(is_open.shape, s), 1.0, 0.0).max(1)
    has_open[0, 0] = any_open
    sees = _sees(is_open, any_open, s)
    for head in range(q.shape[2]):
        scores = jnp.where(sees, _product(q[0, :, head], k[0, :, head].T), _NEVER)
        top = scores.max(1)
        weights = jnp.exp(scores - top[:, None])
        highest[0, 0, head] = top
        total[0, 0, head] = weights.sum(1)
        weighted[0, 0, head] = _product(weights.astype(v.dtype), v[0, :, head])


def _sum_of_blocks(
    weighted: jax.Array, highest: jax.Array, total: jax.Array, has_open: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The softmax of all blocks: out [b, n, q, d], logarithm of its denominator [b, n, q], bool [b, q] as in `reference.attend`."""
    masked = has_open.max(1)
    counts = (has_open == masked[:, None])[:, :, None]
    highest = jnp.where(counts, highest, _NEVER)
    top = highest.max(1)
    share = jnp.exp(highest - top[:, None])
    total = (share * total).sum(1)
    return (share[..., None] * weighted).sum(1) / total[..., None], top + jnp.log(total), masked > 0


def _gradients_kernel(q, k, v, mask_embed, mask_features, logsumexp, masked, means, cotangent, d_q, d_k, d_v, *, s: int):
    """A block of pixels of one image, and what flows from it into the queries."""
    sees = _sees(_open(mask_embed, mask_features), masked[0], s)
    for head in range(q.shape[2]):
        queries, keys, d_out = q[0, :, head], k[0, :, head], cotangent[0, :, head]
        scores = jnp.where(sees, _product(queries, keys.T), _NEVER)
        weights = jnp.exp(scores - logsumexp[0, head][:, None])
        d_weights = _product(d_out, v[0, :, head].T)
        d_scores = (weights * (d_weights - means[0, head][:, None])).astype(k.dtype)
        d_q[0, 0, :, head] = _product(d_scores, keys)
        d_k[0, :, head] = _product(d_scores.T, queries).astype(d_k.dtype)
        d_v[0, :, head] = _product(weights.astype(v.dtype).T, d_out).astype(d_v.dtype)


def _open(mask_embed, mask_features) -> jax.Array:
    """Bool [q, block], where a query may look."""
    logits = 0.0
    channels = mask_embed.shape[2]
    for start in range(0, channels, _CHANNELS):
        part = pl.ds(start, min(_CHANNELS, channels))
        logits += _product(mask_embed[0, :, part], mask_features[0, :, part].T)
    # Rounded, since the reference decides in that dtype.
    return ~(logits.astype(mask_embed.dtype).astype(jnp.float32) < lowest_open_logit(mask_embed.dtype))


def _sees(is_open: jax.Array, masked: jax.Array, s: int) -> jax.Array:
    """Bool [q, block]; `masked` [q] is 0 where the query sees every pixel that exists."""
    return (is_open | (masked == 0)[:, None]) & _exists(is_open.shape, s)


def _exists(shape: tuple[int, int], s: int) -> jax.Array:
    """Bool [q, block], False for what was added to fill the last block."""
    return pl.program_id(1) * shape[1] + jax.lax.broadcasted_iota(jnp.int32, shape, 1) < s


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Matrix product in float32, without rounding float32 to TensorFloat-32."""
    return jnp.dot(x, y, precision="highest" if x.dtype == jnp.float32 else None, preferred_element_type=jnp.float32)


def _pad(x: jax.Array, axis: int, count: int) -> jax.Array:
    """With `count` zeros at the end of an axis."""
    return jnp.pad(x, [(0, count if i == axis else 0) for i in range(x.ndim)])


def _pad_queries(x: jax.Array, axis: int) -> jax.Array:
    return _pad(x, axis, max(_SMALLEST, pl.next_power_of_2(x.shape[axis])) - x.shape[axis])


def _whole(x: jax.Array) -> pl.BlockSpec:
    """What a program (image, block of pixels) sees of an array: all of its image."""
    return pl.BlockSpec((1, *x.shape[1:]), lambda i, j: (i, *[0] * (x.ndim - 1)))


def _part(x: jax.Array) -> pl.BlockSpec:
    """A block of its image's pixels."""
    return pl.BlockSpec((1, _BLOCK, *x.shape[2:]), lambda i, j: (i, j, *[0] * (x.ndim - 2)))


def _own(shape: tuple[int, ...]) -> pl.BlockSpec:
    """Of an array with one entry per program, its own."""
    return pl.BlockSpec((1, 1, *shape[2:]), lambda i, j: (i, j, *[0] * (len(shape) - 2)))
