"""The SigLIP tower: which state it returns, what it builds, and its published sizes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_weights import random_module

from segearth_r2_jax.models.binding import abstract_module, flatten, module_params
from segearth_r2_jax.models.projector import Projector
from segearth_r2_jax.models.siglip import Siglip, SiglipConfig

CONFIG = SiglipConfig(hidden_size=24, intermediate_size=40, num_layers=3, num_heads=2, patch_size=4, image_size=14)


def build(config: SiglipConfig) -> Siglip:
    return random_module(lambda rngs: Siglip(config, rngs=rngs))


@jax.jit
def run(siglip: Siglip, pixels: jax.Array) -> jax.Array:
    return siglip(pixels)


@pytest.fixture(scope="module")
def siglip() -> Siglip:
    return build(CONFIG)


@pytest.fixture(scope="module")
def pixels() -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (2, 14, 14, 3), minval=-1, maxval=1)


def _shapes(make) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten(module_params(abstract_module(make))).items()}


def test_pixels_beyond_the_last_whole_patch_change_nothing(siglip: Siglip, pixels: jax.Array):
    out = run(siglip, pixels)
    assert out.shape == (2, CONFIG.num_tokens, 24) == (2, 9, 24)
    np.testing.assert_array_equal(out, run(siglip, pixels.at[:, 12:].set(9).at[:, :, 12:].set(9)))
    assert (out != run(siglip, pixels.at[:, :4, :4].set(0))).any()


def test_tokens_run_row_by_row(pixels: jax.Array):
    """Without a layer a token depends on its own patch only."""
    siglip = build(dataclasses.replace(CONFIG, select_layer=0))
    changed = run(siglip, pixels.at[:, 4:8, 8:12].add(1)) != run(siglip, pixels)
    np.testing.assert_array_equal(jnp.flatnonzero(changed.any((0, 2))), [1 * 3 + 2])


@pytest.mark.parametrize(("select_layer", "built"), [(-1, 3), (-2, 2), (-4, 0), (0, 0), (2, 2), (3, 3)])
def test_only_the_layers_up_to_the_selected_state_are_built(select_layer: int, built: int):
    config = dataclasses.replace(CONFIG, select_layer=select_layer)
    assert config.layers_built == built
    shapes = _shapes(lambda rngs: Siglip(config, rngs=rngs))
    assert {shape[0] for path, shape in shapes.items() if path.startswith("layers/")} == ({built} if built else set())


def test_every_selected_state_is_a_state_of_the_whole_tower(pixels: jax.Array):
    whole = build(dataclasses.replace(CONFIG, select_layer=-1))
    last, inputs = jax.jit(lambda m, x: m(x, output_hidden_states=True))(whole, pixels)
    states = [*inputs, last]
    shorter = build(CONFIG)
    shorter.patch_embedding, shorter.position_embedding = whole.patch_embedding, whole.position_embedding
    definition, state = nnx.split(whole.layers)
    shorter.layers = nnx.merge(definition, jax.tree.map(lambda a: a[:2], state))
    np.testing.assert_allclose(run(shorter, pixels), states[CONFIG.select_layer], atol=1e-6)


def test_bfloat16_compute_follows_the_input(siglip: Siglip, pixels: jax.Array):
    out = run(siglip, pixels.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), run(siglip, pixels), atol=0.1)


def test_another_image_size_is_refused(siglip: Siglip):
    with pytest.raises(ValueError, match="14, 14"):
        siglip(jnp.zeros((1, 16, 16, 3)))


@pytest.mark.parametrize("wrong", [{"num_heads": 5}, {"select_layer": 4}, {"select_layer": -5}, {"image_size": 3}])
def test_a_configuration_that_cannot_be_is_refused(wrong: dict):
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        dataclasses.replace(CONFIG, **wrong)


def test_published_sizes():
    config = SiglipConfig.so400m_384()
    assert (config.grid, config.num_tokens, config.layers_built) == (27, 729, 26)
    n, d, ff = 26, 1152, 4304
    dense = {f"layers/self_attn/{name}": (d, d) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    dense |= {"layers/mlp/fc1": (d, ff), "layers/mlp/fc2": (ff, d)}
    expected = {"patch_embedding/kernel": (14, 14, 3, d), "patch_embedding/bias": (d,), "position_embedding": (729, d)}
    expected |= {f"layers/{norm}/{part}": (n, d) for norm in ("layer_norm1", "layer_norm2") for part in ("scale", "bias")}
    expected |= {f"{path}/kernel": (n, *shape) for path, shape in dense.items()}
    expected |= {f"{path}/bias": (n, shape[1]) for path, shape in dense.items()}
    assert _shapes(lambda rngs: Siglip(config, rngs=rngs)) == expected


def test_published_sizes_of_the_projector():
    assert _shapes(lambda rngs: Projector(1152, 2560, rngs=rngs)) == {
        "fc1/kernel": (1152, 2560),
        "fc1/bias": (2560,),
        "fc2/kernel": (2560, 2560),
        "fc2/bias": (2560,),
    }


def test_the_tiny_preset_fits_together():
    config = SiglipConfig.tiny()
    pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
    out = jax.eval_shape(lambda: Siglip(config, rngs=nnx.Rngs(0))(pixels))
    assert out.shape == (1, config.num_tokens, config.hidden_size)
