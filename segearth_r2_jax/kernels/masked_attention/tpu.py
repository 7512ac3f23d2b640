"""Masked attention for TPUs: one pass over the pixels, block by block, as a Pallas kernel.

The channels of a head are a quarter of a TPU's lanes, so pixels are rows [s, n * d] of all heads, and the few queries are spread instead:
to n * q rows that are zero outside their own head. The products then work on all heads at once, whole lanes at a time.

There is one softmax, not a masked and an unmasked one. While a query has met no open pixel it sees all of them; with the first block that
holds one, what was summed up so far is dropped, and from there on blocked pixels count as nothing. That is the masked softmax if any pixel
is open, and the unmasked one otherwise.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from segearth_r2_jax.kernels.masked_attention.reference import inner_products, lowest_open_logit

# Pixels at a time, of which a float32 block of keys, values and mask features and the scores of 32 queries fit in vector memory.
_FORWARD_BLOCK, _BACKWARD_BLOCK = 1024, 512
_LANES, _SUBLANES = 128, 8
# A score that no exponential survives; finite, so that nothing becomes NaN.
_NEVER = -1e30


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask_embed: jax.Array, mask_features: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`reference.attend`"""
    b, queries, n, d = q.shape
    s = k.shape[1]
    q, mask_embed = (_pad(_rows(x), _SUBLANES) for x in (q, mask_embed))
    block, (k, v, mask_features) = _blocks(_FORWARD_BLOCK, *map(_rows, (k, v, mask_features)))
    padded = q.shape[1]
    whole, part = _specs(block)
    shapes = _like(q), *(jax.ShapeDtypeStruct((b, rows, 1), jnp.float32) for rows in (n * padded, padded))
    out, logsumexp, masked = pl.pallas_call(
        functools.partial(_attend_kernel, n=n, s=s),
        grid=(b, k.shape[1] // block),
        in_specs=[whole(q), part(k), part(v), whole(mask_embed), part(mask_features)],
        out_shape=shapes,
        out_specs=tuple(map(whole, shapes)),
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in ((n * padded, 1), (n * padded, 1), (n * padded, n * d))],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="masked_attention",
    )(q, k, v, mask_embed, mask_features)
    out = out[:, :queries].reshape(b, queries, n, d)
    return out, logsumexp.reshape(b, n, padded)[..., :queries], masked[:, :queries, 0] > 0


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
    b, queries, n, d = q.shape
    s = k.shape[1]
    means = inner_products(out, cotangent)
    q, mask_embed, cotangent = (_pad(_rows(x), _SUBLANES) for x in (q, mask_embed, cotangent))
    block, (k, v, mask_features) = _blocks(_BACKWARD_BLOCK, *map(_rows, (k, v, mask_features)))
    padded = q.shape[1]
    logsumexp, means = (jnp.pad(x, ((0, 0), (0, 0), (0, padded - queries))).reshape(b, n * padded, 1) for x in (logsumexp, means))
    masked = _pad(masked.astype(jnp.float32)[..., None], _SUBLANES)
    whole, part = _specs(block)
    d_q, d_k, d_v = pl.pallas_call(
        functools.partial(_gradients_kernel, n=n, s=s),
        grid=(b, k.shape[1] // block),
        in_specs=[
            *(whole(q), part(k), part(v), whole(mask_embed), part(mask_features)),
            *map(whole, (logsumexp, masked, means, cotangent)),
        ],
        out_shape=(_like(q, jnp.float32), _like(k), _like(v)),
        out_specs=(whole(q), part(k), part(v)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="masked_attention_gradients",
    )(q, k, v, mask_embed, mask_features, logsumexp, masked, means, cotangent)
    d_q = d_q[:, :queries].astype(q.dtype).reshape(b, queries, n, d)
    return d_q, *(x[:, :s].reshape(b, s, n, d) for x in (d_k, d_v))


def _attend_kernel(q, k, v, mask_embed, mask_features, out, logsumexp, masked, highest, total, weighted, *, n: int, s: int):
    """A block of pixels of one image; `highest`, `total` [n * q, 1] and `weighted` [n * q, n * d] are the softmax so far."""

    @pl.when(pl.program_id(1) == 0)
    def _start():
        highest[...] = jnp.full(highest.shape, _NEVER, jnp.float32)
        for ref in (total, weighted, masked):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    is_open = _open(mask_embed[0], mask_features[0], s)
    before = masked[0]
    now = jnp.maximum(before, is_open.max(1, keepdims=True))
    masked[0] = now
    scores = _scores(_spread(q[0], n), k[0], is_open, now, n, s)

    earlier = jnp.where(_for_heads(now - before, n) > 0, _NEVER, highest[...])
    latest = jnp.maximum(earlier, scores.max(1, keepdims=True))
    shrink, weights = jnp.exp(earlier - latest), jnp.exp(scores - latest)
    highest[...] = latest
    total[...] = shrink * total[...] + weights.sum(1, keepdims=True)
    weighted[...] = shrink * weighted[...] + _product(weights.astype(v.dtype), v[0], 1, 0)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _finish():
        out[0] = _own(weighted[...] / total[...], n).astype(out.dtype)
        logsumexp[0] = highest[...] + jnp.log(total[...])


def _gradients_kernel(q, k, v, mask_embed, mask_features, logsumexp, masked, means, cotangent, d_q, d_k, d_v, *, n: int, s: int):
    """A block of pixels of one image; `d_q` is the sum over the blocks so far."""

    @pl.when(pl.program_id(1) == 0)
    def _start():
        d_q[...] = jnp.zeros(d_q.shape, jnp.float32)

    is_open = _open(mask_embed[0], mask_features[0], s)
    rows, d_rows = _spread(q[0], n), _spread(cotangent[0], n)
    weights = jnp.exp(_scores(rows, k[0], is_open, masked[0], n, s) - logsumexp[0])
    d_scores = (weights * (_product(d_rows, v[0], 1, 1) - means[0])).astype(q.dtype)
    d_q[0] += _own(_product(d_scores, k[0], 1, 0), n)
    d_k[0] = _product(d_scores, rows, 0, 0).astype(d_k.dtype)
    d_v[0] = _product(weights.astype(v.dtype), d_rows, 0, 0).astype(d_v.dtype)


def _open(mask_embed: jax.Array, mask_features: jax.Array, s: int) -> jax.Array:
    """[q, c], [block, c] -> float32 [q, block], 1 where the query may look and 0 elsewhere; pixels beyond the last of `s` are closed."""
    # Rounded, since the reference decides in that dtype, and widened again, since not every TPU compares bfloat16.
    logits = _product(mask_embed, mask_features, 1, 1).astype(mask_embed.dtype).astype(jnp.float32)
    is_open = jnp.where(logits < lowest_open_logit(mask_embed.dtype), 0.0, 1.0)
    return is_open if s % mask_features.shape[0] == 0 else jnp.where(_exists(is_open.shape, s), is_open, 0.0)


def _scores(rows: jax.Array, k: jax.Array, is_open: jax.Array, masked: jax.Array, n: int, s: int) -> jax.Array:
    """Scores [n * q, block] of the rows; those that do not count are far below all others. `masked` [q, 1]: 1 where the mask holds."""
    bias = (1 - is_open) * masked * _NEVER
    if s % k.shape[0]:
        bias = jnp.where(_exists(bias.shape, s), bias, _NEVER)
    return _product(rows, k, 1, 1) + _for_heads(bias, n)


def _exists(shape: tuple[int, int], s: int) -> jax.Array:
    """Bool [q, block], False for what was added to fill the last block."""
    return pl.program_id(1) * shape[1] + jax.lax.broadcasted_iota(jnp.int32, shape, 1) < s


def _product(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """Matrix product over an axis of each, in float32; without `HIGHEST` a TPU would round float32 to bfloat16."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _for_heads(x: jax.Array, n: int) -> jax.Array:
    """[q, ...] -> [n * q, ...], once for every head."""
    return jnp.concatenate([x] * n)


def _spread(x: jax.Array, n: int) -> jax.Array:
    """[q, n * d] -> [n * q, n * d], every head in rows of its own that are zero elsewhere."""
    # In float32, whose tiles have 8 rows: then rows are put together tile by tile.
    wide = x.astype(jnp.float32)
    return jnp.concatenate([jnp.where(own, wide, 0) for own in _heads(x.shape, n)]).astype(x.dtype)


def _own(rows: jax.Array, n: int) -> jax.Array:
    """[n * q, n * d] -> [q, n * d], of every row the part of its own head."""
    q = rows.shape[0] // n
    return sum(jnp.where(own, rows[i * q : (i + 1) * q], 0) for i, own in enumerate(_heads((q, rows.shape[1]), n)))


def _heads(shape: tuple[int, int], n: int) -> list[jax.Array]:
    """For every head bool [q, n * d], True in its channels."""
    channel, d = jax.lax.broadcasted_iota(jnp.int32, shape, 1), shape[1] // n
    return [(channel >= i * d) & (channel < (i + 1) * d) for i in range(n)]


def _rows(x: jax.Array) -> jax.Array:
    """[b, rows, ...] -> [b, rows, channels]"""
    return x.reshape(*x.shape[:2], -1)


def _pad(x: jax.Array, multiple: int) -> jax.Array:
    """[b, rows, ...] with rows of zeros up to a multiple."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0)))


def _blocks(size: int, *arrays: jax.Array) -> tuple[int, list[jax.Array]]:
    """Pixels per block, at most `size`, and the arrays [b, s, ...] padded to whole blocks."""
    block = min(size, pl.cdiv(arrays[0].shape[1], _LANES) * _LANES)
    return block, [_pad(x, block) for x in arrays]


def _like(x: jax.Array, dtype: jax.typing.DTypeLike | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)


def _specs(block: int):
    """What a grid cell (image, block of pixels) sees of an array: all rows of its image, or its block of them."""

    def whole(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
        return pl.BlockSpec((1, *x.shape[1:]), lambda i, j: (i, 0, 0))

    def part(x: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((1, block, x.shape[2]), lambda i, j: (i, j, 0))

    return whole, part
