"""PEFT's folders over the weights that they were trained on: every spelling of the names, and everything that does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from source_files import (
    HEAD_ROWS,
    is_language,
    random_weights,
    same,
    tiny_config,
    write_merged,
    write_mipha,
    write_tokenizer_without_seg,
)

from segearth_r2_jax.checkpoints.reference_config import config_from_reference
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map
from segearth_r2_jax.checkpoints.sources.open import is_source, open_source
from segearth_r2_jax.checkpoints.sources.peft_names import plain_name
from segearth_r2_jax.checkpoints.sources.tokenizer_files import write_tokenizer
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.layers import LoraConfig

PEFT = "base_model.model."
TRAINED = ("lm_head.", "pixel_decoder.", "predictor.", "SEG_token_projector.")


@pytest.fixture(scope="module")
def before() -> dict[str, np.ndarray]:
    return random_weights(tiny_config(), np.float16)


@pytest.fixture(scope="module")
def after(before) -> dict[str, np.ndarray]:
    """What training leaves: adapters, both decoders, the head and the projector changed, the rest as it was."""
    trained = random_weights(tiny_config(rank=4), seed=1)
    return {name: weight if ".lora_" in name or name.startswith(TRAINED) else before[name] for name, weight in trained.items()}


@pytest.fixture
def base(tmp_path, before) -> Path:
    return write_merged(tmp_path / "base", before, tiny_config())


def write_adapters(folder: Path, after: dict[str, np.ndarray], settings: dict | None = None) -> Path:
    folder.mkdir()
    save_file({PEFT + name: weight for name, weight in after.items() if ".lora_" in name}, folder / "adapter_model.safetensors")
    trained = {PEFT + name: weight for name, weight in after.items() if name.startswith(TRAINED)}
    save_file(trained, folder / "non_lora_trainables.safetensors")
    content = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none", "fan_in_fan_out": False}
    (folder / "adapter_config.json").write_text(json.dumps({**content, "target_modules": ["q_proj"], **(settings or {})}))
    return folder


@pytest.fixture
def adapters(tmp_path, after) -> Path:
    return write_adapters(tmp_path / "adapters", after)


def edit(file: Path, change) -> None:
    stored = load_file(file)
    change(stored)
    save_file(stored, file)


def test_adapters_over_their_base_are_the_whole_network(base, adapters, after):
    opened = open_source(adapters, base=base)
    assert opened.tensors.keys() == after.keys()
    same(opened, after)
    assert opened.lora == LoraConfig(rank=4, alpha=16.0, dropout=0.05)
    assert opened.kind == "PEFT adapters"
    assert key_map(tiny_config(rank=4)).check({name: tensor.shape for name, tensor in opened.tensors.items()}) is None
    assert opened.origins["model.layers.0.self_attn.q_proj.weight"].file == str(base)
    origin = opened.origins["model.layers.1.self_attn.v_proj.lora_B.weight"]
    assert (origin.file, origin.transform) == (str(adapters / "adapter_model.safetensors"), "renamed")
    assert origin.key == PEFT + "model.layers.1.self_attn.v_proj.lora_B.weight"
    assert {o.transform for o in opened.dropped} == {f"dropped: taken from {adapters / 'non_lora_trainables.safetensors'}"}
    assert {o.key for o in opened.dropped} == {name for name in after if name.startswith(TRAINED)}
    shapes = {name: tensor.shape for name, tensor in opened.tensors.items()}
    assert config_from_reference(opened.config, shapes).phi == tiny_config().phi


def test_torch_files_of_a_training_script_are_read(tmp_path, base, after):
    torch = pytest.importorskip("torch")
    folder = write_adapters(tmp_path / "scripted", after)
    for stem in ("adapter_model", "non_lora_trainables"):
        stored = load_file(folder / f"{stem}.safetensors")
        torch.save({name: torch.from_numpy(weight) for name, weight in stored.items()}, folder / f"{stem}.bin")
        (folder / f"{stem}.safetensors").unlink()
    assert is_source(folder)
    same(open_source(folder, base=base), after)


def test_adapters_alone_leave_the_rest_to_the_base(tmp_path, base, before, after):
    folder = write_adapters(tmp_path / "alone", after)
    (folder / "non_lora_trainables.safetensors").unlink()
    opened = open_source(folder, base=base)
    same(opened, {**before, **{name: weight for name, weight in after.items() if ".lora_" in name}})
    assert opened.dropped == ()


def test_a_mipha_base_serves_if_the_run_saved_the_mask_branch(tmp_path, before, after):
    mipha = write_mipha(tmp_path / "mipha", before, tiny_config())
    folder = write_adapters(tmp_path / "run", after)
    with pytest.raises(UserError, match=r"run and .*mipha have no Swin tower; an assembled checkpoint has it \(--assemble\)"):
        open_source(folder, base=mipha)
    edit(
        folder / "non_lora_trainables.safetensors",
        lambda stored: stored.update({PEFT + name: weight for name, weight in after.items() if not is_language(name)}),
    )
    opened = open_source(folder, base=mipha)
    same(opened, after)
    assert opened.config["mask_decode_train"] is True
    assert "lm_head.bias" in {origin.key for origin in opened.dropped}


@pytest.mark.parametrize(
    ("stored", "plain"),
    [
        ("lm_head.weight", "lm_head.weight"),
        ("module.model.layers.0.mlp.fc1.bias", "model.layers.0.mlp.fc1.bias"),
        ("module.base_model.model.lm_head.weight", "lm_head.weight"),
        ("base_model.model.model.layers.3.self_attn.q_proj.base_layer.weight", "model.layers.3.self_attn.q_proj.weight"),
        ("base_model.model.model.layers.3.self_attn.q_proj.base_layer.bias", "model.layers.3.self_attn.q_proj.bias"),
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight", "model.layers.3.self_attn.q_proj.lora_A.weight"),
        ("base_model.model.model.layers.3.self_attn.v_proj.lora_B.weight", "model.layers.3.self_attn.v_proj.lora_B.weight"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight"),
        ("base_model.model.predictor.modules_to_save.default.mask_embed.layers.0.bias", "predictor.mask_embed.layers.0.bias"),
    ],
)
def test_every_spelling_has_one_plain_name(stored, plain):
    assert plain_name(stored) == plain_name(plain) == plain


def test_what_adapter_config_says_is_honoured_or_refused(tmp_path, base, after):
    sharper = write_adapters(tmp_path / "rslora", after, {"use_rslora": True, "lora_dropout": 0})
    assert open_source(sharper, base=base).lora == LoraConfig(rank=4, alpha=32.0, dropout=0.0)
    for n, (settings, message) in enumerate(
        [
            ({"r": 8}, "r is 8, but its adapters have rank 4"),
            ({"use_dora": True}, "use_dora is True; this network computes False only"),
            ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
            ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
            ({"bias": "lora_only"}, "bias is 'lora_only'"),
            ({"lora_alpha": "much"}, "lora_alpha is 'much'; expected a number"),
            ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
            ({"lora_alpha": float("nan")}, "lora_alpha is nan; expected a number"),
        ]
    ):
        with pytest.raises(UserError, match=message):
            open_source(write_adapters(tmp_path / f"refused_{n}", after, settings), base=base)


def test_rank_and_alpha_that_are_given_must_agree(tmp_path, base, adapters, after):
    assert open_source(adapters, base=base, lora_alpha=16, lora_rank=4).lora == LoraConfig(rank=4, alpha=16.0)
    with pytest.raises(UserError, match="--lora-rank is 8, but its adapters have rank 4"):
        open_source(adapters, base=base, lora_rank=8)
    with pytest.raises(UserError, match="lora_alpha is 16, but --lora-alpha 8 was given"):
        open_source(adapters, base=base, lora_alpha=8)
    silent = write_adapters(tmp_path / "silent", after, {"lora_alpha": None})
    with pytest.raises(UserError, match=r"give --lora-alpha \(the reference trains with 16\)"):
        open_source(silent, base=base)
    assert open_source(silent, base=base, lora_alpha=8).lora == LoraConfig(rank=4, alpha=8.0)


Q0 = PEFT + "model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop(Q0 + "lora_B.weight"),
            r"no model.layers.0.self_attn.q_proj.lora_B.weight; expected adapters of q_proj and v_proj",
        ),
        (lambda s: s.update({Q0 + "lora_A.weight": np.ones((4, 7))}), r"q_proj.lora_A.weight has shape \[4, 7\], expected \[4, 96\]"),
        (lambda s: s.update({Q0 + "lora_B.weight": np.ones((96, 3))}), r"q_proj.lora_B.weight has shape \[96, 3\], expected \[96, 4\]"),
        (
            lambda s: s.update({Q0.replace("q_", "k_") + "lora_A.weight": np.ones(4)}),
            "this network adapts q_proj and v_proj of the language",
        ),
        (lambda s: s.update({Q0.replace(".0.", ".9.") + "lora_A.weight": np.ones(4)}), "the base has no such layer"),
        (lambda s: s.update({Q0 + "lora_magnitude_vector": np.ones(4)}), "by plain LoRA only; merge it with peft first"),
        (lambda s: s.update({Q0 + "lora_A.default.weight": np.ones(4)}), "duplicate key model.layers.0.self_attn.q_proj.lora_A.weight"),
        (lambda s: s.clear() or s.update({"x": np.ones(1)}), "holds no lora_A and lora_B"),
    ],
)
def test_adapters_that_do_not_fit_are_named(base, adapters, change, message):
    edit(adapters / "adapter_model.safetensors", change)
    with pytest.raises(UserError, match=message):
        open_source(adapters, base=base)


def test_trained_tensors_that_do_not_fit_the_base_are_named(base, adapters):
    edit(adapters / "non_lora_trainables.safetensors", lambda stored: stored.update({PEFT + "lm_head.weight": np.ones((3, 96))}))
    with pytest.raises(UserError, match=rf"lm_head.weight has shape \[3, 96\], but lm_head.weight of the base has \[{HEAD_ROWS}, 96\]"):
        open_source(adapters, base=base)


def test_a_run_whose_table_shrank_with_the_tokenizer_brings_its_own_table(tmp_path, base, adapters):
    write_tokenizer_without_seg(tmp_path / "tokenizer")
    write_tokenizer(tmp_path / "tokenizer", adapters)
    rows = np.full((300, 96), 0.5, np.float32)
    edit(adapters / "adapter_model.safetensors", lambda stored: stored.update({PEFT + "model.embed_tokens.weight": rows}))
    opened = open_source(adapters, base=base)
    same(opened, {"model.embed_tokens.weight": rows})
    assert (opened.config["vocab_size"], opened.tokenizer) == (300, adapters)


def test_the_copy_that_peft_keeps_of_a_module_trained_in_full_is_dropped(base, adapters):
    old, new = np.zeros((HEAD_ROWS, 96), np.float32), np.ones((HEAD_ROWS, 96), np.float32)

    def change(stored):
        del stored[PEFT + "lm_head.weight"]
        stored[PEFT + "lm_head.original_module.weight"] = old
        stored[PEFT + "lm_head.modules_to_save.default.weight"] = new

    edit(adapters / "non_lora_trainables.safetensors", change)
    opened = open_source(adapters, base=base)
    same(opened, {"lm_head.weight": new})
    assert "dropped: the copy that was trained is taken" in {origin.transform for origin in opened.dropped}


def test_what_is_given_must_make_sense(tmp_path, base, adapters):
    with pytest.raises(UserError, match="holds adapters only; give the weights that they were trained on with --base"):
        open_source(adapters)
    with pytest.raises(UserError, match="--base: only for adapters and DeepSpeed checkpoints"):
        open_source(base, base=base)
    with pytest.raises(UserError, match="--lora-alpha, --lora-rank: only for adapters"):
        open_source(base, lora_alpha=16)
    with pytest.raises(UserError, match="absent: no such file or folder"):
        open_source(adapters, base=tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds adapters; expected them in a folder with their adapter_config.json"):
        open_source(adapters / "adapter_model.safetensors")
    (adapters / "non_lora_trainables.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"non_lora_trainables.bin and non_lora_trainables.safetensors; expected one of them"):
        open_source(adapters, base=base)
    (adapters / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has adapter_config.json, but no adapter_model.safetensors and no adapter_model.bin"):
        open_source(adapters, base=base)
