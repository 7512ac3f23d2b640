"""Greedy generation with a cache, and the hidden states of the [SEG] tokens it meets (reference: `SegEarthR2.inference`).

A mask is asked for by the final-normalised hidden state at the position where [SEG] is the *input*, so a [SEG] yields its state one
step after it was chosen. Everything runs in one compiled loop of fixed shapes that ends as soon as every row has ended.

b batch, t prompt tokens after the prefix, d hidden width, m segment slots.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from segearth_r2_jax.models.layers import wide
from segearth_r2_jax.models.phi import KVCache, Phi

FINAL_STATES = ("extra_step", "reference")


class Generation(NamedTuple):
    """What `generate` returns.

    ids: int32 [b, max_new_tokens], the generated tokens, filled up with the end-of-text id.
    lengths: int32 [b], tokens generated, the end-of-text token included.
    seg_states: [b, m, d], hidden state of each [SEG] in order of appearance; zero beyond `seg_counts`.
    seg_scores: float [b, m], probability that the model gave to [SEG] where it chose it; 1 for one that stands in the prompt.
    seg_counts: int32 [b], states present.
    seg_total: int32 [b], [SEG] tokens that counted: more than `seg_counts` where `max_segments`, or with "reference" the length limit,
        cut some off.
    """

    ids: jax.Array
    lengths: jax.Array
    seg_states: jax.Array
    seg_scores: jax.Array
    seg_counts: jax.Array
    seg_total: jax.Array


class _Loop(NamedTuple):
    step: jax.Array  # tokens chosen so far by a row that has not ended
    token: jax.Array  # [b] the newest token: the next input
    token_score: jax.Array  # [b] its probability
    ended: jax.Array  # bool [b]
    ids: jax.Array
    lengths: jax.Array
    states: jax.Array
    scores: jax.Array
    counts: jax.Array
    total: jax.Array
    cache: KVCache


def generate(
    phi: Phi,
    prefix: KVCache,
    embeds: jax.Array,
    lengths: jax.Array,
    *,
    eos_id: int,
    seg_id: int,
    max_new_tokens: int,
    max_segments: int,
    count_in_prompt: jax.Array | None = None,
    final_state: str = "extra_step",
) -> Generation:
    """Continues each prompt with the likeliest tokens until the end-of-text token or `max_new_tokens`.

    Call it inside a jitted function; `max_new_tokens`, `max_segments` and `final_state` are static.

    Args:
        phi: the language model.
        prefix: the first tokens of every prompt, as many of each, as `Phi.prefill` leaves them: rows about one image share its work.
        embeds: [b, t, d], the rest of the prompts, padded on the right; its dtype is the compute dtype.
        lengths: int [b], tokens of each rest; a row of length 0 is batch padding and generates nothing.
        eos_id: the token that ends a row; a negative id ends none.
        seg_id: the [SEG] token.
        max_new_tokens: at least 1.
        max_segments: states kept per row, at least 1; the first ones.
        count_in_prompt: bool [b, t], [SEG] tokens of the rest that are queries too. The reference counts every [SEG] of the prompt.
        final_state: the last token that the length limit lets through has not been an input yet. "extra_step" runs it through the
            model if it is a [SEG], so that it gets its state; "reference" loses it, as the published code does.

    Raises:
        ValueError: an argument out of its range.
    """
    if final_state not in FINAL_STATES:
        raise ValueError(f"final_state is one of {FINAL_STATES}, got {final_state!r}")
    if max_new_tokens < 1 or max_segments < 1:
        raise ValueError(f"max_new_tokens and max_segments are at least 1, got {max_new_tokens} and {max_segments}")
    b, t, d = embeds.shape
    rows = jnp.arange(b)
    dtype = embeds.dtype
    start = prefix.keys.shape[3]
    ends = start + lengths.astype(jnp.int32)

    def choose(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Hidden states [b, d] -> the likeliest tokens [b] and their probabilities [b]."""
        logits = phi.logits(hidden).astype(wide(dtype))
        # The head has more rows than the input table where a tokenizer resized the latter: such a token could not be fed back.
        logits = logits[:, : phi.config.embed_rows]
        token = logits.argmax(-1).astype(jnp.int32)
        return token, jax.nn.softmax(logits, axis=-1)[rows, token]

    def emit(loop: _Loop, hidden: jax.Array) -> _Loop:
        """Chooses the token that follows `hidden` [b, d] and gives it to the rows that have not ended, unless the limit is reached."""
        token, score = choose(hidden)
        alive = ~loop.ended & (loop.step < max_new_tokens)
        token = jnp.where(alive, token, eos_id)
        return loop._replace(
            step=loop.step + 1,
            token=token,
            token_score=score,
            ended=loop.ended | (token == eos_id),
            ids=loop.ids.at[:, loop.step].set(token, mode="drop"),
            lengths=loop.lengths + alive,
            total=loop.total + (alive & (token == seg_id)),
        )

    def cond(loop: _Loop) -> jax.Array:
        within_limit = loop.step < max_new_tokens
        if final_state == "extra_step":
            within_limit |= (loop.step == max_new_tokens) & (loop.token == seg_id)
        return (within_limit & ~loop.ended).any()

    def body(loop: _Loop) -> _Loop:
        token_embeds = phi.embed(jnp.maximum(loop.token, 0))[:, None].astype(dtype)
        hidden, cache = phi.decode(token_embeds, loop.cache, ends + loop.step - 1)
        hidden = hidden[:, 0]
        is_seg = ~loop.ended & (loop.token == seg_id)
        slot = jnp.where(is_seg, loop.counts, max_segments)  # out of range where there is no [SEG] or no slot left: dropped
        loop = loop._replace(
            states=loop.states.at[rows, slot].set(hidden, mode="drop"),
            scores=loop.scores.at[rows, slot].set(loop.token_score, mode="drop"),
            counts=jnp.minimum(loop.counts + is_seg, max_segments),
            cache=cache,
        )
        return emit(loop, hidden)

    hidden, cache = phi.decode(embeds, prefix.with_room(t + max_new_tokens), jnp.full(b, start))
    counted = jnp.zeros((b, t), bool) if count_in_prompt is None else count_in_prompt
    order = jnp.cumsum(counted, axis=1) - 1
    slot = jnp.where(counted, order, max_segments)
    prompt_total = counted.sum(1).astype(jnp.int32)
    loop = _Loop(
        step=jnp.int32(0),
        token=jnp.zeros(b, jnp.int32),
        token_score=jnp.zeros(b, wide(dtype)),
        ended=lengths == 0,
        ids=jnp.full((b, max_new_tokens), eos_id, jnp.int32),
        lengths=jnp.zeros(b, jnp.int32),
        states=jnp.zeros((b, max_segments, d), dtype).at[rows[:, None], slot].set(hidden, mode="drop"),
        scores=jnp.zeros((b, max_segments), wide(dtype)).at[rows[:, None], slot].set(1, mode="drop"),
        counts=jnp.minimum(prompt_total, max_segments),
        total=prompt_total,
        cache=cache,
    )
    loop = emit(loop, hidden[rows, jnp.maximum(lengths - 1, 0)])
    loop = jax.lax.while_loop(cond, body, loop)
    return Generation(loop.ids, loop.lengths, loop.states, loop.scores, loop.counts, loop.total)
