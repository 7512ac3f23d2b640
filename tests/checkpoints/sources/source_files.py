"""Small files of the kinds that users have, and the network whose tensors are in them."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from segearth_r2_jax.checkpoints.reference_config import reference_config
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import LANGUAGE_PARTS, ReferenceCheckpoint
from segearth_r2_jax.inputs.tokenizer import train_tokenizer
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config

QUERIES = 10
HEAD_ROWS = 400

Weights = dict[str, np.ndarray]


def tiny_config(*, rank: int | None = None, embed_rows: int = HEAD_ROWS) -> SegEarthR2Config:
    config = SegEarthR2Config.tiny(vocab_size=HEAD_ROWS)
    lora = None if rank is None else LoraConfig(rank=rank, alpha=16.0)
    return dataclasses.replace(config, phi=dataclasses.replace(config.phi, lora=lora, embed_rows=embed_rows))


def random_weights(config: SegEarthR2Config, dtype: np.typing.DTypeLike = np.float32, seed: int = 0) -> Weights:
    """Every tensor that the reference stores of `config`, with adapters if it has any."""
    rng = np.random.default_rng(seed)
    channels = config.mask_decoder.hidden_dim
    open_sizes = {"query_feat": QUERIES, "query_embed": QUERIES, "SEG_query_embed": QUERIES + 1, "new_query_embed": 1}
    weights = {}
    for name, shape in key_map(config).shapes.items():
        if "CLASS_proj" in name or name.endswith("inv_freq"):
            continue
        rows = next((size for part, size in open_sizes.items() if f".{part}." in name), channels)
        shape = tuple(rows if size is None else size for size in shape)
        if name.endswith("relative_position_index"):
            weights[name] = rng.integers(0, 49, shape)
        else:
            weights[name] = rng.standard_normal(shape, np.float32).astype(dtype)
    return weights


def is_language(name: str) -> bool:
    """Whether Mipha has the tensor."""
    return name.startswith(tuple(LANGUAGE_PARTS))


def write_merged(folder: Path, weights: Weights, config: SegEarthR2Config) -> Path:
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(reference_config(config)))
    return folder


def write_mipha(folder: Path, weights: Weights, config: SegEarthR2Config) -> Path:
    """Mipha's part of `weights`, with the bias of its head, a configuration without mask modules, and a tokenizer without [SEG]."""
    language = {name: weight for name, weight in weights.items() if is_language(name)}
    language["lm_head.bias"] = np.ones(HEAD_ROWS, np.float16)
    write_merged(folder, language, config)
    content = json.loads((folder / "config.json").read_text())
    for name in ("mask_decode_train", "swin_type", "segearth_r2_jax"):
        del content[name]
    (folder / "config.json").write_text(json.dumps({**content, "architectures": ["MiphaPhiForCausalLM"]}))
    write_tokenizer_without_seg(folder)
    return folder


def detectron_names(weights: Weights) -> Weights:
    """The tensors of the mask branch that detectron2's file has, under its names, with what the reference does not take."""
    prefixes = {
        "model.vision_tower_mask.": "backbone.",
        "pixel_decoder.": "sem_seg_head.pixel_decoder.",
        "predictor.": "sem_seg_head.predictor.",
    }
    theirs = {"0.weight": "weight", "1.weight": "norm.weight", "1.bias": "norm.bias"}
    ours_only = ("SEG_query_embed", "new_query_embed", "SEG_proj", "adapter_1.0.bias", "layer_1.0.bias")
    renamed = {}
    for name, weight in weights.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None or any(part in name for part in ours_only):
            continue
        rest = name.removeprefix(prefix)
        for block in ("adapter_1.", "layer_1."):
            if rest.startswith(block):
                rest = block + theirs[rest.removeprefix(block)]
        renamed[prefixes[prefix] + rest] = weight
    channels = weights["predictor.decoder_norm.weight"].shape[0]
    renamed["sem_seg_head.predictor.class_embed.weight"] = np.ones((134, channels), np.float32)
    renamed["sem_seg_head.predictor.class_embed.bias"] = np.ones(134, np.float32)
    renamed["criterion.empty_weight"] = np.ones(134, np.float32)
    return renamed


def write_mask2former(path: Path, weights: Mapping[str, np.ndarray]) -> Path:
    path.write_bytes(pickle.dumps({"model": dict(weights), "__author__": "someone", "matching_heuristics": True}))
    return path


@functools.cache
def _tokenizer_without_seg() -> str:
    content = json.loads(train_tokenizer(["the river bank  and the road", "a road"], vocab_size=270).to_json())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[SEG]"]
    return json.dumps(content)


def write_tokenizer_without_seg(folder: Path) -> int:
    """Returns how many tokens there are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_tokenizer_without_seg())
    return len(json.loads(_tokenizer_without_seg())["model"]["vocab"])


def write_slow_tokenizer(folder: Path, added: Mapping[str, int], settings: Mapping[str, object] | None = None) -> None:
    """The same as the files of a slow tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(_tokenizer_without_seg())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps(dict(added)))
    special = {"eos_token": "<|endoftext|>", "pad_token": {"content": "<|endoftext|>", "lstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CodeGenTokenizer", **(settings or {})}))


def same(checkpoint: ReferenceCheckpoint, weights: Mapping[str, np.ndarray]) -> None:
    """Every one of `weights` is there, bit for bit."""
    for name, weight in weights.items():
        array = np.asarray(checkpoint.tensors[name])
        assert (array.dtype, array.shape, array.tobytes()) == (weight.dtype, weight.shape, weight.tobytes()), name
        assert (checkpoint.tensors[name].name, checkpoint.tensors[name].dtype) == (name, weight.dtype)
    assert checkpoint.origins.keys() == checkpoint.tensors.keys()
