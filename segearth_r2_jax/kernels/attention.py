"""Dot-product attention (Vaswani et al. 2017), the definition in jnp that a fused kernel has to meet."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    key_mask: jax.Array | None = None,
    scale: float,
) -> jax.Array:
    """softmax(scale * q k^T) v, scores and softmax in float32 or wider.

    Args:
        q: [b, t, n, h].
        k: [b, s, n, h].
        v: [b, s, n, h].
        causal: query i sees the keys 0..i only (queries and keys then stand at the same positions, t == s).
        key_mask: bool [b, s], False where a key is padding; None if there is none.
        scale: factor of the scores, usually h ** -0.5.

    Returns:
        [b, t, n, h] in the dtype of v. A query that sees no key gets the mean of all values.

    Raises:
        ValueError: causal with t != s.
    """
    t, s = q.shape[1], k.shape[1]
    if causal and t != s:
        raise ValueError(f"causal attention needs as many queries as keys, got {t} and {s}")
    scores = scale * jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    allowed = None if key_mask is None else key_mask[:, None, None, :]
    if causal:
        triangle = jnp.tril(jnp.ones((t, s), bool))
        allowed = triangle if allowed is None else allowed & triangle
    if allowed is not None:
        scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
