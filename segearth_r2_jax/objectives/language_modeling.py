"""Next-token cross-entropy (the reference: `SegEarthR2.forward`, HF causal LM loss)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from segearth_r2_jax.models.layers import wide

IGNORE_LABEL = -100


def next_token_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy over the batch of predicting `labels[:, t + 1]` from `logits[:, t]`.

    Args:
        logits: [b, t, vocab].
        labels: int [b, t], aligned with the input ids; IGNORE_LABEL (-100) is not counted.

    Returns:
        A scalar in float32 or wider; 0 if no label counts.
    """
    targets = labels[:, 1:]
    counted = targets != IGNORE_LABEL
    log_probs = jax.nn.log_softmax(logits[:, :-1].astype(wide(logits.dtype)), axis=-1)
    picked = jnp.take_along_axis(log_probs, jnp.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(counted, picked, 0)) / jnp.maximum(counted.sum(), 1)
