"""The mask decoder gives every query its own masks, one prediction before the first layer and one after each."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_module

from segearth_r2_jax.ahead_of_time.program_flops import program_flops
from segearth_r2_jax.models.binding import abstract_module, flatten, module_params
from segearth_r2_jax.models.mask_decoder import MaskDecoder, MaskDecoderConfig, mask_features_at

TINY = MaskDecoderConfig(hidden_dim=16, num_heads=2, num_layers=2, ffn_dim=24, mask_dim=12)
SIZES = ((2, 3), (4, 5), (7, 10))
B, Q, H, W = 2, 3, 14, 19


@pytest.fixture(scope="module")
def decoder() -> MaskDecoder:
    return random_module(lambda rngs: MaskDecoder(TINY, rngs=rngs))


@pytest.fixture(scope="module")
def inputs() -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    """Multi-scale maps, mask features and queries."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(B, *size, 16)) for size in SIZES], rng.normal(size=(B, H, W, 12)), rng.normal(size=(B, Q, 16))
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (tuple(arrays[0]), *arrays[1:]))


_decode = jax.jit(lambda decoder, *inputs: decoder(*inputs))


def test_one_prediction_per_layer_and_one_before(decoder: MaskDecoder, inputs):
    multi_scale, mask_features, queries = inputs
    predictions = _decode(decoder, *inputs)
    assert predictions.shape == (3, B, Q, H, W)
    first = jnp.einsum("bqc,bhwc->bqhw", decoder.mask_embedding(queries), mask_features)
    np.testing.assert_allclose(predictions[0], first, atol=1e-4)
    other_maps = _decode(decoder, tuple(-x for x in multi_scale), mask_features, queries)
    np.testing.assert_array_equal(predictions[0], other_maps[0])
    assert all(np.abs(predictions[i] - other_maps[i]).max() > 1e-3 for i in (1, 2))


def test_the_last_prediction_alone_is_the_same_and_costs_none_of_the_others(decoder: MaskDecoder, inputs):
    def final(decoder, *inputs):
        return decoder.final_masks(*inputs)

    np.testing.assert_allclose(jax.jit(final)(decoder, *inputs), _decode(decoder, *inputs)[-1], atol=1e-4)
    every, last = (program_flops(jax.make_jaxpr(f)(decoder, *inputs), platform="cpu") for f in (_decode, final))
    assert every - last == TINY.num_layers * 2 * B * Q * TINY.mask_dim * H * W


def test_queries_do_not_see_each_other(decoder: MaskDecoder, inputs):
    multi_scale, mask_features, queries = inputs
    together = _decode(decoder, *inputs)
    changed = _decode(decoder, multi_scale, mask_features, queries.at[:, 1].add(1.0))
    np.testing.assert_allclose(changed[:, :, ::2], together[:, :, ::2], atol=1e-5)
    assert np.abs(changed[:, :, 1] - together[:, :, 1]).max() > 1e-2
    reversed_order = _decode(decoder, multi_scale, mask_features, queries[:, ::-1])
    np.testing.assert_allclose(reversed_order[:, :, ::-1], together, atol=1e-5)


def test_a_layer_looks_only_inside_the_predicted_mask(decoder: MaskDecoder, inputs):
    multi_scale, _, queries = inputs
    keys, values = decoder.layers[0].cross_attention.keys_values(*decoder.memory(0, multi_scale[0]))
    layer = jax.jit(decoder.layers[0].__call__)
    mask = jnp.ones((B, Q, 1)), jnp.array([1.0, 1, -1, -1, 1, -1]) * jnp.ones((B, 1, 1))
    inside = mask[0], mask[1].swapaxes(1, 2)
    before = layer(queries, keys, values, *inside)
    np.testing.assert_array_equal(before, layer(queries, keys, values.at[:, 2].add(9.0), *inside))
    assert np.abs(before - layer(queries, keys, values.at[:, 4].add(9.0), *inside)).max() > 1e-2
    # An empty mask would leave it nothing to look at, so then it sees every pixel.
    empty, full = (layer(queries, keys, values, inside[0], jnp.full((B, 6, 1), x)) for x in (-4.0, 4.0))
    np.testing.assert_array_equal(empty, full)


def test_mask_features_at_a_level_are_interpolated_without_smoothing():
    features = jnp.arange(64.0).reshape(1, 8, 8, 1)
    # A quarter of the size: the centre of each 4 x 4 block is the mean of its four inner pixels.
    expected = [np.mean([8 * y + x for y in (r, r + 1) for x in (c, c + 1)]) for r in (1, 5) for c in (1, 5)]
    np.testing.assert_allclose(mask_features_at((2, 2), features)[..., 0], [expected])


@pytest.mark.parametrize("size", [(4, 12), (2, 4), (8, 6), (5, 7), (3, 24)])
def test_mask_features_at_a_level_are_those_of_the_general_interpolation(size: tuple[int, int]):
    features = jnp.asarray(np.random.default_rng(5).normal(size=(2, 16, 24, 3)), jnp.float32)
    expected = jax.image.resize(features, (2, *size, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(mask_features_at(size, features), expected.reshape(2, -1, 3), atol=1e-6)


def test_mask_features_at_a_level_are_rounded_once():
    features = jnp.asarray(np.random.default_rng(6).normal(size=(1, 8, 8, 5)), jnp.bfloat16)
    for size in ((4, 4), (3, 5)):
        low = mask_features_at(size, features)
        assert low.dtype == jnp.bfloat16
        np.testing.assert_array_equal(low, mask_features_at(size, features.astype(jnp.float32)).astype(jnp.bfloat16))


def test_every_parameter_and_every_input_has_a_gradient(decoder: MaskDecoder, inputs):
    def loss(decoder, inputs):
        return jnp.square(decoder(*inputs) + 1).mean()

    grads, input_grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(decoder, inputs)
    maps, *rest = input_grads
    assert [bool(np.abs(x).max() > 0) for x in (*maps, *rest)] == [True, True, False, True, True], "two layers see two levels"
    flat = flatten(module_params(grads))
    # A bias of the keys adds the same to every score of a query, which the softmax removes.
    vanishing = {path for path, gradient in flat.items() if not np.abs(gradient).max() > 1e-7}
    assert vanishing == {f"layers/{i}/cross_attention/k_proj/bias" for i in range(2)}


def test_bfloat16_stays_bfloat16(decoder: MaskDecoder, inputs):
    low = _decode(decoder, *jax.tree.map(lambda x: x.astype(jnp.bfloat16), inputs))
    assert low.dtype == jnp.bfloat16
    full = _decode(decoder, *inputs)[0]
    assert np.abs(low[0].astype(jnp.float32) - full).max() < 0.05 * np.abs(full).max()


@pytest.mark.parametrize("change", [{"num_heads": 3}, {"hidden_dim": 18}])
def test_sizes_that_do_not_fit_are_refused(change: dict):
    with pytest.raises(ValueError, match="hidden_dim"):
        dataclasses.replace(TINY, **change)


def test_the_base_preset_has_the_published_sizes():
    module = abstract_module(lambda rngs: MaskDecoder(MaskDecoderConfig.base(), rngs=rngs))
    shapes = {path: leaf.shape for path, leaf in flatten(module_params(module)).items()}
    # The reference also stores four tables of learned queries, a two-layer projection of [SEG] and the query and key projections of
    # its self-attention.
    dense = 256 * 256 + 256
    not_kept = 256 * (100 + 100 + 101 + 1) + 2 * dense + 9 * 2 * dense
    assert round((sum(map(np.prod, shapes.values())) + not_kept) / 1e6, 2) == 14.62

    expected = {"level_embed": (3, 256), "decoder_norm/scale": (256,), "decoder_norm/bias": (256,)}
    dense_layers = {f"mask_embed/{i}": (256, 256) for i in range(3)}
    for i in range(9):
        dense_layers |= {f"layers/{i}/cross_attention/{name}": (256, 256) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        dense_layers |= {f"layers/{i}/self_attention/{name}": (256, 256) for name in ("v_proj", "out_proj")}
        dense_layers |= {f"layers/{i}/ffn/linear1": (256, 2048), f"layers/{i}/ffn/linear2": (2048, 256)}
        for name in ("cross_attention_norm", "self_attention_norm", "ffn_norm"):
            expected |= {f"layers/{i}/{name}/scale": (256,), f"layers/{i}/{name}/bias": (256,)}
    for path, (inputs, outputs) in dense_layers.items():
        expected |= {f"{path}/kernel": (inputs, outputs), f"{path}/bias": (outputs,)}
    assert shapes == expected
