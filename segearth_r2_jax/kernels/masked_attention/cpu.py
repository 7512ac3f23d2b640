"""Masked attention for CPUs, going forward: one matrix product for all heads.

To multiply head by head, XLA first lays keys and values out anew, which takes several times as long as the products. Here pixels stay
rows [s, n * d] and the few queries are spread to n * q rows that are zero outside their own head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from segearth_r2_jax.kernels.masked_attention.reference import mask, softmax


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask_embed: jax.Array, mask_features: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`reference.attend`"""
    b, queries, n, d = q.shape
    s = k.shape[1]
    blocked, masked = mask(mask_embed, mask_features)
    own = jnp.eye(n, dtype=q.dtype)[:, None, :, None]
    rows = (q.swapaxes(1, 2)[:, :, :, None] * own).reshape(b, n * queries, n * d)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("brc,bsc->brs", rows, k.reshape(b, s, n * d), preferred_element_type=wide).reshape(b, n, queries, s)
    weights, logsumexp = softmax(jnp.where(blocked[:, None], -jnp.inf, scores))
    out = jnp.einsum("brs,bsc->brc", weights.astype(v.dtype).reshape(b, n * queries, s), v.reshape(b, s, n * d))
    return jnp.einsum("bnqnd->bqnd", out.reshape(b, n, queries, n, d)), logsumexp, masked
