"""Queries that see no key: fused forms give them something finite, the definition the mean of all values."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def mean_for_keyless_rows(out: jax.Array, v: jax.Array, key_mask: jax.Array | None, *, causal: bool) -> jax.Array:
    """`out` [b, t, n, h] with the mean of v [b, s, n, h] in the rows that see no key; no gradient flows to what stood there."""
    if key_mask is None:
        return out
    t, s = out.shape[1], v.shape[1]
    first = jnp.where(key_mask, jnp.arange(s), s).min(1)
    last_in_reach = jnp.arange(t) if causal else jnp.full(t, s - 1)
    keyless = first[:, None] > last_in_reach  # [b, t]
    mean = v.mean(1, keepdims=True, dtype=jnp.promote_types(v.dtype, jnp.float32)).astype(v.dtype)
    return jnp.where(keyless[..., None, None], mean, out)
