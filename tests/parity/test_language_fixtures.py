"""SigLIP, projector, Phi and the spliced prompt give the numbers of the reference, in float32 and in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from language_reference import Arrays, Language, load_language

from segearth_r2_jax.kernels.attention_rows import attention_rows
from segearth_r2_jax.models.multimodal_prompt import splice
from segearth_r2_jax.models.phi import rotation

IMAGE, REFER = -200, -204


@pytest.fixture(scope="module")
def language(fixtures_dir: Path) -> Language:
    return load_language(fixtures_dir)


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def test_siglip(language: Language, fixtures_dir: Path, precision: str):
    stored = Arrays(fixtures_dir / "siglip.npz", precision)
    pixels = stored["pixel_values"].transpose(0, 2, 3, 1)
    selected, inputs = jax.jit(lambda m, x: m(x, output_hidden_states=True))(language.siglip, pixels)
    stored.check("embeddings", inputs[0])
    stored.check("hidden_1", inputs[1])
    stored.check("selected", selected)


def test_siglip_to_its_end(fixtures_dir: Path, precision: str):
    stored = Arrays(fixtures_dir / "siglip.npz", precision)
    siglip = load_language(fixtures_dir, select_layer=-1, final_norm=True).siglip
    pixels = stored["pixel_values"].transpose(0, 2, 3, 1)
    stored.check("post_layernorm_last", jax.jit(lambda m, x: m(x))(siglip, pixels))


def test_projector(language: Language, fixtures_dir: Path, precision: str):
    stored = Arrays(fixtures_dir / "projector.npz", precision)
    stored.check("y", language.projector(jnp.asarray(stored["x"])))


def test_rotation(language: Language, fixtures_dir: Path, precision: str):
    stored = Arrays(fixtures_dir / "phi.npz", precision)
    config = language.phi.config
    cos, sin = rotation(jnp.arange(len(stored["rope_cos"])), config.rotary_dim, config.rope_theta, jnp.dtype(precision))
    stored.check("rope_cos", jnp.concatenate([cos, cos], axis=-1))
    stored.check("rope_sin", jnp.concatenate([sin, sin], axis=-1))


def test_phi(language: Language, fixtures_dir: Path, precision: str):
    stored = Arrays(fixtures_dir / "phi.npz", precision)
    embeds, mask = jnp.asarray(stored["inputs_embeds"]), jnp.asarray(stored["attention_mask"])
    b, t, _ = embeds.shape
    every_row = jnp.broadcast_to(jnp.arange(t), (b, t))

    @jax.jit
    def forward(phi, embeds, mask):
        output = phi(embeds, mask, query_rows=every_row, output_hidden_states=True)
        return output, phi.logits(output.hidden)

    output, logits = forward(language.phi, embeds, mask)
    layers = language.phi.config.num_layers
    for i in range(layers + 1):
        stored.check(f"hidden_{i}", output.hidden_states[i])
    np.testing.assert_array_equal(output.hidden, output.hidden_states[layers])
    stored.check("logits", logits)

    # Per head, from the queries and keys of each layer; the model itself returns their sum over heads.
    cos_sin = rotation(jnp.arange(t)[None], language.phi.config.rotary_dim, language.phi.config.rope_theta, embeds.dtype)
    definition, state = nnx.split(language.phi.layers)
    for i in range(layers):
        layer = nnx.merge(definition, jax.tree.map(lambda a, i=i: a[i], state))
        q, k, _ = layer.self_attn.project(layer.input_layernorm(output.hidden_states[i]), cos_sin)
        rows = attention_rows(q, k, every_row, mask, scale=q.shape[-1] ** -0.5)
        stored.check(f"attn_{i}", rows)
        np.testing.assert_allclose(output.attention_rows[i], rows.sum(1), atol=1e-5)


def test_phi_with_a_cache(language: Language, fixtures_dir: Path, precision: str):
    stored = Arrays(fixtures_dir / "phi.npz", precision)
    ids = jnp.asarray(stored["ids"])
    n = ids.shape[1]

    @jax.jit
    def forward(phi, ids):
        embeds = phi.embed(ids).astype(precision)
        whole = phi(embeds, jnp.ones(ids.shape, bool)).hidden
        _, cache = phi.prefill(embeds[:, :-1])
        step, _ = phi.decode(embeds[:, -1:], cache.with_room(4), jnp.array([n - 1]))
        return whole, step

    whole, step = forward(language.phi, ids)
    stored.check("ids_last_hidden", whole)
    stored.check("ids_cached_last_step", step)


def _expanded_ids(stored: Arrays, num_image_tokens: int) -> np.ndarray:
    """Each row with its image tokens and refer ids in place of their marks, padded with -1: [b, t]."""
    rows = []
    for i, ids in enumerate(stored["input_ids"]):
        pieces = [
            [IMAGE] * num_image_tokens if token == IMAGE else stored[f"token_refer_id_{i}"] if token == REFER else [token] for token in ids
        ]
        # The collated row's own padding tokens keep their embeddings, as in the reference.
        rows.append(np.concatenate(pieces))
    t = max(map(len, rows))
    return np.stack([np.pad(row, (0, t - len(row)), constant_values=-1) for row in rows])


def test_training_prompt(language: Language, fixtures_dir: Path, precision: str):
    """From the images and ids of a training batch to its states, logits and supervised attention rows."""
    stored = Arrays(fixtures_dir / "train_forward.npz", precision)
    image_tokens = language.siglip.config.num_tokens
    ids = _expanded_ids(stored, image_tokens)
    start = (ids == IMAGE).argmax(1)
    batch, position = np.nonzero(stored["prep_seg_indices"])
    seg_positions = np.zeros((len(ids), max(np.bincount(batch))), np.int32)
    order = np.concatenate([np.arange(n) for n in np.bincount(batch)])
    seg_positions[batch, order] = position

    @jax.jit
    def forward(language, pixels, ids, mask, start, seg_positions):
        words = language.phi.embed(jnp.maximum(ids, 0)).astype(pixels.dtype)
        embeds = splice(words, ids, language.projector(language.siglip(pixels)), start)
        output = language.phi(embeds, mask, query_rows=seg_positions, key_columns=(start, image_tokens))
        states = jnp.take_along_axis(output.hidden, seg_positions[..., None], axis=1)
        return embeds, output, language.phi.logits(output.hidden), states, language.seg_projector(states)

    pixels = stored["images_clip"].transpose(0, 2, 3, 1)
    mask = stored["prep_attention_mask"].astype(bool)
    embeds, output, logits, states, queries = forward(language, pixels, ids, mask, start, seg_positions)
    head, tail = stored["prep_inputs_embeds_head"].shape[1], ids.shape[1] - stored["prep_inputs_embeds_tail"].shape[1]
    stored.check("prep_inputs_embeds_head", embeds[:, :head])
    stored.check("prep_inputs_embeds_tail", embeds[:, tail:])
    stored.check("last_hidden_tail", output.hidden[:, tail:])
    supervised = stored["prep_labels"][:, 1:] != -100
    stored.check("logits_supervised", np.asarray(logits)[:, :-1][supervised])
    stored.check("seg_hidden", np.asarray(states)[batch, order][:, None])
    stored.check("seg_embedding", np.asarray(queries)[batch, order][:, None])
    for i in range(language.phi.config.num_layers):
        stored.check(f"attn_rows_{i}", np.asarray(output.attention_rows[i])[batch, order])
