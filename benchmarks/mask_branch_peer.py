"""The mask branch of SegEarth-R2 made of `transformers`' PyTorch modules, and the rules that carry their weights to ours.

SegEarth-R2 differs from stock Mask2Former in a few places; here PyTorch is brought to the same function by its weights, its inputs or a
hook. The comparison of the numbers is tests/parity/test_mask_branch_hf.py, that of the times `benchmarks.mask_branch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Mask2FormerConfig, SwinBackbone
from transformers import SwinConfig as TorchSwinConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder, Mask2FormerTransformerModule

from segearth_r2_jax.checkpoints.key_rules import Rule, conv, linear, norm, packed_linear
from segearth_r2_jax.models.mask_decoder import MaskDecoderConfig
from segearth_r2_jax.models.pixel_decoder import PixelDecoderConfig
from segearth_r2_jax.models.swin import SwinConfig


def torch_swin(config: SwinConfig, image_size: int, **options: Any) -> SwinBackbone:
    """The backbone; `options` go to its configuration."""
    return SwinBackbone(
        TorchSwinConfig(
            image_size=image_size,
            embed_dim=config.embed_dim,
            depths=list(config.depths),
            num_heads=list(config.num_heads),
            window_size=config.window,
            out_features=["stage1", "stage2", "stage3", "stage4"],
            **options,
        )
    ).eval()


def torch_pixel_decoder(config: PixelDecoderConfig) -> Mask2FormerPixelDecoder:
    """The pixel decoder; call `as_in_segearth_r2` once it has its weights."""
    decoder = Mask2FormerPixelDecoder(
        Mask2FormerConfig(
            feature_size=config.conv_dim,
            mask_feature_size=config.mask_dim,
            encoder_feedforward_dim=config.ffn_dim,
            encoder_layers=config.num_layers,
            num_attention_heads=config.num_heads,
        ),
        list(config.in_channels),
    ).eval()
    # Transformers leaves this parameter's memory as it finds it.
    torch.nn.init.normal_(decoder.level_embed)
    return decoder


def as_in_segearth_r2(decoder: Mask2FormerPixelDecoder) -> None:
    """SegEarth-R2 has a ReLU after the lateral convolution, Mask2Former has none."""
    decoder.adapter_1.register_forward_hook(lambda module, inputs, output: output.relu())


def with_biases(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The pixel decoder's tensors: two of Mask2Former's convolutions have no bias, but SegEarth-R2's have."""
    zeros = np.zeros_like(tensors["adapter_1.1.bias"])
    return {**tensors, "adapter_1.0.bias": zeros, "layer_1.0.bias": zeros}


def torch_mask_decoder(config: MaskDecoderConfig) -> Mask2FormerTransformerModule:
    """The mask decoder for one query per batch row."""
    return Mask2FormerTransformerModule(
        config.hidden_dim,
        Mask2FormerConfig(
            hidden_dim=config.hidden_dim,
            mask_feature_size=config.mask_dim,
            dim_feedforward=config.ffn_dim,
            decoder_layers=config.num_layers + 1,
            num_attention_heads=config.num_heads,
            num_queries=1,
        ),
    ).eval()


def decode(
    decoder: Mask2FormerTransformerModule, multi_scale: Sequence[torch.Tensor], mask_features: torch.Tensor, queries: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Predictions [q, 1, h, w] for `queries` [q, c] of one image, as the reference makes them: each query, without a position, is a batch
    row of its own, and the image's maps [1, c, h, w] are repeated for every row.
    """
    rows = len(queries)

    def own_queries(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | {"inputs_embeds": queries[None], "query_position_embeddings": torch.zeros_like(queries[None])}

    handle = decoder.decoder.register_forward_pre_hook(own_queries, with_kwargs=True)
    try:
        repeated = [x.repeat_interleave(rows, 0) for x in multi_scale]
        return decoder(repeated, mask_features.repeat_interleave(rows, 0)).masks_queries_logits
    finally:
        handle.remove()


def pack_qkv(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The backbone's tensors, with the query, key and value projections of every block stacked as in the reference."""
    packed = dict(tensors)
    for name in [name for name in tensors if ".attention.q_proj." in name]:
        packed[name.replace("q_proj", "qkv")] = np.concatenate([tensors[name.replace("q_proj", p)] for p in ("q_proj", "k_proj", "v_proj")])
    return packed


def swin_rules(config: SwinConfig) -> list[Rule]:
    """From the names of `pack_qkv(torch_swin)` to those of `Swin`."""
    embeddings, layers = "swin.embeddings", "swin.encoder.layers"
    rules = [*conv(f"{embeddings}.patch_embeddings.projection", "patch_embed/proj"), *norm(f"{embeddings}.norm", "patch_embed/norm")]
    table = "relative_position_bias_table"
    for s, depth in enumerate(config.depths):
        for i in range(depth):
            block, path = f"{layers}.{s}.blocks.{i}", f"stages/{s}/blocks/{i}"
            rules += [
                *norm(f"{block}.layernorm_before", f"{path}/norm1"),
                *linear(f"{block}.attention.qkv", f"{path}/attn/qkv"),
                *linear(f"{block}.attention.o_proj", f"{path}/attn/proj"),
                Rule(f"{block}.attention.relative_position_bias.{table}", (f"{path}/attn/{table}",)),
                *norm(f"{block}.layernorm_after", f"{path}/norm2"),
                *linear(f"{block}.mlp.fc1", f"{path}/mlp/fc1"),
                *linear(f"{block}.mlp.fc2", f"{path}/mlp/fc2"),
            ]
        if s + 1 < len(config.depths):
            rules += norm(f"{layers}.{s}.downsample.norm", f"stages/{s}/downsample/norm")
            rules += linear(f"{layers}.{s}.downsample.reduction", f"stages/{s}/downsample/reduction", bias=False)
        rules += norm(f"hidden_states_norms.stage{s + 1}", f"norms/{s}")
    return rules


def pixel_decoder_rules(config: PixelDecoderConfig) -> list[Rule]:
    """From the names of `torch_pixel_decoder` to those of `PixelDecoder`."""
    layer, n = "encoder.layers.{i}", config.num_layers
    rules: list[Rule] = [Rule("level_embed", ("level_embed",)), *conv("mask_projection", "mask_features")]
    for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
        rules += linear(f"{layer}.self_attn.{name}", f"layers/self_attn/{name}", repeat=n)
    for theirs, ours in (("self_attn_layer_norm", "norm1"), ("final_layer_norm", "norm2")):
        rules += norm(f"{layer}.{theirs}", f"layers/{ours}", repeat=n)
    for theirs, ours in (("fc1", "linear1"), ("fc2", "linear2")):
        rules += linear(f"{layer}.{theirs}", f"layers/{ours}", repeat=n)
    pairs = [(f"input_projections.{i}", f"input_proj/{i}") for i in range(3)]
    for theirs, ours in (*pairs, ("adapter_1", "lateral"), ("layer_1", "output")):
        rules += [*conv(f"{theirs}.0", f"{ours}/conv"), *norm(f"{theirs}.1", f"{ours}/norm")]
    return rules


def mask_decoder_rules(config: MaskDecoderConfig) -> list[Rule]:
    """From the names of `torch_mask_decoder` to those of `MaskDecoder`."""
    rules: list[Rule] = [Rule("level_embed.weight", ("level_embed",)), *norm("decoder.layernorm", "decoder_norm")]
    for i in range(3):
        rules += linear(f"decoder.mask_predictor.mask_embedder.{i}.0", f"mask_embed/{i}")
    for i in range(config.num_layers):
        layer, path = f"decoder.layers.{i}", f"layers/{i}"
        projections = [f"{path}/cross_attention/{name}" for name in ("q_proj", "k_proj", "v_proj")]
        rules += [
            *packed_linear(f"{layer}.cross_attn.in_proj", projections),
            *linear(f"{layer}.cross_attn.out_proj", f"{path}/cross_attention/out_proj"),
            *norm(f"{layer}.cross_attn_layer_norm", f"{path}/cross_attention_norm"),
            *linear(f"{layer}.self_attn.v_proj", f"{path}/self_attention/v_proj"),
            *linear(f"{layer}.self_attn.out_proj", f"{path}/self_attention/out_proj"),
            *norm(f"{layer}.self_attn_layer_norm", f"{path}/self_attention_norm"),
            *linear(f"{layer}.fc1", f"{path}/ffn/linear1"),
            *linear(f"{layer}.fc2", f"{path}/ffn/linear2"),
            *norm(f"{layer}.final_layer_norm", f"{path}/ffn_norm"),
        ]
    return rules
