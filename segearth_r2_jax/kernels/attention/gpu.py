"""Attention on NVIDIA GPUs: cuDNN's flash attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import segearth_r2_jax.kernels.attention.reference as reference
from segearth_r2_jax.kernels.attention.keyless_rows import mean_for_keyless_rows

# The score of a padding key. exp of it is zero beside every real score, and yet the rows that see no other key stay finite: at this size
# float32 numbers are 32 apart, so that what rounding leaves of the difference of two of them is not too large for an exp.
_BLOCKED = -float(2**28)
# cuDNN takes head widths that are multiples of this.
_WIDTH_STEP = 8


def attend(q: jax.Array, k: jax.Array, v: jax.Array, key_mask: jax.Array | None = None, *, causal: bool, scale: float) -> jax.Array:
    """`reference.attend`, which it is where cuDNN is absent or does not take the arrays (it takes bfloat16 and float16)."""
    if not _takes(q, k, v, key_mask, causal=causal, scale=scale):
        return reference.attend(q, k, v, key_mask, causal=causal, scale=scale)
    return flash(q, k, v, key_mask, causal=causal, scale=scale)


def flash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_mask: jax.Array | None = None,
    *,
    causal: bool,
    scale: float,
    implementation: str = "cudnn",
) -> jax.Array:
    """`reference.attend` through `jax.nn.dot_product_attention`.

    Given a mask, cuDNN reads a bias per query and key and returns its gradient, both [b, t, s]. Instead the heads are made wider here: an
    element that is 1 in every query, and in a key 0 or, for padding, a number that makes its score hopeless.
    """
    h = q.shape[-1]
    if key_mask is not None:
        blocked = jnp.where(key_mask, 0.0, _BLOCKED / scale).astype(k.dtype)[:, :, None, None]
        q = _widened(q, jnp.ones((), q.dtype))
        k = _widened(k, blocked)
        v = _widened(v, jnp.zeros((), v.dtype))
    out = jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=causal, implementation=implementation)
    return mean_for_keyless_rows(out[..., :h], v[..., :h], key_mask, causal=causal)


def _widened(x: jax.Array, element: jax.Array) -> jax.Array:
    """[b, t, n, h] -> [b, t, n, h + 8]: `element`, then zeros."""
    column = jnp.broadcast_to(element, (*x.shape[:-1], 1))
    return jnp.concatenate([x, column, jnp.zeros((*x.shape[:-1], _WIDTH_STEP - 1), x.dtype)], axis=-1)


def _takes(*arrays: jax.Array | None, causal: bool, scale: float) -> bool:
    """Whether cuDNN is here and takes the arrays, forward and backward. It says so with an exception where it is traced."""

    def forward_and_backward(q: jax.Array, k: jax.Array, v: jax.Array, key_mask: jax.Array | None):
        out, pull = jax.vjp(lambda q, k, v: flash(q, k, v, key_mask, causal=causal, scale=scale), q, k, v)
        return pull(out)

    try:
        jax.eval_shape(forward_and_backward, *arrays)
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    return True
