"""Phi: what a token sees, the cache, the attention rows, adaptation, dropout, rematerialisation, and the published sizes."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_weights import random_module

from segearth_r2_jax.models.binding import abstract_module, bind, flatten, init_params, module_params, unflatten
from segearth_r2_jax.models.layers import REMAT, LoraConfig
from segearth_r2_jax.models.phi import KVCache, Phi, PhiConfig, rotate, rotation

CONFIG = PhiConfig(vocab_size=40, embed_rows=37, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=2)
B, T = 2, 10


def abstract(config: PhiConfig) -> Phi:
    return abstract_module(lambda rngs: Phi(config, rngs=rngs))


def build(config: PhiConfig) -> Phi:
    return random_module(lambda rngs: Phi(config, rngs=rngs))


@pytest.fixture(scope="module")
def phi() -> Phi:
    return build(CONFIG)


@pytest.fixture(scope="module")
def embeds() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (B, T, CONFIG.hidden_size))


ALL = np.ones((B, T), bool)


@jax.jit
def run(phi: Phi, embeds: jax.Array, mask: jax.Array, rng: jax.Array | None = None) -> jax.Array:
    return phi(embeds, mask, rng=rng).hidden


def test_a_token_sees_the_past_and_not_the_future(phi: Phi, embeds: jax.Array):
    changed = (run(phi, embeds.at[:, 4].add(1), ALL) != run(phi, embeds, ALL)).any(-1)
    np.testing.assert_array_equal(changed, np.broadcast_to(np.arange(T) >= 4, (B, T)))


def test_a_masked_token_is_seen_by_nobody_else(phi: Phi, embeds: jax.Array):
    mask = ALL.copy()
    mask[0, 4] = False
    changed = (run(phi, embeds.at[:, 4].add(1), mask) != run(phi, embeds, mask)).any(-1)
    np.testing.assert_array_equal(changed, [np.arange(T) == 4, np.arange(T) >= 4])


def test_padding_on_the_right_changes_nothing(phi: Phi, embeds: jax.Array):
    mask = ALL.copy()
    mask[:, 7:] = False
    np.testing.assert_allclose(run(phi, embeds, mask)[:, :7], run(phi, embeds[:, :7], ALL[:, :7]), atol=1e-5)


def test_rotation_turns_the_first_elements_by_position():
    cos_sin = rotation(jnp.arange(5)[None], 4, 100.0, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 10))
    out = rotate(x, cos_sin)
    np.testing.assert_array_equal(out[..., 4:], x[..., 4:])
    np.testing.assert_allclose(out[:, 0], x[:, 0])
    for pair, frequency in ((0, 1.0), (1, 0.1)):
        turned = (x[..., pair] + 1j * x[..., pair + 2]) * np.exp(1j * frequency * np.arange(5))[None, :, None]
        np.testing.assert_allclose(out[..., pair] + 1j * out[..., pair + 2], turned, atol=1e-6)


def test_far_positions_are_exact():
    """float32 angles of a few thousand radians: what counts is that the frequencies are rounded once."""
    cos, _ = rotation(jnp.array([2047]), 32, 1e4, jnp.float32)
    np.testing.assert_allclose(cos[0], np.cos(2047 * 1e4 ** (-np.arange(16) / 16)), atol=2e-4)


def test_decoding_with_a_cache_is_the_whole_pass(phi: Phi, embeds: jax.Array):
    """Rows of a batch stand at different positions: each continues where its own tokens, padded to a common length, ended."""
    prefix, padded, lengths, steps = 3, 4, np.array([2, 4]), 3
    whole = run(phi, embeds, ALL)
    hidden, cache = jax.jit(Phi.prefill)(phi, embeds[:, :prefix])
    assert cache.keys.shape[3] == prefix
    np.testing.assert_allclose(hidden, whole[:, :prefix], atol=1e-5)
    decode = jax.jit(Phi.decode)
    cache = cache.with_room(padded + steps)
    hidden, cache = decode(phi, embeds[:, prefix : prefix + padded].at[0, lengths[0] :].set(50), cache, jnp.full(B, prefix))
    mask = np.arange(padded) < lengths[:, None]
    np.testing.assert_allclose(hidden[mask], whole[:, prefix : prefix + padded][mask], atol=1e-5)
    for i in range(steps):
        places = prefix + lengths + i
        step, cache = decode(phi, embeds[np.arange(B), places][:, None], cache, jnp.asarray(places))
        np.testing.assert_allclose(step[:, 0], whole[np.arange(B), places], atol=1e-5)


def test_what_lies_in_slots_that_are_not_filled_yet_is_not_seen(phi: Phi, embeds: jax.Array):
    cache = jax.jit(Phi.prefill)(phi, embeds[:, :4])[1].with_room(6)
    dirty = KVCache(cache.keys.at[:, :, :, 4:].set(7), cache.values.at[:, :, :, 4:].set(7))
    decode = jax.jit(Phi.decode)
    for new in (1, 3):
        clean_step, _ = decode(phi, embeds[:, :new], cache, jnp.array([4, 4]))
        dirty_step, _ = decode(phi, embeds[:, :new], dirty, jnp.array([4, 4]))
        np.testing.assert_array_equal(clean_step, dirty_step)


def test_a_step_writes_the_cache_in_place(phi: Phi, embeds: jax.Array):
    """Beside the cache a loop of decoding needs no memory of its size."""
    slots = 4096

    def decoded(state, embeds, cache):
        def body(i, carry):
            return nnx.merge(definition, state).decode(carry[0], carry[1], jnp.full(B, i))

        return jax.lax.fori_loop(0, 9, body, (embeds, cache))

    definition, state = nnx.split(phi)
    shape = (CONFIG.num_layers, B, CONFIG.num_heads, slots, CONFIG.head_dim)
    cache = KVCache(*[jax.ShapeDtypeStruct(shape, jnp.float32)] * 2)
    compiled = jax.jit(decoded, donate_argnums=2).lower(state, embeds[:, :1], cache).compile()
    one_layer = 2 * 4 * np.prod(shape[1:])
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * one_layer


def test_attention_rows_are_summed_over_heads_and_cut_to_the_window(phi: Phi, embeds: jax.Array):
    rows = jnp.array([[9, 3], [5, 5]])
    whole = jax.jit(lambda m: m(embeds, ALL, query_rows=rows))(phi)
    assert whole.attention_rows.shape == (CONFIG.num_layers, B, 2, T)
    np.testing.assert_allclose(whole.attention_rows.sum(-1), CONFIG.num_heads, rtol=1e-6)
    assert (whole.attention_rows[:, 0, 1, 4:] == 0).all()
    start, length = jnp.array([1, 4]), 3
    window = jax.jit(lambda m, start: m(embeds, ALL, query_rows=rows, key_columns=(start, length)))(phi, start)
    for b in range(B):
        expected = whole.attention_rows[:, b, :, start[b] : start[b] + length]
        np.testing.assert_allclose(window.attention_rows[:, b], expected, rtol=1e-6)


def test_without_query_rows_there_are_none(phi: Phi, embeds: jax.Array):
    output = jax.eval_shape(lambda m: m(embeds, ALL), phi)
    assert output.attention_rows is None
    assert output.hidden_states is None


def test_supervising_attention_costs_next_to_no_memory():
    """At 1024 tokens the [t, t] scores of one head are 4 MiB; the supervised rows may not build them a second time."""
    t, rows, columns = 1024, 4, 729
    config = dataclasses.replace(CONFIG, remat="full")
    definition, state = nnx.split(abstract(config))

    def loss(state, embeds, mask, positions, start, supervise):
        output = nnx.merge(definition, state)(embeds, mask, query_rows=positions if supervise else None, key_columns=(start, columns))
        total = jnp.square(output.hidden).sum()
        return total + jnp.square(output.attention_rows).sum() if supervise else total

    arguments = (
        state,
        jax.ShapeDtypeStruct((1, t, config.hidden_size), jnp.float32),
        jax.ShapeDtypeStruct((1, t), bool),
        jax.ShapeDtypeStruct((1, rows), jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    without, supervised = (
        jax.jit(jax.grad(partial(loss, supervise=supervise))).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
        for supervise in (False, True)
    )
    assert without > 2 * t * t * 4
    assert supervised < 1.05 * without


def test_rematerialisation_changes_no_number(phi: Phi, embeds: jax.Array):
    rows = jnp.array([[9, 3], [5, 5]])

    def loss(params, config):
        output = bind(abstract(config), params)(embeds, ALL, query_rows=rows)
        return jnp.square(output.hidden).sum() + output.attention_rows[..., 0].sum()

    params = module_params(phi)
    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    plain, *others = (run(params, dataclasses.replace(CONFIG, remat=remat)) for remat in REMAT)
    for other in others:
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_remat_policy_keeps_what_it_says(embeds: jax.Array):
    def products(remat: str) -> int:
        module = abstract(dataclasses.replace(CONFIG, remat=remat))
        return str(jax.make_jaxpr(jax.grad(lambda m: m(embeds, ALL).hidden.sum()))(module)).count("dot_general")

    assert products("none") < products("dots") < products("full")


def test_the_program_does_not_grow_with_the_layers(embeds: jax.Array):
    def program(layers: int) -> str:
        config = dataclasses.replace(CONFIG, num_layers=layers)
        return jax.jit(lambda m: m(embeds, ALL).hidden).lower(abstract(config)).as_text()

    assert len(program(32)) < 1.02 * len(program(2))


def test_low_rank_adaptation_starts_at_the_base_and_sits_on_q_and_v(phi: Phi, embeds: jax.Array):
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=2, alpha=6.0, dropout=0.0))
    fresh = flatten(init_params(lambda rngs: Phi(config, rngs=rngs), 0))
    params = flatten(module_params(phi))
    added = fresh.keys() - params.keys()
    assert added == {f"layers/self_attn/{name}/lora_{m}" for name in ("q_proj", "v_proj") for m in "ab"}
    params |= {path: fresh[path] for path in added}
    np.testing.assert_allclose(run(bind(abstract(config), unflatten(params)), embeds, ALL), run(phi, embeds, ALL), atol=1e-5)

    rng = np.random.default_rng(0)
    params |= {path: jnp.asarray(rng.normal(0, 0.3, fresh[path].shape), jnp.float32) for path in added}
    adapted = run(bind(abstract(config), unflatten(params)), embeds, ALL)
    merged = {path: leaf for path, leaf in params.items() if path not in added}
    for name in ("q_proj", "v_proj"):
        path = f"layers/self_attn/{name}"
        merged[f"{path}/kernel"] += params[f"{path}/lora_a"] @ params[f"{path}/lora_b"] * (6.0 / 2)
    np.testing.assert_allclose(adapted, run(bind(abstract(CONFIG), unflatten(merged)), embeds, ALL), atol=1e-4)
    assert np.abs(adapted - run(phi, embeds, ALL)).max() > 0.1


@pytest.mark.parametrize(
    "changes", [{"residual_dropout": 0.5}, {"lora": LoraConfig(rank=2, dropout=0.5)}], ids=["residual dropout", "low-rank dropout"]
)
def test_dropout_acts_only_with_a_key(embeds: jax.Array, changes: dict):
    config = dataclasses.replace(CONFIG, **changes)
    phi = build(config)
    off = run(phi, embeds, ALL)
    on = run(phi, embeds, ALL, jax.random.key(0))
    assert (on != off).any()
    np.testing.assert_array_equal(on, run(phi, embeds, ALL, jax.random.key(0)))
    assert (on != run(phi, embeds, ALL, jax.random.key(1))).any()


def test_a_model_without_dropout_ignores_the_key(phi: Phi, embeds: jax.Array):
    np.testing.assert_allclose(run(phi, embeds, ALL, jax.random.key(0)), run(phi, embeds, ALL), atol=1e-6)


def test_bfloat16_compute_follows_the_input(phi: Phi, embeds: jax.Array):
    out = run(phi, embeds.astype(jnp.bfloat16), ALL)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), run(phi, embeds, ALL), atol=0.1)


def test_input_table_and_head_differ_in_rows(phi: Phi):
    assert phi.embed_tokens.table.shape == (37, 32)
    np.testing.assert_array_equal(phi.embed(jnp.array([[3]])), phi.embed_tokens.table[...][3][None, None])
    assert phi.logits(jnp.zeros((B, 32))).shape == (B, 40)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"num_heads": 5}, "num_heads 5"), ({"rotary_fraction": 0.2}, "rotates 3 of the 16"), ({"remat": "some"}, "remat")],
)
def test_a_configuration_that_cannot_be_is_refused(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **wrong)


def test_published_sizes():
    config = PhiConfig.phi_2(embed_rows=50296, lora=LoraConfig(rank=4))
    assert (config.head_dim, config.rotary_dim) == (80, 32)
    n, d, ff = 32, 2560, 10240
    dense = {f"layers/self_attn/{name}": (d, d) for name in ("q_proj", "k_proj", "v_proj", "dense")}
    dense |= {"layers/mlp/fc1": (d, ff), "layers/mlp/fc2": (ff, d)}
    expected = {"embed_tokens/table": (50296, d), "lm_head/kernel": (d, 51200)}
    expected |= {f"{path}/kernel": (n, *shape) for path, shape in dense.items()}
    expected |= {f"{path}/bias": (n, shape[1]) for path, shape in dense.items()}
    expected |= {f"layers/input_layernorm/{part}": (n, d) for part in ("scale", "bias")}
    expected |= {f"final_layernorm/{part}": (d,) for part in ("scale", "bias")}
    for name in ("q_proj", "v_proj"):
        expected |= {f"layers/self_attn/{name}/lora_a": (n, d, 4), f"layers/self_attn/{name}/lora_b": (n, 4, d)}
    actual = {path: leaf.shape for path, leaf in flatten(module_params(abstract(config))).items()}
    assert actual == expected


def test_the_tiny_preset_fits_together():
    config = PhiConfig.tiny(vocab_size=50)
    phi = abstract(config)
    out = jax.eval_shape(lambda m: m.logits(m(m.embed(jnp.zeros((1, 4), jnp.int32)), jnp.ones((1, 4), bool)).hidden), phi)
    assert out.shape == (1, 4, 50)
