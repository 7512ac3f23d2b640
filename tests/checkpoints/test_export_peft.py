"""An exported adapter in the hands of PEFT itself: it loads every tensor, and its merge is ours."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from segearth_r2_jax.checkpoints import manager
from segearth_r2_jax.checkpoints.export import Export
from segearth_r2_jax.models.binding import abstract_module, flatten, module_params, unflatten
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.phi import PhiConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config

peft = pytest.importorskip("peft", reason="peft is not installed: its reading of an exported adapter is not checked")
torch = pytest.importorskip("torch", reason="torch is not installed: PEFT needs it")


def language_model(config: PhiConfig, weights: dict[str, np.ndarray]) -> torch.nn.Module:
    """transformers' Phi with the language model's weights: its names are those of the reference."""
    from benchmarks.language_peer import torch_phi

    model = torch_phi(config)
    model.load_state_dict(
        {name: torch.from_numpy(weights[name].copy()) for name in model.state_dict() if name != "lm_head.bias"}, strict=False
    )
    return model


def test_peft_loads_an_exported_adapter_and_merges_it_as_an_export_does(tmp_path: Path):
    lora = LoraConfig(rank=4, alpha=16.0)
    config = SegEarthR2Config.tiny(vocab_size=40)
    config = SegEarthR2Config.from_dict({**config.to_dict(), "phi": {**config.to_dict()["phi"], "lora": {"rank": 4, "alpha": 16.0}}})
    rng = np.random.default_rng(0)
    shapes = flatten(module_params(abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))))
    leaves = {path: 0.1 * rng.standard_normal(leaf.shape, np.float32) for path, leaf in shapes.items()}
    manager.write_config(tmp_path / "checkpoint", {"model": config.to_dict()})
    manager.save_base(tmp_path / "checkpoint", unflatten(leaves))
    Export(tmp_path / "checkpoint", form="adapter").write(tmp_path / "adapter")
    Export(tmp_path / "checkpoint").write(tmp_path / "merged")
    merged = safetensors.numpy.load_file(tmp_path / "merged" / "model.safetensors")
    before = dict(merged)
    for i in range(config.phi.num_layers):
        for name in ("q_proj", "v_proj"):
            before[f"model.layers.{i}.self_attn.{name}.weight"] = leaves[f"phi/layers/self_attn/{name}/kernel"][i].T

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it warns of adapter tensors that it misses
        theirs = peft.PeftModel.from_pretrained(language_model(config.phi, before), tmp_path / "adapter")
    loaded = [name for name, _ in theirs.named_parameters() if "lora_" in name]
    assert len(loaded) == 2 * 2 * config.phi.num_layers
    assert theirs.peft_config["default"].r == lora.rank
    state = theirs.merge_and_unload().state_dict()
    for i in range(config.phi.num_layers):
        for name in ("q_proj", "v_proj"):
            key = f"model.layers.{i}.self_attn.{name}.weight"
            np.testing.assert_allclose(state[key].numpy(), merged[key], rtol=0, atol=2.0**-24 * np.abs(merged[key]).max() * (lora.rank + 1))
            assert np.abs(state[key].numpy() - before[key]).max() > 1e-3
