"""`attention_rows` are rows of the probabilities by which `attention` weighs the values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segearth_r2_jax.kernels.attention import attention
from segearth_r2_jax.kernels.attention_rows import attention_rows

B, T, N, H = 2, 9, 3, 4
SCALE = 0.7
ROWS = jnp.array([[0, 8, 3], [5, 5, 2]])


@pytest.fixture(scope="module")
def qkv() -> tuple[jax.Array, jax.Array, jax.Array]:
    return tuple(jax.random.normal(key, (B, T, N, H)) for key in jax.random.split(jax.random.key(0), 3))


def _rows_of(q: jax.Array) -> jax.Array:
    return jnp.take_along_axis(q, ROWS[:, :, None, None], axis=1)


def _mask() -> jax.Array:
    return jnp.ones((B, T), bool).at[1, 1].set(False)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_they_weigh_the_values_as_attention_does(qkv: tuple, causal: bool, masked: bool):
    q, k, v = qkv
    mask = _mask() if masked else None
    rows = attention_rows(_rows_of(q), k, ROWS, mask, scale=SCALE, causal=causal)
    assert rows.shape == (B, N, 3, T)
    out = attention(q, k, v, causal=causal, key_mask=mask, scale=SCALE)
    np.testing.assert_allclose(jnp.einsum("bnrs,bsnh->brnh", rows, v), _rows_of(out), atol=1e-6)


def test_they_are_probabilities_of_the_visible_keys(qkv: tuple):
    q, k, _ = qkv
    rows = attention_rows(_rows_of(q), k, ROWS, _mask(), scale=SCALE)
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)
    hidden = (jnp.arange(T) > ROWS[:, None, :, None]) | ~_mask()[:, None, None, :]
    assert (jnp.where(hidden, rows, 0) == 0).all()
    assert (jnp.where(hidden, 1, rows) > 0).all()


def test_the_gradient_reaches_queries_and_keys(qkv: tuple):
    q, k, _ = qkv
    grads = jax.grad(lambda q, k: (attention_rows(_rows_of(q), k, ROWS, scale=SCALE)[..., 0] ** 2).sum(), argnums=(0, 1))(q, k)
    assert all(jnp.abs(g).max() > 0 for g in grads)


def test_bfloat16_gives_float32_probabilities(qkv: tuple):
    q, k, _ = (a.astype(jnp.bfloat16) for a in qkv)
    assert attention_rows(_rows_of(q), k, ROWS, scale=SCALE).dtype == jnp.float32


def test_float64_stays_float64():
    with jax.enable_x64(True):
        q = jnp.ones((1, 2, 1, 2), jnp.float64)
        assert attention_rows(q, q, jnp.array([[0, 1]]), scale=SCALE).dtype == jnp.float64
