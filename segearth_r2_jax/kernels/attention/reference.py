"""Dot-product attention (Vaswani et al. 2017), the definition in jnp that every fused form has to meet."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attend(q: jax.Array, k: jax.Array, v: jax.Array, key_mask: jax.Array | None = None, *, causal: bool, scale: float) -> jax.Array:
    """See `api.attention`."""
    t, s = q.shape[1], k.shape[1]
    scores = scale * jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    allowed = None if key_mask is None else key_mask[:, None, None, :]
    if causal:
        triangle = jnp.tril(jnp.ones((t, s), bool))
        allowed = triangle if allowed is None else allowed & triangle
    if allowed is not None:
        scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
