"""Masked attention in jnp, the definition (Cheng et al. 2022, Mask2Former, section 3.2.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def blocked_pixels(mask_logits: jax.Array) -> jax.Array:
    """True where a query may not look: bool, of the shape of `mask_logits`."""
    # Not `mask_logits < 0`: a logit so close to zero that its sigmoid rounds to one half stays allowed, as in the reference.
    return jax.nn.sigmoid(jax.lax.stop_gradient(mask_logits)) < 0.5


def masked_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask_logits: jax.Array, *, scale: float) -> jax.Array:
    """Attention of every query to the pixels where its mask is predicted, or to all pixels where it is predicted nowhere.

    Args:
        q: [b, q, n, d] queries.
        k: [b, s, n, d] keys of the s pixels of one level.
        v: [b, s, n, d] values.
        mask_logits: [b, q, s] the query's predicted mask at that level, one for all heads; no gradient flows into it.
        scale: factor of the dot products.

    Returns:
        [b, q, n, d] in the dtype of `q`; the softmax is computed in float32 or wider.
    """
    blocked = blocked_pixels(mask_logits)
    blocked = blocked & ~blocked.all(-1, keepdims=True)
    logits = jnp.einsum("bqnd,bsnd->bnqs", q * scale, k)
    logits = logits.astype(jnp.promote_types(q.dtype, jnp.float32))
    probabilities = jax.nn.softmax(jnp.where(blocked[:, None], -jnp.inf, logits), axis=-1)
    return jnp.einsum("bnqs,bsnd->bqnd", probabilities.astype(v.dtype), v)
