"""The language side of SegEarth-R2 made of `transformers`' PyTorch modules, and the rules that carry their weights to ours.

The comparison of the numbers is tests/parity/test_language_hf.py, that of the times `benchmarks.predict`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PhiConfig as TorchPhiConfig
from transformers import PhiForCausalLM, SiglipVisionConfig, SiglipVisionModel

from segearth_r2_jax.checkpoints.key_rules import Rule, conv, linear, norm
from segearth_r2_jax.models.phi import PhiConfig
from segearth_r2_jax.models.siglip import SiglipConfig


def torch_siglip(config: SiglipConfig, **options: Any) -> SiglipVisionModel:
    """The vision tower; `options` go to its configuration."""
    return SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            patch_size=config.patch_size,
            image_size=config.image_size,
            **options,
        )
    ).eval()


def torch_phi(config: PhiConfig, *, end_id: int = 2, **options: Any) -> PhiForCausalLM:
    """The language model, which ends with `end_id`; its head's bias, which SegEarth-R2 lacks, is 0."""
    phi = PhiForCausalLM(
        TorchPhiConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": config.rotary_fraction},
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=end_id,
            **options,
        )
    ).eval()
    torch.nn.init.zeros_(phi.lm_head.bias)
    return phi


def siglip_rules(config: SiglipConfig, module: SiglipVisionModel, *, final_norm: bool = True) -> list[Rule]:
    """From the names of `torch_siglip` to those of `Siglip`; the tower's last layers are not ours if it ends before them."""
    prefix = next(name for name in module.state_dict() if name.endswith("embeddings.patch_embedding.weight"))
    prefix = prefix.removesuffix("embeddings.patch_embedding.weight")
    layer, n = f"{prefix}encoder.layers.{{i}}", config.layers_built
    rules = [
        *conv(f"{prefix}embeddings.patch_embedding", "patch_embedding"),
        Rule(f"{prefix}embeddings.position_embedding.weight", ("position_embedding",)),
        *norm(f"{layer}.layer_norm1", "layers/layer_norm1", repeat=n),
        *norm(f"{layer}.layer_norm2", "layers/layer_norm2", repeat=n),
    ]
    if final_norm:
        rules += norm(f"{prefix}post_layernorm", "post_layernorm")
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"):
        rules += linear(f"{layer}.{name}", f"layers/{name.replace('.', '/')}", repeat=n)
    return rules


def phi_rules(config: PhiConfig) -> list[Rule]:
    """From the names of `torch_phi` to those of `Phi`."""
    layer, n = "model.layers.{i}", config.num_layers
    rules = [
        Rule("model.embed_tokens.weight", ("embed_tokens/table",)),
        *norm(f"{layer}.input_layernorm", "layers/input_layernorm", repeat=n),
        *norm("model.final_layernorm", "final_layernorm"),
        *linear("lm_head", "lm_head", bias=False),
    ]
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"):
        rules += linear(f"{layer}.{name}", f"layers/{name.replace('.', '/')}", repeat=n)
    return rules
