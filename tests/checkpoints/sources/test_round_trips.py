"""From every kind of file that users have into a checkpoint folder and back out: every tensor bit for bit, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from source_files import (
    Weights,
    detectron_names,
    is_language,
    random_weights,
    tiny_config,
    write_mask2former,
    write_merged,
    write_mipha,
)

from segearth_r2_jax.checkpoints import manager
from segearth_r2_jax.checkpoints.conversion_report import DROPPED
from segearth_r2_jax.checkpoints.export import Export
from segearth_r2_jax.checkpoints.reference_import import REPORT, Import
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map
from segearth_r2_jax.checkpoints.sources.assemble import assemble
from segearth_r2_jax.checkpoints.sources.open import open_source
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import ReferenceCheckpoint
from segearth_r2_jax.checkpoints.sources.unmerge import unmerged
from segearth_r2_jax.checkpoints.torch_files.safetensors_writer import INDEX, SINGLE, write_safetensors
from segearth_r2_jax.checkpoints.torch_files.state_dict import BIN, BIN_INDEX
from segearth_r2_jax.checkpoints.torch_files.torch_writer import write_torch_file
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import flatten
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config

TRAINED = ("lm_head.", "pixel_decoder.", "predictor.", "SEG_token_projector.")


def bits(tensors) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}


def goes_in(opened: ReferenceCheckpoint, config: SegEarthR2Config, target: Path) -> None:
    """The checkpoint folder holds what the source does, every bit of it, and says so."""
    weights = {name: np.array(tensor) for name, tensor in opened.tensors.items()}
    incoming = Import(opened)
    planned = incoming.report()
    report = incoming.write(target)
    leaves, unused = key_map(config).to_parameters(weights)
    assert bits(flatten(manager.load_parameters(target))) == bits(leaves)
    assert bits(manager.load_unused(target)) == bits(unused)
    assert manager.read_model_config(target).phi.lora == opened.lora
    assert {entry.key for entry in report.entries if entry.goes != DROPPED} == weights.keys()
    assert all(entry.crc32c for entry in report.entries if entry.goes != DROPPED)
    assert not any(entry.crc32c for entry in planned.entries)
    assert json.loads((target / REPORT).read_text())["bytes"] == report.bytes
    assert sum(report.bytes.values()) == sum(weight.nbytes for weight in weights.values())


def write_form(folder: Path, weights: Weights, config: SegEarthR2Config, form: str) -> Path:
    """A merged checkpoint in one of the forms in which transformers stores weights."""
    write_merged(folder, weights, config)
    if form == SINGLE:
        return folder
    (folder / SINGLE).unlink()
    layout = {name: (weight.shape, weight.dtype) for name, weight in weights.items()}
    if form == INDEX:
        write_safetensors(folder, weights.items(), layout, max_shard_bytes=1_000_000)
    elif form == BIN:
        write_torch_file(folder / BIN, weights.items(), layout)
    else:
        names = list(weights)
        shards = {"pytorch_model-00001-of-00002.bin": names[:200], "pytorch_model-00002-of-00002.bin": names[200:]}
        for file, these in shards.items():
            write_torch_file(folder / file, ((name, weights[name]) for name in these), {name: layout[name] for name in these})
        (folder / BIN_INDEX).write_text(json.dumps({"weight_map": {name: file for file, these in shards.items() for name in these}}))
    return folder


@pytest.mark.parametrize(
    ("form", "dtype", "embed_rows"),
    [
        (SINGLE, "float16", 400),
        (INDEX, "float16", 333),
        (BIN, "bfloat16", 400),
        (BIN_INDEX, "float16", 333),
        (SINGLE, "float32", 333),
    ],
)
def test_merged(tmp_path, form, dtype, embed_rows):
    """Both sizes of the embedding table: padded as the head, and as many rows as there are tokens."""
    config = tiny_config(embed_rows=embed_rows)
    weights = {name: weight if weight.dtype == np.int64 else weight.astype(dtype) for name, weight in random_weights(config).items()}
    goes_in(open_source(write_form(tmp_path / "source", weights, config, form)), config, tmp_path / "checkpoint")
    Export(tmp_path / "checkpoint").write(tmp_path / "back", max_shard_bytes=2_000_000 if form == INDEX else 5e9)
    back = open_source(tmp_path / "back")
    assert (tmp_path / "back" / INDEX).is_file() == (form == INDEX)
    assert bits(back.tensors) == bits(weights)
    assert back.config["vocab_size"] == embed_rows


@pytest.fixture
def assembled(tmp_path) -> ReferenceCheckpoint:
    single, half = random_weights(tiny_config()), random_weights(tiny_config(), np.float16)
    weights = {name: half[name] if is_language(name) else single[name] for name in single}
    mipha = write_mipha(tmp_path / "mipha", weights, tiny_config())
    return assemble(mipha, write_mask2former(tmp_path / "model_final.pkl", detectron_names(weights)))


def test_assembled(tmp_path, assembled):
    tokens = assembled.tensors["model.embed_tokens.weight"].shape[0]
    goes_in(assembled, tiny_config(embed_rows=tokens), tmp_path / "checkpoint")
    Export(tmp_path / "checkpoint").write(tmp_path / "back")
    assert bits(open_source(tmp_path / "back").tensors) == bits(assembled.tensors)
    entries = {entry["key"]: entry for entry in json.loads((tmp_path / "checkpoint" / REPORT).read_text())["entries"]}
    assert entries["lm_head.bias"]["goes"] == ["dropped"]
    assert entries["SEG_token_projector.weight"]["file"] == ""


def trained() -> Weights:
    """What training leaves: half precision, and in single precision what was trained."""
    weights = random_weights(tiny_config(rank=4))
    return {
        name: weight if ".lora_" in name or name.startswith(TRAINED) or weight.dtype == np.int64 else weight.astype(np.float16)
        for name, weight in weights.items()
    }


def test_adapters(tmp_path):
    """Out as adapters and in again over their base."""
    after = trained()
    before = {name: weight.astype(np.float16) if weight.dtype == np.float32 else weight for name, weight in after.items()}
    base = write_merged(tmp_path / "base", {name: weight for name, weight in before.items() if ".lora_" not in name}, tiny_config())
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    for file, chosen in (
        ("adapter_model.bin", [name for name in after if ".lora_" in name]),
        ("non_lora_trainables.bin", [name for name in after if name.startswith(TRAINED)]),
    ):
        tensors = {f"base_model.model.{name}": after[name] for name in chosen}
        write_torch_file(adapters / file, tensors.items(), {name: (weight.shape, weight.dtype) for name, weight in tensors.items()})
    (adapters / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16, "lora_dropout": 0.05}))
    goes_in(open_source(adapters, base=base), tiny_config(rank=4), tmp_path / "checkpoint")
    Export(tmp_path / "checkpoint", form="adapter").write(tmp_path / "back")
    back = open_source(tmp_path / "back", base=base)
    assert bits(back.tensors) == bits(after)
    assert back.lora == manager.read_model_config(tmp_path / "checkpoint").phi.lora


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_merged_adapters_are_taken_out_again(tmp_path, dtype):
    """In float32, float16 weights come back bit for bit; float32 ones to within the rounding of what was merged."""
    weights = {
        name: (weight / 40).astype(weight.dtype) if "_proj.weight" in name or ".lora_" in name else weight
        for name, weight in trained().items()
    }
    plain = {name: weight for name, weight in weights.items() if ".lora_" not in name}
    if dtype == "float32":
        rng = np.random.default_rng(1)
        plain = {
            name: rng.standard_normal(weight.shape, np.float32) / 40 if "_proj.weight" in name else weight for name, weight in plain.items()
        }
    base = write_merged(tmp_path / "base", plain, tiny_config())
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    own = {f"base_model.model.{name}": weight for name, weight in weights.items() if ".lora_" in name}
    write_torch_file(adapters / "adapter_model.bin", own.items(), {name: (weight.shape, weight.dtype) for name, weight in own.items()})
    (adapters / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16}))
    Import(open_source(adapters, base=base)).write(tmp_path / "checkpoint")
    Export(tmp_path / "checkpoint", dtype="float32").write(tmp_path / "merged")
    opened = unmerged(open_source(tmp_path / "merged"), adapters)
    assert opened.lora == LoraConfig(rank=4, alpha=16.0)
    for name, weight in plain.items():
        back, merged = np.asarray(opened.tensors[name]), np.asarray(open_source(tmp_path / "merged").tensors[name])
        if dtype == "float16":
            np.testing.assert_array_equal(back.astype(weight.dtype), weight)
        elif not name.endswith(("self_attn.q_proj.weight", "self_attn.v_proj.weight")) or "vision_tower" in name:
            np.testing.assert_array_equal(back, weight)
        else:
            assert not np.array_equal(merged, weight)
            assert (np.abs(back - weight) <= (np.spacing(np.abs(merged)) + np.spacing(np.abs(weight))) / 2).all()
    assert "less its adapter (times 4)" in opened.origins["model.layers.0.self_attn.q_proj.weight"].transform
    with pytest.raises(UserError, match="there is nothing to take out"):
        unmerged(opened, adapters)
    with pytest.raises(UserError, match=r"base: no adapter_config.json; expected the folder"):
        unmerged(open_source(base), base)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(tmp_path, stage):
    pytest.importorskip("torch")
    from zero_files import Run, write_zero

    after, peft = trained(), "base_model.model."
    named = {name: peft + (name.replace(".weight", ".default.weight") if ".lora_" in name else name) for name in after}
    moving = {named[name]: weight for name, weight in after.items() if ".lora_" in name or name.startswith(TRAINED)}
    buffers = {named[name]: weight for name, weight in after.items() if weight.dtype == np.int64}
    frozen = {named[name]: weight for name, weight in after.items() if named[name] not in moving and named[name] not in buffers}
    folder = tmp_path / "run"
    write_zero(folder, Run([moving], frozen, buffers), stage=stage, ranks=3)
    shutil.copyfile(write_merged(tmp_path / "merged", {}, tiny_config()) / "config.json", folder / "config.json")
    opened = open_source(folder, lora_alpha=16)
    goes_in(opened, tiny_config(rank=4), tmp_path / "checkpoint")
    assert bits(opened.tensors) == bits(after)
    back = dict(Export(tmp_path / "checkpoint", form="adapter").write(tmp_path / "back").bytes)
    assert back == {"float32": sum(weight.nbytes for weight in moving.values())}
