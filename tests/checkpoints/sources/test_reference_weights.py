"""The reference's own test weights, written as users' files of every kind, come back bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from source_files import detectron_names, is_language, same, write_mask2former

from segearth_r2_jax.checkpoints.reference_config import config_from_reference
from segearth_r2_jax.checkpoints.sources.assemble import assemble
from segearth_r2_jax.checkpoints.sources.open import open_source
from segearth_r2_jax.models.layers import LoraConfig

TRAINED = ("lm_head.", "pixel_decoder.", "predictor.", "SEG_token_projector.")


@pytest.fixture(scope="module")
def weights(fixtures_dir) -> dict[str, np.ndarray]:
    return load_file(fixtures_dir / "weights.safetensors")


@pytest.fixture
def folder(tmp_path, fixtures_dir) -> Path:
    """With the configuration and the tokenizer, and no weights."""
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "files").mkdir(exist_ok=True)
        shutil.copy(fixtures_dir / name, tmp_path / "files" / name)
    return tmp_path / "files"


def test_as_a_single_file(fixtures_dir, weights):
    opened = open_source(fixtures_dir / "weights.safetensors")
    assert opened.tensors.keys() == weights.keys()
    same(opened, weights)
    assert opened.tokenizer == fixtures_dir


@pytest.mark.parametrize("stage", [2, 3])
def test_as_a_deepspeed_run(fixtures_dir, folder, weights, stage):
    pytest.importorskip("torch")
    from zero_files import PEFT, Run, write_zero

    trained = {PEFT + name: weight for name, weight in weights.items() if name.startswith(TRAINED)}
    index = {PEFT + name: weight for name, weight in weights.items() if weight.dtype == np.int64}
    frozen = {PEFT + name: weight for name, weight in weights.items() if PEFT + name not in trained | index}
    write_zero(folder, Run([trained], frozen, index), stage=stage, ranks=3)
    opened = open_source(folder)
    assert opened.tensors.keys() == weights.keys()
    same(opened, weights)
    shapes = {name: weight.shape for name, weight in weights.items()}
    assert config_from_reference(opened.config, shapes) == config_from_reference(
        json.loads((fixtures_dir / "config.json").read_text()), shapes
    )


def test_as_adapters_over_a_base(fixtures_dir, folder, weights):
    rng = np.random.default_rng(0)
    adapters = {}
    for i in range(3):
        for name in ("q_proj", "v_proj"):
            layer = f"model.layers.{i}.self_attn.{name}"
            adapters[f"{layer}.lora_A.weight"] = rng.standard_normal((2, 64), np.float32)
            adapters[f"{layer}.lora_B.weight"] = rng.standard_normal((64, 2), np.float32)
    save_file({f"base_model.model.{name}": weight for name, weight in adapters.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "lora_dropout": 0.0}))
    opened = open_source(folder, base=fixtures_dir / "weights.safetensors")
    assert opened.tensors.keys() == weights.keys() | adapters.keys()
    same(opened, weights | adapters)
    assert opened.lora == LoraConfig(rank=2, alpha=3.0, dropout=0.0)


def test_as_the_sources_of_the_starting_point(tmp_path, folder, weights):
    save_file({name: weight for name, weight in weights.items() if is_language(name)}, folder / "model.safetensors")
    start = assemble(folder, write_mask2former(tmp_path / "model.pkl", detectron_names(weights)))
    assert start.tensors.keys() == weights.keys()
    drawn = {name for name, origin in start.origins.items() if not origin.key}
    assert len(drawn) == 10
    table = {"model.embed_tokens.weight": weights["model.embed_tokens.weight"][:421]}  # its tokenizer has 421 tokens
    same(start, {name: weight for name, weight in weights.items() if name not in drawn} | table)
    assert {name: start.tensors[name].shape for name in drawn} == {name: weights[name].shape for name in drawn}
