"""The attention probabilities of a few chosen query rows, without the [t, s] matrix that a fused attention never has either.

SegEarth-R2 supervises where the [SEG] rows look in every layer. Beside the attention itself this is one more small product, so that the
supervision costs the memory of r rows and not of t.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attention_rows(
    q_rows: jax.Array,
    k: jax.Array,
    row_positions: jax.Array,
    key_mask: jax.Array | None = None,
    *,
    scale: float,
    causal: bool = True,
) -> jax.Array:
    """softmax(scale * q k^T) of the rows `row_positions`, as `kernels.attention` computes it inside.

    Args:
        q_rows: [b, r, n, h], the queries that stand at `row_positions`.
        k: [b, s, n, h].
        row_positions: int [b, r].
        key_mask: bool [b, s], False where a key is padding; None if there is none.
        scale: factor of the scores.
        causal: a row sees the keys up to its own position only.

    Returns:
        Probabilities [b, n, r, s], float32 or wider. A row that sees no key is uniform.
    """
    scores = scale * jnp.einsum("brnh,bsnh->bnrs", q_rows, k, preferred_element_type=jnp.promote_types(q_rows.dtype, jnp.float32))
    allowed = None if key_mask is None else key_mask[:, None, None, :]
    if causal:
        past = jnp.arange(k.shape[1]) <= row_positions[:, None, :, None]  # [b, 1, r, s]
        allowed = past if allowed is None else allowed & past
    if allowed is not None:
        scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)
