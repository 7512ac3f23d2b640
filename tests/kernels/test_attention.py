"""`attention` is softmax(scale q k^T) v with causal and padding masks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segearth_r2_jax.kernels.attention.gpu as gpu
import segearth_r2_jax.kernels.attention.reference as reference
import segearth_r2_jax.kernels.attention.tpu as tpu
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


# Every fused form, as far as it runs here: splash interpreted, and all of cuDNN's but cuDNN.
FORMS = {"tpu": functools.partial(tpu.attend, interpret=True), "cuda": functools.partial(gpu.flash, implementation="xla")}
# Padding on the right, in front (causal queries there see no key) and in between, and a row that is nothing but padding.
PADDING = {"right": [[(100, 200)], [(190, 200)]], "anywhere": [[(0, 140), (150, 160)], [(0, 200)]]}


def _with_gradients(form, arrays: list[jax.Array], cotangent: jax.Array, key_mask, causal: bool) -> tuple[jax.Array, ...]:
    scale = arrays[0].shape[-1] ** -0.5
    out, pull = jax.vjp(lambda q, k, v: form(q, k, v, key_mask, causal=causal, scale=scale), *arrays)
    return out, *pull(cotangent)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("t", "s", "h", "causal", "padding", "dtype", "tolerance"),
    [
        (200, 200, 80, True, "right", "float32", 2e-6),
        (200, 200, 80, True, "anywhere", "float32", 2e-6),
        (200, 200, 72, False, None, "float32", 2e-6),
        (130, 200, 72, False, "anywhere", "float32", 2e-6),
        (256, 256, 64, True, None, "float32", 2e-6),
        (200, 200, 80, True, "anywhere", "bfloat16", 2e-2),
        (200, 200, 72, False, None, "bfloat16", 2e-2),
    ],
)
def test_every_form_gives_what_the_definition_gives(
    monkeypatch, form: str, t: int, s: int, h: int, causal: bool, padding: str | None, dtype: str, tolerance: float
):
    """Values and gradients, in blocks that the tokens do not fill."""
    monkeypatch.setattr(tpu, "BLOCK", 128)
    *arrays, cotangent = [a.astype(dtype) for a in (*_qkv(t, s, n=2, h=h), _qkv(t, s, n=2, h=h)[0][::-1])]
    key_mask = None
    if padding:
        key_mask = np.ones((2, s), bool)
        for row, spans in enumerate(PADDING[padding]):
            for start, stop in spans:
                key_mask[row, start:stop] = False
    expected = _with_gradients(reference.attend, arrays, cotangent, key_mask, causal)
    for ours, theirs in zip(_with_gradients(FORMS[form], arrays, cotangent, key_mask, causal), expected, strict=True):
        assert ours.dtype == theirs.dtype
        theirs = np.asarray(theirs, np.float32)
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("form", FORMS)
def test_a_row_without_keys_sends_its_gradient_to_all_values_alike(form: str):
    """And none to queries and keys, however large the scores are that it does not see."""
    q, k, v = _qkv(8, 8, h=8)
    q, k = 100 * q, 100 * k
    key_mask = jnp.ones((2, 8), bool).at[1].set(False)
    out, pull = jax.vjp(lambda q, k, v: FORMS[form](q, k, v, key_mask, causal=False, scale=1.0), q, k, v)
    dq, dk, dv = pull(jnp.ones_like(out))
    np.testing.assert_allclose(out[1], jnp.broadcast_to(v[1].mean(0), out[1].shape), atol=1e-6)
    np.testing.assert_array_equal(dq[1], 0)
    np.testing.assert_array_equal(dk[1], 0)
    np.testing.assert_allclose(dv[1], 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("length", "padded", "block"), [(729, 768, 768), (896, 896, 896), (1024, 1024, 512), (1280, 1280, 640), (2048, 2048, 512)]
)
def test_blocks_on_tpu_fit_the_lengths_of_the_token_rows(length: int, padded: int, block: int):
    assert tpu.padded(length) == (padded, block)


@pytest.mark.parametrize("padding", [True, False])
def test_long_sequences_in_scanned_recomputed_layers(padding: bool):
    """Where a fused form may run, jit, lax.scan and jax.checkpoint around it change no number."""
    q, k, v = _qkv(512, 512, b=1, n=2, h=8)
    key_mask = jnp.arange(512)[None] < 400 if padding else None

    def layers(attend, q, k, v):
        def layer(x, _):
            return x + attend(x, k, v), None

        return (jax.lax.scan(jax.checkpoint(layer), q, None, length=2)[0] ** 2).mean()

    def gradients(attend):
        return jax.jit(jax.grad(functools.partial(layers, attend), argnums=(0, 1, 2)))(q, k, v)

    ours = gradients(lambda q, k, v: attention(q, k, v, causal=True, key_mask=key_mask, scale=0.3))
    for actual, expected in zip(ours, gradients(lambda q, k, v: reference.attend(q, k, v, key_mask, causal=True, scale=0.3)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6 * np.abs(expected).max())


def _lowered(platform: str, t: int = 512, h: int = 80, dtype: str = "bfloat16") -> str:
    """The program of a forward and backward pass."""

    def both(q, k, v, key_mask):
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, causal=True, key_mask=key_mask, scale=0.1), q, k, v)
        return out, pull(out)

    x = jax.ShapeDtypeStruct((1, t, 2, h), jnp.dtype(dtype))
    traced = jax.jit(both).trace(x, x, x, jax.ShapeDtypeStruct((1, t), jnp.bool_))
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_platform_that_a_program_is_lowered_for_decides():
    assert "tpu_custom_call" in _lowered("tpu")
    assert "custom_call" not in _lowered("cpu")


@pytest.mark.parametrize(("t", "h"), [(160, 80), (512, 20)])
def test_short_sequences_and_odd_widths_keep_the_definition(t: int, h: int):
    assert "custom_call" not in _lowered("tpu", t=t, h=h)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_where_64_bits_are_enabled_the_definition_runs(dtype: str):
    with jax.enable_x64(True):
        assert "custom_call" not in _lowered("tpu", dtype=dtype)


def test_without_cudnn_a_program_for_gpus_has_the_definition():
    """cuDNN is looked for where a program is traced: beside it, no program for GPUs can be traced with it."""
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("cuDNN is here")
    assert "cudnn" not in _lowered("cuda")


@pytest.mark.parametrize(
    ("dtype", "h", "called"), [("bfloat16", 80, True), ("bfloat16", 72, True), ("bfloat16", 256, False), ("float32", 80, False)]
)
def test_with_cudnn_a_program_for_gpus_calls_it_where_it_takes_the_arrays(monkeypatch, dtype: str, h: int, called: bool):
    """Lowered without a GPU: what JAX asks of the machine is answered here."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    answers = {
        "check_cudnn_version": lambda: 91200,
        "check_compute_capability": lambda capability: True,
        "is_cuda_compute_capability_equal": lambda capability: False,
    }
    if not all(hasattr(fused, name) for name in answers):
        pytest.skip("this JAX asks the machine otherwise")
    for name, answer in answers.items():
        monkeypatch.setattr(fused, name, answer)
    text = _lowered("cuda", dtype=dtype, h=h)
    assert (text.count("cudnn$fmha") > 1) == called
