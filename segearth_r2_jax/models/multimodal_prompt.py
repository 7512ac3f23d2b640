"""Image tokens in the prompt (reference: `prepare_inputs_labels_for_multimodal` in `llava_phi.py`).

The reference replaces one mark by the image tokens and so changes the length of each row. Here the ids are already expanded to the
final length (`inputs.conversation`), so that splicing keeps every shape.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def splice(text_embeds: jax.Array, token_ids: jax.Array, image_tokens: jax.Array, image_start: jax.Array) -> jax.Array:
    """Writes each row's image tokens over its text embeddings.

    Args:
        text_embeds: [b, t, d].
        token_ids: int [b, t]; where an id is negative there is no word, and the embedding is zero unless the image covers it.
        image_tokens: [b, n, d], cast to the dtype of `text_embeds`.
        image_start: int [b], 0 <= start; the image takes the positions start .. start + n - 1. What would stand at t or later is cut off.

    Returns:
        [b, t, d] in the dtype of `text_embeds`.
    """
    t, n = text_embeds.shape[1], image_tokens.shape[1]
    words = jnp.where((token_ids < 0)[..., None], 0, text_embeds)
    # With n spare rows the write never reaches past the end, where XLA would silently shift it to the left.
    buffer = jnp.pad(words, ((0, 0), (0, n), (0, 0)))

    def write(row: jax.Array, tokens: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(row, tokens, start, axis=0)

    return jax.vmap(write)(buffer, image_tokens.astype(words.dtype), image_start)[:, :t]
