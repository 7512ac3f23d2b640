"""`attention` is softmax(scale q k^T) v with causal and padding masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segearth_r2_jax.kernels.attention import attention


def _qkv(t: int, s: int, dtype: str = "float32", b: int = 2, n: int = 3, h: int = 5) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(b, length, n, h)), dtype) for length in (t, s, s)]


def _by_hand(q, k, v, allowed, scale: float) -> np.ndarray:
    """Row by row in float64; `allowed` bool [b, t, s]."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.empty(q.shape)
    for b, i, n in np.ndindex(*q.shape[:3]):
        keys = allowed[b, i]
        weights = np.exp(scale * k[b, keys, n] @ q[b, i, n])
        out[b, i, n] = weights @ v[b, keys, n] / weights.sum()
    return out


def test_every_query_sees_every_key_of_another_sequence():
    q, k, v = _qkv(4, 7)
    expected = _by_hand(q, k, v, np.ones((2, 4, 7), bool), 0.3)
    np.testing.assert_allclose(attention(q, k, v, causal=False, scale=0.3), expected, atol=1e-6)


def test_a_causal_query_sees_the_past_without_the_padding():
    q, k, v = _qkv(6, 6)
    key_mask = np.ones((2, 6), bool)
    key_mask[1, 2:4] = False
    allowed = np.tril(np.ones((6, 6), bool)) & key_mask[:, None]
    actual = attention(q, k, v, causal=True, key_mask=jnp.asarray(key_mask), scale=0.5)
    np.testing.assert_allclose(actual, _by_hand(q, k, v, allowed, 0.5), atol=1e-6)


def test_a_query_without_keys_stays_finite():
    q, k, v = _qkv(3, 3)
    out = attention(q, k, v, causal=True, key_mask=jnp.zeros((2, 3), bool), scale=1.0)
    np.testing.assert_allclose(out, jnp.broadcast_to(v.mean(1, keepdims=True), out.shape), atol=1e-6)


def test_large_scores_do_not_overflow():
    q, k, v = _qkv(4, 4)
    assert jnp.isfinite(attention(1e4 * q, k, v, causal=True, scale=1.0)).all()


def test_bfloat16_in_bfloat16_out_with_a_float32_softmax():
    q, k, v = _qkv(8, 8, "bfloat16")
    out = attention(q, k, v, causal=True, scale=0.4)
    assert out.dtype == jnp.bfloat16
    expected = _by_hand(q, k, v, np.tril(np.ones((2, 8, 8), bool)), 0.4)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=2e-2)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        q, k, v = _qkv(5, 5, "float64")
        out = attention(q, k, v, causal=True, scale=0.4)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, _by_hand(q, k, v, np.tril(np.ones((2, 5, 5), bool)), 0.4), atol=1e-14)


def test_causal_refuses_queries_and_keys_of_different_number():
    q, k, v = _qkv(3, 4)
    with pytest.raises(ValueError, match="3 and 4"):
        attention(q, k, v, causal=True, scale=1.0)
