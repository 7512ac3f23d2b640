"""SigLIP and Phi against transformers' PyTorch modules with random weights, eager attention, float32."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segearth_r2_jax.checkpoints.key_rules import KeyMap, Rule
from segearth_r2_jax.models.binding import abstract_module, bind, module_params, unflatten
from segearth_r2_jax.models.phi import Phi, PhiConfig
from segearth_r2_jax.models.siglip import Siglip, SiglipConfig

torch = pytest.importorskip("torch", reason="the comparison needs PyTorch, which is a development dependency only")

TOLERANCE = 2e-5

SIGLIP_SIZES = {
    "even": SiglipConfig(
        hidden_size=48, intermediate_size=96, num_layers=3, num_heads=3, patch_size=8, image_size=32, select_layer=-1, final_norm=True
    ),
    # Head width 9 and an image that is no whole number of patches.
    "odd": SiglipConfig(
        hidden_size=36, intermediate_size=50, num_layers=2, num_heads=4, patch_size=7, image_size=40, select_layer=-1, final_norm=True
    ),
}
PHI_SIZES = {
    "even": PhiConfig(vocab_size=90, embed_rows=90, hidden_size=64, intermediate_size=256, num_layers=3, num_heads=2),
    # 6 of 15 elements of a head are rotated.
    "odd": PhiConfig(vocab_size=61, embed_rows=61, hidden_size=60, intermediate_size=100, num_layers=2, num_heads=4),
}


def _load(make: Callable, rules: list[Rule], torch_module: torch.nn.Module):
    """The module that `make` builds, with the weights of `torch_module`."""
    module = abstract_module(make)
    key_map = KeyMap(rules, module_params(module))
    tensors = {name: tensor.numpy() for name, tensor in torch_module.state_dict().items()}
    leaves, _ = key_map.to_parameters({name: tensors[name] for name in key_map.shapes})
    return bind(module, unflatten({path: np.asarray(leaf) for path, leaf in leaves.items()}))


def _randomize(module: torch.nn.Module) -> None:
    """Values in every parameter: transformers starts biases at 0 and scales at 1, where an error could hide."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def _check(actual: jax.Array, expected: torch.Tensor) -> None:
    expected = expected.numpy()
    error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE


@pytest.mark.parametrize("size", SIGLIP_SIZES)
@torch.no_grad()
def test_siglip(size: str):
    from benchmarks.language_peer import siglip_rules, torch_siglip

    config, n = SIGLIP_SIZES[size], SIGLIP_SIZES[size].num_layers
    torch.manual_seed(0)
    theirs = torch_siglip(config, attn_implementation="eager")
    _randomize(theirs)
    rules = siglip_rules(config, theirs)
    ours = _load(lambda rngs: Siglip(config, rngs=rngs), rules, theirs)

    pixels = np.random.default_rng(0).uniform(-1, 1, (2, config.image_size, config.image_size, 3)).astype(np.float32)
    expected = theirs(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    last, inputs = jax.jit(lambda m, x: m(x, output_hidden_states=True))(ours, pixels)
    for i in range(n):
        _check(inputs[i], expected.hidden_states[i])
    _check(last, expected.last_hidden_state)


@pytest.mark.parametrize("size", PHI_SIZES)
@torch.no_grad()
def test_phi(size: str):
    from benchmarks.language_peer import phi_rules, torch_phi

    config, n = PHI_SIZES[size], PHI_SIZES[size].num_layers
    torch.manual_seed(0)
    theirs = torch_phi(config, attn_implementation="eager")
    _randomize(theirs)
    theirs.lm_head.bias.zero_()
    rules = phi_rules(config)
    ours = _load(lambda rngs: Phi(config, rngs=rngs), rules, theirs)

    t, prompt = 13, 9
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, t))
    mask = np.ones((2, t), bool)
    mask[1, 10:] = False
    expected = theirs(
        torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long(), output_hidden_states=True, output_attentions=True
    )
    rows = jnp.array([[3, 12], [0, 9]])

    @jax.jit
    def forward(phi, ids, mask):
        output = phi(phi.embed(ids), mask, query_rows=rows, output_hidden_states=True)
        return output, phi.logits(output.hidden)

    output, logits = forward(ours, ids, mask)
    _check(logits, expected.logits)
    for i in range(n):
        _check(output.hidden_states[i], expected.hidden_states[i])
        attention = expected.attentions[i].sum(1)
        _check(output.attention_rows[i], torch.stack([attention[b, rows[b].tolist()] for b in range(2)]))

    # Without padding, so that both caches hold the same positions.
    their_cache = theirs(torch.from_numpy(ids[:, :prompt]), use_cache=True).past_key_values
    hidden, cache = jax.jit(lambda m, i: m.prefill(m.embed(i)))(ours, ids[:, :prompt])
    cache = cache.with_room(t - prompt)
    step = jax.jit(lambda m, i, cache, positions: m.decode(m.embed(i), cache, positions))
    for position in range(prompt, t):
        token = ids[:, position : position + 1]
        expected_step = theirs(torch.from_numpy(token), past_key_values=their_cache, use_cache=True)
        hidden, cache = step(ours, token, cache, jnp.full(2, position))
        _check(ours.logits(hidden), expected_step.logits)
