"""Next-token cross-entropy (the reference: `SegEarthR2.forward`, HF causal LM loss), without the logits of all positions at once.

Logits are the largest activation of the model: [b, t, 51200] in float32, 1.6 GB for eight rows of 1024 tokens, and as much for their
gradient. They are made for some positions at a time, and again for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from segearth_r2_jax.models.layers import wide

IGNORE_LABEL = -100


def next_token_loss(
    hidden: jax.Array, labels: jax.Array, logits_of: Callable[[jax.Array], jax.Array], *, chunk: int | None = None
) -> jax.Array:
    """Mean cross-entropy over the batch of predicting `labels[:, t + 1]` from `logits_of(hidden[:, t])`.

    Args:
        hidden: [b, t, d], the language model's last states.
        labels: int [b, t], aligned with the input ids; IGNORE_LABEL (-100) is not counted.
        logits_of: states [b, s, d] -> logits [b, s, vocab], each position by itself.
        chunk: positions of each row whose logits exist at the same time; None makes them all at once.

    Returns:
        A scalar in float32 or wider; 0 if no label counts.
    """
    # The last state predicts nothing. It stays, with no label, because t is often a round number and t - 1 never is.
    targets = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE_LABEL)
    count = jnp.maximum((targets != IGNORE_LABEL).sum(), 1)
    length = targets.shape[1]
    if chunk is None or chunk >= length:
        return _summed(logits_of(hidden), targets) / count
    fill = -length % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, fill), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, fill)), constant_values=IGNORE_LABEL)

    @jax.checkpoint
    def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        part = jax.lax.dynamic_slice_in_dim(hidden, start, chunk, axis=1)
        return total + _summed(logits_of(part), jax.lax.dynamic_slice_in_dim(targets, start, chunk, axis=1)), None

    total, _ = jax.lax.scan(add, jnp.zeros((), wide(hidden.dtype)), jnp.arange(0, length + fill, chunk))
    return total / count


def _summed(logits: jax.Array, targets: jax.Array) -> jax.Array:
    counted = targets != IGNORE_LABEL
    logits = logits.astype(wide(logits.dtype))
    # Not looked up by index: the gradient would be a scatter, slow on TPUs, where a sum over what matches fuses with the rest.
    vocabulary = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    picked = jnp.where(vocabulary == targets[..., None], logits, 0).sum(-1)
    return jnp.sum(jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - picked, 0))
