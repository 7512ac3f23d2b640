"""The pixel decoder turns four feature maps of any size into mask features at stride 4 and three maps of one width."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_module

from segearth_r2_jax.models.binding import abstract_module, bind, flatten, init_params, module_params
from segearth_r2_jax.models.pixel_decoder import PixelDecoder, PixelDecoderConfig, reference_points

TINY = PixelDecoderConfig(
    in_channels=(4, 6, 8, 10), conv_dim=32, mask_dim=12, num_layers=2, num_heads=2, num_points=3, ffn_dim=16, remat="none"
)


@pytest.fixture(scope="module")
def decoder() -> PixelDecoder:
    return random_module(lambda rngs: PixelDecoder(TINY, rngs=rngs))


_forward = jax.jit(lambda decoder, features: decoder(features))


def _features(*sizes: tuple[int, int]) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 4)
    return tuple(jax.random.normal(key, (2, *size, c)) for key, size, c in zip(keys, sizes, TINY.in_channels, strict=True))


# Odd sizes: the step up from 7 x 3 to 13 x 5 is no doubling.
FEATURES = _features((13, 5), (7, 3), (4, 2), (2, 1))


def test_outputs_have_the_sizes_of_their_levels(decoder: PixelDecoder):
    output = _forward(decoder, FEATURES)
    assert output.mask_features.shape == (2, 13, 5, 12)
    assert [x.shape for x in output.multi_scale] == [(2, 2, 1, 32), (2, 4, 2, 32), (2, 7, 3, 32)]


def test_reference_points_are_pixel_centres():
    points = reference_points(((1, 2), (2, 2)), "float32")
    np.testing.assert_allclose(points, [[0.25, 0.5], [0.75, 0.5], [0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])


def test_at_the_start_every_head_looks_in_a_direction_of_its_own():
    config = dataclasses.replace(TINY, num_heads=8, num_layers=1)
    params = flatten(init_params(lambda rngs: PixelDecoder(config, rngs=rngs), seed=0))
    np.testing.assert_array_equal(params["layers/self_attn/sampling_offsets/kernel"], 0)
    offsets = params["layers/self_attn/sampling_offsets/bias"].reshape(8, 3, 3, 2)
    # Right, down (y grows downwards), and the diagonal between them, 1 to 3 pixels away on each level.
    for level in range(3):
        np.testing.assert_allclose(offsets[0, level], [[1, 0], [2, 0], [3, 0]], atol=1e-6)
        np.testing.assert_allclose(offsets[1, level], [[1, 1], [2, 2], [3, 3]], atol=1e-6)
        np.testing.assert_allclose(offsets[2, level], [[0, 1], [0, 2], [0, 3]], atol=1e-6)
    np.testing.assert_array_equal(params["layers/self_attn/attention_weights/kernel"], 0)
    np.testing.assert_array_equal(params["layers/self_attn/attention_weights/bias"], 0)


def test_every_parameter_and_every_map_has_a_gradient(decoder: PixelDecoder):
    """With layers recomputed in the backward pass, as the full-size preset does."""
    config = dataclasses.replace(TINY, remat="full")
    recomputing = bind(abstract_module(lambda rngs: PixelDecoder(config, rngs=rngs)), module_params(decoder))

    def loss(decoder: PixelDecoder, features: tuple[jax.Array, ...]) -> jax.Array:
        return sum(jnp.square(x + 1).mean() for x in jax.tree.leaves(decoder(features)))

    gradients, feature_gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(recomputing, FEATURES)
    assert all(np.abs(x).max() > 0 for x in feature_gradients)
    flat = flatten(module_params(gradients))
    assert [path for path, gradient in flat.items() if not np.abs(gradient).max() > 0] == []


def test_recomputation_does_not_sample_again(decoder: PixelDecoder):
    def sampling_loops(remat: str) -> int:
        graph = bind(abstract_module(lambda rngs: PixelDecoder(dataclasses.replace(TINY, remat=remat), rngs=rngs)), module_params(decoder))
        # Both levels of the loops over heads and parts of the queries, in the form for TPUs.
        program = jax.jit(jax.grad(lambda features: graph(features).mask_features.sum())).trace(FEATURES)
        return str(program.lower(lowering_platforms=("tpu",)).as_text()).count("stablehlo.while")

    assert sampling_loops("full") == sampling_loops("none") > 2


def test_bfloat16_stays_bfloat16(decoder: PixelDecoder):
    low = _forward(decoder, tuple(x.astype(jnp.bfloat16) for x in FEATURES))
    full = _forward(decoder, FEATURES)
    for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(full), strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.abs(a.astype(jnp.float32) - b).max() < 0.05 * np.abs(b).max()


@pytest.mark.parametrize("change", [{"in_channels": (1, 2, 3)}, {"conv_dim": 48}, {"num_heads": 5}])
def test_sizes_that_do_not_fit_are_refused(change: dict):
    with pytest.raises(ValueError, match=r"in_channels|conv_dim"):
        dataclasses.replace(TINY, **change)


def test_the_base_preset_has_the_published_sizes():
    module = abstract_module(lambda rngs: PixelDecoder(PixelDecoderConfig.base(), rngs=rngs))
    shapes = {path: leaf.shape for path, leaf in flatten(module_params(module)).items()}
    assert round(sum(map(np.prod, shapes.values())) / 1e6, 2) == 5.54
    expected = {"level_embed": (3, 256), "mask_features/kernel": (1, 1, 256, 256), "mask_features/bias": (256,)}
    convolutions = {"lateral": (1, 1, 128, 256), "output": (3, 3, 256, 256)}
    convolutions |= {f"input_proj/{i}": (1, 1, channels, 256) for i, channels in enumerate((1024, 512, 256))}
    for path, shape in convolutions.items():
        expected |= {f"{path}/conv/kernel": shape, f"{path}/conv/bias": (256,), f"{path}/norm/scale": (256,), f"{path}/norm/bias": (256,)}
    dense = {"sampling_offsets": (256, 192), "attention_weights": (256, 96), "value_proj": (256, 256), "output_proj": (256, 256)}
    dense = {f"self_attn/{name}": shape for name, shape in dense.items()} | {"linear1": (256, 1024), "linear2": (1024, 256)}
    for name, (inputs, outputs) in dense.items():
        expected |= {f"layers/{name}/kernel": (6, inputs, outputs), f"layers/{name}/bias": (6, outputs)}
    for name in ("norm1", "norm2"):
        expected |= {f"layers/{name}/scale": (6, 256), f"layers/{name}/bias": (6, 256)}
    assert shapes == expected
