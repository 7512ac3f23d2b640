"""`masked_attention` looks only where the query's mask is predicted; a query whose mask is empty looks everywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segearth_r2_jax.kernels.masked_attention import blocked_pixels, masked_attention

B, Q, S, N, D = 2, 3, 7, 2, 4


def _qkv(dtype: str = "float32") -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(B, length, N, D)), dtype) for length in (Q, S, S)]


def _mask_logits() -> jax.Array:
    """Some pixels per query, but none for query 1 of image 0 and a single one for query 2."""
    logits = np.random.default_rng(1).normal(size=(B, Q, S)).astype(np.float32)
    logits[0, 1] = -3
    logits[0, 2] = -3
    logits[0, 2, 5] = 2
    return jnp.asarray(logits)


def _by_hand(q, k, v, allowed) -> np.ndarray:
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.empty(q.shape)
    for b, i, n in np.ndindex(B, Q, N):
        keys = allowed[b, i]
        weights = np.exp(0.5 * k[b, keys, n] @ q[b, i, n])
        out[b, i, n] = weights @ v[b, keys, n] / weights.sum()
    return out


def test_a_query_with_an_empty_mask_sees_every_pixel():
    q, k, v = _qkv()
    empty = jnp.full((B, Q, S), -5.0)
    everywhere = jnp.full((B, Q, S), 5.0)
    np.testing.assert_array_equal(masked_attention(q, k, v, empty, scale=0.5), masked_attention(q, k, v, everywhere, scale=0.5))
    np.testing.assert_allclose(masked_attention(q, k, v, empty, scale=0.5), _by_hand(q, k, v, np.ones((B, Q, S), bool)), atol=1e-6)


def test_a_query_sees_the_pixels_of_its_mask_only():
    q, k, v = _qkv()
    allowed = np.asarray(_mask_logits()) >= 0
    allowed[0, 1] = True
    np.testing.assert_allclose(masked_attention(q, k, v, _mask_logits(), scale=0.5), _by_hand(q, k, v, allowed), atol=1e-6)
    np.testing.assert_allclose(masked_attention(q, k, v, _mask_logits(), scale=0.5)[0, 2], v[0, 5], atol=1e-6)


def test_a_logit_whose_sigmoid_rounds_to_one_half_is_not_blocked():
    logits = jnp.array([0.0, 1e-9, -1e-9, -1e-3])
    np.testing.assert_array_equal(blocked_pixels(logits), [False, False, False, True])
    # bfloat16 has fewer digits near one half.
    np.testing.assert_array_equal(blocked_pixels(logits.astype(jnp.bfloat16)), [False, False, False, False])


def test_gradients_are_finite_and_do_not_reach_the_mask():
    grads = jax.grad(lambda *x: jnp.square(masked_attention(*x, scale=0.5)).sum(), argnums=(0, 1, 2, 3))(*_qkv(), _mask_logits())
    assert all(np.isfinite(g).all() for g in grads)
    assert all(np.abs(g).max() > 0 for g in grads[:3])
    np.testing.assert_array_equal(grads[3], 0)
    # The only pixel of image 0, query 2, has weight 1 whatever the key.
    np.testing.assert_allclose(grads[0][0, 2], 0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_that_differ_by_hundreds_do_not_overflow(dtype: str):
    q, k, v = _qkv(dtype)
    out = masked_attention(100 * q, 100 * k, v, _mask_logits().astype(dtype), scale=0.5)
    assert out.dtype == dtype
    assert np.isfinite(out.astype(jnp.float32)).all()
