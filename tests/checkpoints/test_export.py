"""A checkpoint folder as the reference's files: every tensor, merged or as an adapter, by one that reads with torch and PEFT's names."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path

import google_crc32c
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy

from segearth_r2_jax.checkpoints import leaf_reader, manager
from segearth_r2_jax.checkpoints.conversion_report import Report
from segearth_r2_jax.checkpoints.export import Export
from segearth_r2_jax.checkpoints.lora import merge
from segearth_r2_jax.checkpoints.reused_memory import ReusedMemory
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map
from segearth_r2_jax.checkpoints.training_checkpoints import TrainingCheckpoints
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import abstract_module, flatten, module_params, unflatten
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config

LORA = LoraConfig(rank=2, alpha=3.0, dropout=0.1)
PACKED = "predictor.transformer_self_attention_layers.0.self_attn.in_proj_weight"
UNUSED = {
    "predictor.query_feat.weight": np.ones((10, 64), np.float16),
    "model.vision_tower_mask.layers.0.blocks.0.attn.relative_position_index": np.arange(256).reshape(16, 16),
    f"{PACKED}:0": np.full((64, 64), 0.25, ml_dtypes.bfloat16),
}


def tiny(lora: LoraConfig | None) -> SegEarthR2Config:
    config = SegEarthR2Config.tiny(vocab_size=40)
    return dataclasses.replace(config, phi=dataclasses.replace(config.phi, embed_rows=33, lora=lora))


@functools.cache
def leaf_shapes(config: SegEarthR2Config) -> dict[str, tuple[int, ...]]:
    params = flatten(module_params(abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))))
    return {path: leaf.shape for path, leaf in params.items()}


def random_leaves(config: SegEarthR2Config, dtype: np.typing.DTypeLike) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    leaves = {path: rng.standard_normal(shape, np.float32) for path, shape in leaf_shapes(config).items()}
    return {path: leaf if "/lora_" in path else leaf.astype(dtype) for path, leaf in leaves.items()}


def export(source: Path, target: Path, *, form: str = "merged", dtype: str | None = None, **options) -> Report:
    """Exports; what was planned is what was done."""
    outgoing = Export(source, form=form, dtype=dtype)
    planned = outgoing.report()
    report = outgoing.write(target, **options)
    assert planned == dataclasses.replace(report, entries=tuple(dataclasses.replace(entry, crc32c=None) for entry in report.entries))
    return report


def write(folder: Path, config: SegEarthR2Config, leaves: dict[str, np.ndarray], trained: tuple[str, ...] = ()) -> Path:
    """A checkpoint folder; what is `trained` lies in a step, and was something else before."""
    extra = {"reference": {"_name_or_path": "runs/segearth", "bos_token_id": 5}}
    manager.write_config(folder, {"model": config.to_dict(), "template": "train_phi_v0", **extra})
    (folder / "tokenizer.json").write_text("{}")
    steps = {path: leaf for path, leaf in leaves.items() if any(word in path for word in trained)}
    manager.save_base(folder, unflatten({path: leaf for path, leaf in leaves.items() if path not in steps}))
    manager.save_unused(folder, UNUSED)
    if steps:
        with TrainingCheckpoints(folder) as checkpoints:
            params = jax.tree.map(jnp.asarray, unflatten(steps))
            checkpoints.save(7, params, optax.sgd(1.0).init(params), force=True)
    return folder


def expected(config: SegEarthR2Config, leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the table itself, whole trees at once."""
    params = unflatten(leaves)
    return dict(key_map(config).to_reference(params, UNUSED))


def bits(tensors: dict[str, np.ndarray]) -> dict[str, tuple]:
    return {name: (np.asarray(array).dtype, array.shape, np.asarray(array).tobytes()) for name, array in tensors.items()}


def read(folder: Path) -> dict[str, np.ndarray]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(safetensors.numpy.load_file(path))
    return tensors


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    leaves = random_leaves(tiny(None), np.float16)
    return write(tmp_path_factory.mktemp("plain") / "checkpoint", tiny(None), leaves), leaves


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    leaves = random_leaves(tiny(LORA), np.float16)
    trained = ("/lora_", "phi/lm_head", "mask_decoder/", "pixel_decoder/", "seg_projector/", "projector/")
    leaves = {path: leaf.astype(np.float32) if any(word in path for word in trained) else leaf for path, leaf in leaves.items()}
    return write(tmp_path_factory.mktemp("adapted") / "checkpoint", tiny(LORA), leaves, trained), leaves


@pytest.fixture(params=[1, 1 << 30], ids=["a layer at a time", "whole leaves"])
def window(request, monkeypatch) -> None:
    monkeypatch.setattr(leaf_reader, "_WINDOW_BYTES", request.param)


@pytest.mark.parametrize("max_shard_bytes", [5e9, 1e5], ids=["one file", "shards"])
def test_every_tensor_is_written_bit_for_bit(tmp_path, plain, window, max_shard_bytes):
    source, leaves = plain
    report = export(source, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    tensors = expected(tiny(None), leaves)
    assert bits(read(tmp_path / "out")) == bits(tensors)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (max_shard_bytes == 1e5)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (content["torch_dtype"], content["bos_token_id"], content["model_type"]) == ("float16", 5, "mipha_phi")
    assert report.kept == 2
    assert sum(report.bytes.values()) == sum(array.nbytes for array in tensors.values())


def test_the_report_says_of_every_tensor_where_it_came_from(tmp_path, plain):
    source, leaves = plain
    entries = {entry.key: entry for entry in export(source, tmp_path / "out").entries}
    assert entries.keys() == expected(tiny(None), leaves).keys()
    entry = entries["model.layers.1.mlp.fc1.weight"]
    assert (entry.file, entry.source, entry.goes) == ("base", "phi/layers/mlp/fc1/kernel[1]", ("model.layers.1.mlp.fc1.weight",))
    assert (entry.transform, entry.shape, entry.dtype, entry.stored_as) == ("axes in PyTorch's order", (288, 96), "float16", "float16")
    assert entry.crc32c == f"{google_crc32c.value(leaves['phi/layers/mlp/fc1/kernel'][1].tobytes()):08x}"
    entry = entries["predictor.query_feat.weight"]
    assert (entry.file, entry.source, entry.transform) == ("unused", "predictor.query_feat.weight", "as stored")
    packed = entries[PACKED]
    value = "mask_decoder/layers/0/self_attention/v_proj/kernel"
    assert packed.source == f"{PACKED}:0 + {value}"
    assert packed.transform == "zeros for rows without use, axes in PyTorch's order, joined from 3"
    assert packed.crc32c == f"{google_crc32c.value(UNUSED[f'{PACKED}:0'].tobytes() + leaves[value].tobytes()):08x}"


def test_a_dtype_is_that_of_all_numbers_with_a_point(tmp_path, plain):
    source, leaves = plain
    told = []
    export(source, tmp_path / "out", dtype="float32", written=told.append)
    wide = {name: array if array.dtype == np.int64 else array.astype(np.float32) for name, array in expected(tiny(None), leaves).items()}
    assert bits(read(tmp_path / "out")) == bits(wide)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"
    total = sum(array.nbytes for array in wide.values())
    assert sum(told) == total == Export(source, dtype="float32").nbytes


def test_a_value_that_the_dtype_cannot_hold_is_refused(tmp_path):
    leaves = random_leaves(tiny(None), np.float32)
    leaves["seg_projector/bias"][0] = 1e6
    source = write(tmp_path / "checkpoint", tiny(None), leaves)
    with pytest.raises(UserError, match=r"key SEG_token_projector.bias: its largest value 1e\+06 does not fit into float16"):
        export(source, tmp_path / "half", dtype="float16")
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_adapters_are_merged_in_float32_and_rounded_once(tmp_path, adapted, window, dtype):
    source, leaves = adapted
    report = export(source, tmp_path / "out", dtype=dtype)
    merged = {path: leaf for path, leaf in leaves.items() if "/lora_" not in path}
    for name in ("q_proj", "v_proj"):
        kernel, a, b = (leaves[f"phi/layers/self_attn/{name}/{leaf}"] for leaf in ("kernel", "lora_a", "lora_b"))
        merged[f"phi/layers/self_attn/{name}/kernel"] = merge(kernel, a, b, LORA).astype(dtype or kernel.dtype)
    tensors = expected(tiny(None), merged)
    if dtype:
        tensors = {name: array if array.dtype == np.int64 else array.astype(dtype) for name, array in tensors.items()}
    assert bits(read(tmp_path / "out")) == bits(tensors)
    entry = next(entry for entry in report.entries if entry.key == "model.layers.1.self_attn.q_proj.weight")
    assert entry.transform == "merged with its adapter (times 1.5), axes in PyTorch's order"
    assert {entry.file for entry in report.entries} == {"base", "steps/7/trainable", "unused"}


def test_an_adapter_has_pefts_names_and_what_is_trained_beside_it(tmp_path, adapted):
    torch = pytest.importorskip("torch", reason="torch is not installed: its reading of non_lora_trainables.bin is not checked")
    source, leaves = adapted
    report = export(source, tmp_path / "out", form="adapter")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "non_lora_trainables.bin",
        "tokenizer.json",
    ]
    tensors = expected(tiny(LORA), leaves)
    adapters = {f"base_model.model.{name}": array for name, array in tensors.items() if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 2
    assert adapters["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"].shape == (96, 2)
    assert bits(read(tmp_path / "out")) == bits(adapters)
    # What the reference trains in full, and the projector, which only this run trained.
    words = ("lm_head", "pixel_decoder", "predictor", "SEG_token_projector", "mm_projector")
    others = {f"base_model.model.{name}": array for name, array in tensors.items() if any(word in name for word in words)}
    loaded = torch.load(tmp_path / "out" / "non_lora_trainables.bin", weights_only=True)
    assert bits({name: tensor.numpy() for name, tensor in loaded.items()}) == bits(others)
    assert report.mapped == len([name for name in (*adapters, *others) if "query_feat" not in name])
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text()) == {
        "auto_mapping": None,
        "base_model_name_or_path": "runs/segearth",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 3,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 2,
        "revision": None,
        "target_modules": [f"model.layers.{i}.self_attn.{name}" for name in ("q_proj", "v_proj") for i in range(2)],
        "task_type": "CAUSAL_LM",
    }


def test_without_adapters_there_is_none_to_write(tmp_path, plain):
    with pytest.raises(UserError, match="has no low-rank adapters; --format merged writes its weights"):
        export(plain[0], tmp_path / "out", form="adapter")
    with pytest.raises(UserError, match="--format onnx: expected one of merged, adapter"):
        export(plain[0], tmp_path / "out", form="onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("tree", ["base", "unused"])
def test_damage_is_found_before_anything_appears(tmp_path, tree):
    source = write(tmp_path / "checkpoint", tiny(None), random_leaves(tiny(None), np.float16))
    file = max((path for path in (source / tree).rglob("*") if path.is_file() and path.parent.name == "d"), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{tree} is damaged: .* has other bytes than were written"):
        export(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_checkpoint_that_lacks_a_parameter_or_has_one_too_many_is_refused(tmp_path):
    leaves = random_leaves(tiny(None), np.float16)
    without = {path: leaf for path, leaf in leaves.items() if path != "seg_projector/bias"}
    with pytest.raises(UserError, match="missing parameter seg_projector/bias"):
        export(write(tmp_path / "a", tiny(None), without), tmp_path / "out")
    with pytest.raises(UserError, match="unknown parameter seg_projector/gain"):
        export(write(tmp_path / "b", tiny(None), {**leaves, "seg_projector/gain": np.ones(1)}), tmp_path / "out")
    other = dataclasses.replace(tiny(None), phi=dataclasses.replace(tiny(None).phi, embed_rows=34))
    with pytest.raises(UserError, match=r"embed_tokens/table has shape \[33, 96\], the model expects \[34, 96\]"):
        export(write(tmp_path / "c", other, leaves), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_layers_are_read_in_any_order_and_forgotten(plain, monkeypatch):
    monkeypatch.setattr(leaf_reader, "_WINDOW_BYTES", 1)
    source, leaves = plain
    path = "phi/layers/mlp/fc1/kernel"
    reader = leaf_reader.StoredTree(source / "base").leaf(path)
    assert (reader.shape, reader.dtype) == (leaves[path].shape, np.float16)
    for i in (1, 0, 1, 1):
        np.testing.assert_array_equal(reader.row(i, ReusedMemory()), leaves[path][i])
    np.testing.assert_array_equal(reader.read(ReusedMemory()), leaves[path])
    with pytest.raises(UserError, match="cannot read phi/layers/mlp/fc3/kernel"):
        leaf_reader.StoredTree(source / "base").leaf("phi/layers/mlp/fc3/kernel")
    with pytest.raises(UserError, match="steps: cannot be read"):
        leaf_reader.StoredTree(source / "steps")
