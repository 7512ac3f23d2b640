"""Masked attention in jnp, the definition (Cheng et al. 2022, Mask2Former, section 3.2.1)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

# Without it a TPU would round float32 to bfloat16, and a GPU to TensorFloat-32, before they multiply: masks would change.
_einsum = functools.partial(jnp.einsum, precision="highest")


def lowest_open_logit(dtype: jax.typing.DTypeLike) -> float:
    """The mask logit below which `sigmoid(logit) < 0.5` as PyTorch evaluates it; a little below zero, since the sigmoid rounds to 0.5.

    PyTorch computes 1 / (1 + exp(-x)) in float32 or wider, where a sum less than 1.5 eps above 2 rounds to 2, and then rounds the quotient
    to the dtype of x, where one less than eps / 8 below one half rounds up to it (the sigmoid's slope is 1 / 4).
    A threshold leaves nothing to how a platform approximates the exponential.
    """
    eps = float(jnp.finfo(dtype).eps)
    return -1.5 * eps if jnp.promote_types(dtype, jnp.float32) == dtype else -0.5 * eps


def blocked_pixels(mask_logits: jax.Array) -> jax.Array:
    """True where a query may not look: bool, of the shape of `mask_logits`."""
    return mask_logits < lowest_open_logit(mask_logits.dtype)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask_embed: jax.Array, mask_features: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`masked_attention` (see `api`) of queries that are scaled already, and what its backward pass needs.

    Returns:
        The output [b, q, n, d]; the logarithm of the softmax's denominator [b, n, q] in float32 or wider; bool [b, q], whether the query
        saw the pixels of its mask only: False where every pixel is blocked, so that it saw them all.
    """
    blocked, masked = mask(mask_embed, mask_features)
    weights, logsumexp = softmax(_scores(q, k, blocked))
    return _einsum("bnqs,bsnd->bqnd", weights.astype(v.dtype), v), logsumexp, masked


def gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask_embed: jax.Array,
    mask_features: jax.Array,
    out: jax.Array,
    logsumexp: jax.Array,
    masked: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What flows into q, k and v, given what `attend` took and returned, and the cotangent [b, q, n, d] of its output."""
    blocked = blocked_pixels(_einsum("bqc,bsc->bqs", mask_embed, mask_features)) & masked[..., None]
    weights = jnp.exp(_scores(q, k, blocked) - logsumexp[..., None])
    d_v = _einsum("bnqs,bqnd->bsnd", weights.astype(v.dtype), cotangent)
    d_weights = _einsum("bqnd,bsnd->bnqs", cotangent, v, preferred_element_type=logsumexp.dtype)
    d_scores = (weights * (d_weights - inner_products(out, cotangent)[..., None])).astype(q.dtype)
    return _einsum("bnqs,bsnd->bqnd", d_scores, k), _einsum("bnqs,bqnd->bsnd", d_scores, q), d_v


def mask(mask_embed: jax.Array, mask_features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bool [b, q, s], True where a query does not look; bool [b, q] as in `attend`."""
    blocked = blocked_pixels(_einsum("bqc,bsc->bqs", mask_embed, mask_features))
    masked = ~blocked.all(-1)
    return blocked & masked[..., None], masked


def softmax(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Over the last axis; and the logarithm of its denominator."""
    highest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = weights.sum(-1, keepdims=True)
    return weights / total, (highest + jnp.log(total))[..., 0]


def inner_products(out: jax.Array, cotangent: jax.Array) -> jax.Array:
    """[b, q, n, d] twice -> their inner products [b, n, q] in float32 or wider: the mean of the gradient over a row of the softmax."""
    wide = jnp.promote_types(out.dtype, jnp.float32)
    return (out.astype(wide) * cotangent.astype(wide)).sum(-1).swapaxes(1, 2)


def _scores(q: jax.Array, k: jax.Array, blocked: jax.Array) -> jax.Array:
    """q [b, q, n, d], k [b, s, n, d], blocked [b, q, s] -> [b, n, q, s] in float32 or wider."""
    scores = _einsum("bqnd,bsnd->bnqs", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    return jnp.where(blocked[:, None], -jnp.inf, scores)
