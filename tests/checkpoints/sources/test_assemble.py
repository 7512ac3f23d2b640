"""The reference's starting point out of its sources: what is taken, renamed, dropped, cut and drawn."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from source_files import (
    HEAD_ROWS,
    QUERIES,
    detectron_names,
    is_language,
    random_weights,
    same,
    tiny_config,
    write_mask2former,
    write_mipha,
)

from segearth_r2_jax.checkpoints.reference_config import config_from_reference
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map
from segearth_r2_jax.checkpoints.sources.assemble import assemble
from segearth_r2_jax.checkpoints.sources.open import open_source
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import Origin
from segearth_r2_jax.checkpoints.sources.tokenizer_files import tokens_with_seg
from segearth_r2_jax.errors import UserError

DRAWN = {
    "SEG_token_projector.weight",
    "SEG_token_projector.bias",
    *(f"predictor.SEG_proj.layers.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")),
    "predictor.SEG_query_embed.weight",
    "predictor.new_query_embed.weight",
    "pixel_decoder.adapter_1.0.bias",
    "pixel_decoder.layer_1.0.bias",
}
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """As the sources are: the language side in half precision, the mask branch in single."""
    single, half = random_weights(tiny_config()), random_weights(tiny_config(), np.float16)
    return {name: half[name] if is_language(name) else single[name] for name in single}


@pytest.fixture
def mipha(tmp_path, weights) -> Path:
    return write_mipha(tmp_path / "mipha", weights, tiny_config())


@pytest.fixture
def pickled(tmp_path, weights) -> Path:
    return write_mask2former(tmp_path / "model_final.pkl", detectron_names(weights))


def test_the_starting_point_is_a_whole_network_bit_for_bit_that_of_its_sources(mipha, pickled, weights):
    start = assemble(mipha, pickled)
    tokens = tokens_with_seg(mipha)[0]
    assert start.tensors.keys() == weights.keys()
    same(start, {name: weight for name, weight in weights.items() if name not in DRAWN | {EMBEDDING}})
    same(start, {EMBEDDING: weights[EMBEDDING][:tokens]})
    config = config_from_reference(start.config, {name: tensor.shape for name, tensor in start.tensors.items()})
    key_map(config).check({name: tensor.shape for name, tensor in start.tensors.items()})
    assert config.phi.embed_rows == tokens < HEAD_ROWS == config.phi.vocab_size


def test_the_origins_say_what_was_done(mipha, pickled, weights):
    start = assemble(mipha, pickled, seed=3)
    model = str(mipha)
    assert start.origins["lm_head.weight"] == Origin(model, "lm_head.weight", "as stored")
    assert start.origins[EMBEDDING].transform == f"first {tokens_with_seg(mipha)[0]} of {HEAD_ROWS} rows"
    norm = Origin(str(pickled), "sem_seg_head.pixel_decoder.adapter_1.norm.bias", "renamed")
    assert start.origins["pixel_decoder.adapter_1.1.bias"] == norm
    assert {name for name, origin in start.origins.items() if origin.transform.startswith("initialised")} == DRAWN
    assert start.origins["SEG_token_projector.bias"].transform == "initialised: uniform within 1/sqrt(96), seed 3"
    assert {origin.key: origin.transform for origin in start.dropped} == {
        "lm_head.bias": "dropped: the reference's language model head has no bias",
        "sem_seg_head.predictor.class_embed.weight": "dropped: the reference has no classifier",
        "sem_seg_head.predictor.class_embed.bias": "dropped: the reference has no classifier",
        "criterion.empty_weight": "dropped: of no part that the reference has",
    }


def test_the_configuration_is_miphas_with_the_mask_modules_switched_on(mipha, pickled):
    start = assemble(mipha, pickled)
    before = json.loads((mipha / "config.json").read_text())
    changed = {name: value for name, value in start.config.items() if name not in before or before[name] != value}
    assert changed == {
        "mask_decode_train": True,
        "swin_type": "base",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "use_mm_proj": True,
        "architectures": ["SegEarthR2"],
        "vocab_size": start.tensors[EMBEDDING].shape[0],
    }
    assert (start.folder, start.tokenizer, start.lora, start.template) == (mipha, mipha, None, "train_phi_v0")


def test_what_no_file_has_begins_as_its_module_in_pytorch_does(mipha, pickled):
    start = assemble(mipha, pickled)
    arrays = {name: np.asarray(start.tensors[name]) for name in DRAWN}
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert arrays["predictor.SEG_query_embed.weight"].shape == (QUERIES + 1, 64)
    assert arrays["predictor.new_query_embed.weight"].shape == (1, 64)
    for name in ("pixel_decoder.adapter_1.0.bias", "pixel_decoder.layer_1.0.bias"):
        assert not arrays[name].any()
    for name, inputs in {"SEG_token_projector": 96, "predictor.SEG_proj.layers.0": 64, "predictor.SEG_proj.layers.1": 64}.items():
        for array in (arrays[f"{name}.weight"], arrays[f"{name}.bias"]):
            assert 0.9 / math.sqrt(inputs) < np.abs(array).max() <= 1 / math.sqrt(inputs)
            np.testing.assert_allclose(array.std(), 1 / math.sqrt(3 * inputs), rtol=0.2)
    np.testing.assert_allclose(arrays["predictor.SEG_query_embed.weight"].std(), 1.0, rtol=0.1)


def test_torch_draws_the_same_distributions(mipha, pickled):
    torch = pytest.importorskip("torch")
    start = assemble(mipha, pickled)
    torch.manual_seed(0)
    linear, table = torch.nn.Linear(96, 64), torch.nn.Embedding(QUERIES + 1, 64)
    for theirs, name in (
        (linear.weight, "SEG_token_projector.weight"),
        (linear.bias, "SEG_token_projector.bias"),
        (table.weight, "predictor.SEG_query_embed.weight"),
    ):
        ours, theirs = np.asarray(start.tensors[name]), theirs.detach().numpy()
        assert ours.shape == theirs.shape
        # Kolmogorov and Smirnov's distance of two samples of one distribution exceeds this once in a thousand times.
        points = np.sort(np.concatenate([ours.ravel(), theirs.ravel()]))
        shares = [np.searchsorted(np.sort(sample.ravel()), points, side="right") / sample.size for sample in (ours, theirs)]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * math.sqrt(2 / ours.size)


def test_the_seed_gives_the_numbers(mipha, pickled):
    def drawn(seed: int) -> dict[str, bytes]:
        tensors = assemble(mipha, pickled, seed=seed).tensors
        return {name: np.asarray(tensors[name]).tobytes() for name in DRAWN}

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert first == again
    assert {name for name in DRAWN if first[name] == other[name]} == {"pixel_decoder.adapter_1.0.bias", "pixel_decoder.layer_1.0.bias"}
    assert len(set(first.values())) == len(DRAWN) - 1  # the two biases have equal sizes here


def test_the_tower_of_a_siglip_file_takes_the_place_of_miphas(tmp_path, mipha, pickled, weights):
    tower = {name: weight + 1 for name, weight in weights.items() if name.startswith("model.vision_tower.")}
    theirs = {name.removeprefix("model.vision_tower."): weight for name, weight in tower.items()}
    theirs["vision_model.embeddings.position_ids"] = np.arange(4)
    theirs |= {"text_model.head.bias": np.ones(3, np.float32), "logit_scale": np.ones((), np.float32)}
    save_file(theirs, tmp_path / "siglip.safetensors")
    start = assemble(mipha, pickled, siglip=tmp_path / "siglip.safetensors")
    same(start, tower)
    dropped = {origin.key for origin in start.dropped if origin.file == str(tmp_path / "siglip.safetensors")}
    assert dropped == {"vision_model.embeddings.position_ids", "text_model.head.bias", "logit_scale"}
    assert sum("takes its place" in origin.transform for origin in start.dropped) == len(tower)


def test_a_siglip_tower_of_other_sizes_is_refused(tmp_path, mipha, pickled, weights):
    theirs = {name.removeprefix("model.vision_tower."): w for name, w in weights.items() if name.startswith("model.vision_tower.")}
    theirs["vision_model.embeddings.position_embedding.weight"] = np.ones((7, 64), np.float32)
    save_file(theirs, tmp_path / "siglip.safetensors")
    with pytest.raises(UserError, match=r"position_embedding.weight has shape \[7, 64\], but .*mipha has \[36, 64\]"):
        assemble(mipha, pickled, siglip=tmp_path / "siglip.safetensors")


def test_transformers_own_siglip_files_are_read(tmp_path, mipha, pickled):
    pytest.importorskip("torch")
    from transformers import SiglipVisionConfig, SiglipVisionModel

    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 96}
    model = SiglipVisionModel(SiglipVisionConfig(**vision, patch_size=16))
    model.save_pretrained(tmp_path / "siglip")
    start = assemble(mipha, pickled, siglip=tmp_path / "siglip")
    theirs = {name.removeprefix("vision_model."): tensor.numpy() for name, tensor in model.state_dict().items()}
    same(start, {f"model.vision_tower.vision_model.{name}": array for name, array in theirs.items() if "position_ids" not in name})


def test_queries_are_taken_as_the_reference_takes_them(tmp_path, mipha, weights):
    theirs = detectron_names(weights)
    theirs["sem_seg_head.predictor.static_query.weight"] = np.full((100, 64), 2.0, np.float32)
    del theirs["sem_seg_head.predictor.query_feat.weight"]
    theirs["sem_seg_head.predictor.query_embed.weight"] = np.arange(200 * 64, dtype=np.float32).reshape(200, 64)
    start = assemble(mipha, write_mask2former(tmp_path / "old.pkl", theirs))
    same(start, {"predictor.query_feat.weight": np.full((100, 64), 2.0, np.float32)})
    same(start, {"predictor.query_embed.weight": np.arange(100 * 64, dtype=np.float32).reshape(100, 64)})
    assert start.origins["predictor.query_embed.weight"].transform == "first 100 of 200 rows"
    assert start.tensors["predictor.SEG_query_embed.weight"].shape == (101, 64)
    theirs["sem_seg_head.predictor.static_query.weight"] = np.ones((200, 64), np.float32)
    with pytest.raises(UserError, match="200 query features, but 100 query positions are taken"):
        assemble(mipha, write_mask2former(tmp_path / "large.pkl", theirs))


def test_miphas_sharded_torch_files_serve_as_well(mipha, pickled, weights):
    torch = pytest.importorskip("torch")
    file = load_file(mipha / "model.safetensors")
    (mipha / "model.safetensors").unlink()
    places = {name: f"pytorch_model-0000{number % 2 + 1}-of-00002.bin" for number, name in enumerate(file)}
    for place in set(places.values()):
        torch.save({name: torch.from_numpy(file[name]) for name in file if places[name] == place}, mipha / place)
    (mipha / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    same(assemble(mipha, pickled), {name: weight for name, weight in weights.items() if is_language(name) and name != EMBEDDING})


def test_a_pth_file_of_torch_serves_as_well(tmp_path, mipha, weights):
    torch = pytest.importorskip("torch")
    model = {name: torch.from_numpy(weight) for name, weight in detectron_names(weights).items()}
    torch.save({"model": model, "iteration": 3}, tmp_path / "model_final.pth")
    same(
        assemble(mipha, tmp_path / "model_final.pth"), {"model.vision_tower_mask.norm3.bias": weights["model.vision_tower_mask.norm3.bias"]}
    )


def test_a_tokenizer_with_more_tokens_than_rows_adds_rows_as_transformers_draws_them(mipha, pickled, weights):
    file = load_file(mipha / "model.safetensors")
    tokens = tokens_with_seg(mipha)[0]
    file[EMBEDDING] = file[EMBEDDING][: tokens - 1]
    save_file(file, mipha / "model.safetensors")
    content = json.loads((mipha / "config.json").read_text())
    (mipha / "config.json").write_text(json.dumps({**content, "initializer_range": 0.5}))
    start = assemble(mipha, pickled)
    table = np.asarray(start.tensors[EMBEDDING])
    assert (table.shape, table.dtype) == ((tokens, 96), np.float16)
    np.testing.assert_array_equal(table[:-1], weights[EMBEDDING][: tokens - 1])
    assert 0.3 < table[-1].astype(np.float32).std() < 0.7
    assert start.origins[EMBEDDING].transform == "as stored, 1 rows added: initialised: normal 0.5, seed 0"
    assert start.config["vocab_size"] == tokens


@pytest.mark.parametrize("value", ["wide", True, None, float("nan"), 10**400])
def test_a_spread_of_embeddings_that_is_no_number_is_refused(mipha, pickled, value):
    content = json.loads((mipha / "config.json").read_text())
    (mipha / "config.json").write_text(json.dumps({**content, "initializer_range": value}))
    with pytest.raises(UserError, match=r"initializer_range is .*; expected a number"):
        assemble(mipha, pickled)


def test_a_head_without_a_row_for_seg_is_refused(mipha, pickled):
    file = load_file(mipha / "model.safetensors")
    file["lm_head.weight"] = file["lm_head.weight"][: tokens_with_seg(mipha)[0] - 1]
    save_file(file, mipha / "model.safetensors")
    with pytest.raises(UserError, match="the network could not say"):
        assemble(mipha, pickled)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sem_seg_head.pixel_decoder.adapter_1.norm.weight", None, "no key sem_seg_head.pixel_decoder.adapter_1.norm.weight"),
        ("sem_seg_head.predictor.query_embed.weight", None, "no table sem_seg_head.predictor.query_embed.weight"),
        ("sem_seg_head.predictor.query_feat.weight", np.ones(64, np.float32), "no table sem_seg_head.predictor.query_feat.weight"),
        ("sem_seg_head.pixel_decoder.layer_1.0.weight", np.ones(2), "duplicate key pixel_decoder.layer_1.0.weight"),
        ("backbone.norm0.bias", "text", "'backbone.norm0.bias' is a str; expected arrays by name"),
    ],
)
def test_a_mask2former_file_without_what_the_reference_takes_is_refused(tmp_path, mipha, weights, key, value, message):
    theirs = detectron_names(weights)
    theirs[key] = value
    if value is None:
        del theirs[key]
    with pytest.raises(UserError, match=message):
        assemble(mipha, write_mask2former(tmp_path / "model.pkl", theirs))


def test_sources_in_each_others_place_are_refused(tmp_path, mipha, pickled):
    with pytest.raises(UserError, match=r"no Mask2Former checkpoint \(it has no sem_seg_head.predictor\)"):
        assemble(mipha, mipha / "model.safetensors")
    with pytest.raises(UserError, match=r"is a folder; expected the \.pkl or .pth file"):
        assemble(mipha, mipha)
    with pytest.raises(UserError, match="no SigLIP checkpoint"):
        assemble(mipha, pickled, siglip=mipha / "model.safetensors")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="holds a list; expected a dict"):
        assemble(mipha, tmp_path / "list.pkl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("lm_head.weight"), "no key lm_head.weight"),
        (lambda file: file.update({"model.surprise": np.ones(1)}), r"unknown key model.surprise \(shape \[1\]\)"),
        (lambda file: file.update({"pixel_decoder.x": np.ones(1)}), "no Mipha checkpoint: it has a mask branch already"),
        (
            lambda file: [file.pop(name) for name in list(file) if "mm_projector" in name],
            "has no image projector; a Mipha checkpoint has it",
        ),
    ],
)
def test_a_mipha_folder_is_taken_whole_or_not_at_all(mipha, pickled, change, message):
    file = load_file(mipha / "model.safetensors")
    change(file)
    save_file(file, mipha / "model.safetensors")
    with pytest.raises(UserError, match=message):
        assemble(mipha, pickled)


def test_a_missing_key_is_named_by_the_table(mipha, pickled):
    file = load_file(mipha / "model.safetensors")
    del file["model.mm_projector.0.weight"]
    save_file(file, mipha / "model.safetensors")
    start = assemble(mipha, pickled)
    with pytest.raises(UserError, match=r"missing key model\.mm_projector\.0\.weight"):
        key_map(tiny_config(embed_rows=start.config["vocab_size"])).check({name: t.shape for name, t in start.tensors.items()})


def test_a_source_alone_says_what_it_lacks(tmp_path, mipha, pickled, weights):
    with pytest.raises(UserError, match=r"a Mask2Former file has the mask branch only, .* --assemble"):
        open_source(pickled)
    with pytest.raises(UserError, match=r"a Mipha checkpoint has no Swin tower, .* --assemble"):
        open_source(mipha)
    tower = {name.removeprefix("model.vision_tower."): w for name, w in weights.items() if name.startswith("model.vision_tower.")}
    save_file(tower, tmp_path / "siglip.safetensors")
    with pytest.raises(UserError, match=r"a SigLIP checkpoint has the image tower only, .* --assemble"):
        open_source(tmp_path / "siglip.safetensors")
    save_file({"conv.weight": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"no checkpoint that is known here; its first key is conv.weight"):
        open_source(tmp_path / "other.safetensors")
