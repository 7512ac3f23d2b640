"""`masked_attention` looks only where the query's mask is predicted; a query whose mask is empty looks everywhere."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import segearth_r2_jax.kernels.masked_attention.cpu as cpu
import segearth_r2_jax.kernels.masked_attention.gpu as gpu
import segearth_r2_jax.kernels.masked_attention.reference as reference
import segearth_r2_jax.kernels.masked_attention.tpu as tpu
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


def _with_logits(mask_logits: jax.Array, channels: int = Q) -> tuple[jax.Array, jax.Array]:
    """Mask embeddings [b, q, c] and mask features [b, s, c] with these mask logits [b, q, s], exactly: the embeddings are unit vectors."""
    b, q, _ = mask_logits.shape
    features = jnp.pad(mask_logits.swapaxes(1, 2), ((0, 0), (0, 0), (0, channels - q)))
    return jnp.broadcast_to(jnp.eye(q, channels, dtype=features.dtype), (b, q, channels)), features


def _attention(q: jax.Array, k: jax.Array, v: jax.Array, mask_logits: jax.Array) -> jax.Array:
    return masked_attention(q, k, v, *_with_logits(mask_logits), scale=0.5)


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
    np.testing.assert_array_equal(_attention(q, k, v, empty), _attention(q, k, v, everywhere))
    np.testing.assert_allclose(_attention(q, k, v, empty), _by_hand(q, k, v, np.ones((B, Q, S), bool)), atol=1e-6)


def test_a_query_sees_the_pixels_of_its_mask_only():
    q, k, v = _qkv()
    allowed = np.asarray(_mask_logits()) >= 0
    allowed[0, 1] = True
    np.testing.assert_allclose(_attention(q, k, v, _mask_logits()), _by_hand(q, k, v, allowed), atol=1e-6)
    np.testing.assert_allclose(_attention(q, k, v, _mask_logits())[0, 2], v[0, 5], atol=1e-6)


def test_the_mask_is_where_the_products_of_embedding_and_features_are_not_negative():
    q, k, v = _qkv()
    rng = np.random.default_rng(2)
    embed, features = (jnp.asarray(rng.normal(size=(B, length, 5)), jnp.float32) for length in (Q, S))
    logits = np.einsum("bqc,bsc->bqs", *(np.asarray(x, np.float64) for x in (embed, features)))
    assert (logits > 0.1).any(-1).all(), "every query is meant to see a part of the pixels"
    np.testing.assert_allclose(masked_attention(q, k, v, embed, features, scale=0.5), _by_hand(q, k, v, logits >= 0), atol=1e-6)


def test_a_logit_whose_sigmoid_rounds_to_one_half_is_not_blocked():
    logits = jnp.array([0.0, 1e-9, -1e-9, -1e-3])
    np.testing.assert_array_equal(blocked_pixels(logits), [False, False, False, True])
    # bfloat16 has fewer digits near one half.
    np.testing.assert_array_equal(blocked_pixels(logits.astype(jnp.bfloat16)), [False, False, False, False])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_blocked_is_what_pytorch_calls_blocked(dtype: str):
    torch = pytest.importorskip("torch")
    with jax.enable_x64(True):
        # In steps of a hundredth of the dtype's resolution near 1, but for 1.5 of it, where how an exponential rounds decides; then afar.
        steps = np.delete(np.arange(-800, 801), 800 - 150)
        logits = np.concatenate([steps / 100 * float(jnp.finfo(dtype).eps), np.linspace(-90, 90, 1001), [np.nan]])
        ours = jnp.asarray(logits, dtype)
        theirs = torch.from_numpy(np.array(ours, np.float64)).to(getattr(torch, dtype)).sigmoid() < 0.5
        np.testing.assert_array_equal(blocked_pixels(ours), theirs.numpy())
    assert 100 < theirs.sum() < len(logits) - 100


def test_gradients_are_finite_and_do_not_reach_the_mask():
    grads = jax.grad(lambda *x: jnp.square(_attention(*x)).sum(), argnums=(0, 1, 2, 3))(*_qkv(), _mask_logits())
    assert all(np.isfinite(g).all() for g in grads)
    assert all(np.abs(g).max() > 0 for g in grads[:3])
    np.testing.assert_array_equal(grads[3], 0)
    # The only pixel of image 0, query 2, has weight 1 whatever the key.
    np.testing.assert_allclose(grads[0][0, 2], 0, atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    with jax.enable_x64(True):
        attention = jax.jit(functools.partial(_attention, mask_logits=_mask_logits().astype("float64")))
        check_grads(attention, _qkv("float64"), order=1, modes=["rev"], eps=1e-6, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_that_differ_by_hundreds_do_not_overflow(dtype: str):
    q, k, v = _qkv(dtype)
    out = _attention(100 * q, 100 * k, v, _mask_logits().astype(dtype))
    assert out.dtype == dtype
    assert np.isfinite(out.astype(jnp.float32)).all()


# (images, queries, pixels, heads, channels of a head, channels of the mask): less than a block, whole blocks, a rest.
SHAPES = {"small": (2, 1, 40, 2, 16, 16), "blocks": (1, 8, 2048, 2, 16, 32), "rest": (2, 11, 1061, 4, 16, 64)}


def _real_inputs(shape: tuple[int, ...], dtype: str) -> list[jax.Array]:
    """Scores and mask logits of either sign; in image 0 every pixel is blocked for query 0, and for the last query all but the last."""
    b, queries, s, n, d, c = shape
    rng = np.random.default_rng(3)
    q, k, v = (rng.normal(size=(b, length, n, d)) for length in (queries, s, s))
    embed, features = (rng.normal(size=(b, length, c)) for length in (queries, s))
    features[0, :, 0] = np.abs(features[0, :, 0]) + 0.1
    features[0, -1, 1] = 100
    embed[0, 0] = -np.eye(c)[0]
    if queries > 1:
        embed[0, -1] = -np.eye(c)[0] + np.eye(c)[1] / 10
        features[0, :-1, 1] = 0
    return [jnp.asarray(x, dtype) for x in (q, k, v, embed, features)]


@pytest.mark.parametrize("form", [tpu, gpu], ids=["tpu", "gpu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_form_gives_what_the_reference_gives(form, shape: str, dtype: str, tolerance: float):
    """Values, what is saved for the backward pass, and all gradients."""
    inputs = _real_inputs(SHAPES[shape], dtype)
    expected = reference.attend(*inputs)
    masked = np.asarray(expected[2])
    assert not masked[0, 0]
    assert masked.sum() == masked.size - 1
    cotangent = jnp.asarray(np.random.default_rng(4).normal(size=inputs[0].shape), dtype)
    ours = form.attend(*inputs, interpret=True)
    np.testing.assert_array_equal(ours[2], masked)
    ours = *ours[:2], *form.gradients(*inputs, *expected, cotangent, interpret=True)
    for got, wanted in zip(ours, (*expected[:2], *reference.gradients(*inputs, *expected, cotangent)), strict=True):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        got, wanted = (np.asarray(x, np.float32) for x in (got, wanted))
        np.testing.assert_allclose(got / np.abs(wanted).max(), wanted / np.abs(wanted).max(), atol=tolerance)


@pytest.mark.parametrize("form", [reference, cpu, tpu, gpu], ids=["reference", "cpu", "tpu", "gpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_form_leaves_tiny_negative_logits_open(form, dtype: str):
    """Each pixel's value is its number; with equal scores a query answers with the mean of the numbers of the pixels that it sees."""
    lowest = reference.lowest_open_logit(dtype)
    logits = jnp.asarray([[[0.0, lowest / 2, lowest * 1.01, lowest * 2, -1.0, 3.0]]], dtype)
    seen = [0, 1, 5] if dtype == "float32" else [0, 1, 2, 5]  # In bfloat16 the third logit is rounded to the lowest open one.
    values = jnp.broadcast_to(jnp.arange(6.0)[:, None], (6, 16)).reshape(1, 6, 1, 16).astype(dtype)
    keys = jnp.zeros((1, 6, 1, 16), dtype)
    options = {} if form in (reference, cpu) else {"interpret": True}
    out, _, _ = form.attend(keys[:, :1], keys, values, *_with_logits(logits, 16), **options)
    np.testing.assert_allclose(out.astype(jnp.float32), np.mean(seen), rtol=1e-6 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 2e-2)])
def test_the_form_for_cpus_gives_what_the_reference_gives(shape: str, dtype: str, tolerance: float):
    inputs = _real_inputs(SHAPES[shape], dtype)
    for got, wanted in zip(cpu.attend(*inputs), reference.attend(*inputs), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(wanted, np.float32), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", [tpu, gpu], ids=["tpu", "gpu"])
def test_every_form_forgets_what_it_saw_before_the_first_open_pixel(form):
    """All scores before the only open pixel are much higher than its own."""
    _, k, v, _, _ = _real_inputs(SHAPES["rest"], "float32")
    q = jnp.ones((2, 1, 4, 16))
    k = k.at[:, :-1].add(50.0)
    logits = jnp.full((2, 1, 1061), -1.0).at[:, :, -1].set(1.0)
    out, logsumexp, _ = form.attend(q, k, v, *_with_logits(logits, 16), interpret=True)
    np.testing.assert_allclose(out[:, 0], v[:, -1], rtol=1e-6)
    np.testing.assert_allclose(logsumexp[..., 0], (q[:, 0] * k[:, -1]).sum(-1), rtol=1e-5)
