"""The table of SegEarth-R2: every tensor of the reference's state dict and the parameter that it is.

The reference is `SegEarthR2` of `model/language_model/llava_phi.py`. It stores more than it computes with; those tensors are
listed here as unused, so that an exported checkpoint has them again and a new name in a file is never taken for one of them.
"""

from __future__ import annotations

import functools

from segearth_r2_jax.checkpoints.key_rules import LINEAR, KeyMap, Rule, Unused, conv, linear, norm, packed_linear
from segearth_r2_jax.models.binding import abstract_module, module_params
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config

_VISION = "model.vision_tower.vision_model"


@functools.cache
def key_map(config: SegEarthR2Config) -> KeyMap:
    """The rules, bound to the shapes of the network `config`."""
    return KeyMap(segearth_r2_rules(config), module_params(abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))))


def segearth_r2_rules(config: SegEarthR2Config) -> list[Rule | Unused]:
    """The rules between the reference's names and the tree of `SegEarthR2(config)`.

    Low-rank adapters, if `config.phi.lora` is given, are named after the layer that they adapt: "...q_proj.lora_A.weight" [rank, in] and
    "...q_proj.lora_B.weight" [out, rank] beside "...q_proj.weight".
    """
    return [
        *_siglip_rules(config),
        *linear("model.mm_projector.0", "projector/fc1"),
        *linear("model.mm_projector.2", "projector/fc2"),
        *_phi_rules(config),
        *_swin_rules(config),
        *_pixel_decoder_rules(config),
        *_mask_decoder_rules(config),
        *linear("SEG_token_projector", "seg_projector"),
    ]


def _siglip_rules(config: SegEarthR2Config) -> list[Rule | Unused]:
    n = config.siglip.layers_built
    layer, ours = f"{_VISION}.encoder.layers.{{i}}", "siglip/layers"
    rules: list[Rule | Unused] = [
        *conv(f"{_VISION}.embeddings.patch_embedding", "siglip/patch_embedding"),
        Rule(f"{_VISION}.embeddings.position_embedding.weight", ("siglip/position_embedding",)),
    ]
    if n > 0:
        rules += norm(f"{layer}.layer_norm1", f"{ours}/layer_norm1", repeat=n)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            rules += linear(f"{layer}.self_attn.{name}", f"{ours}/self_attn/{name}", repeat=n)
        rules += norm(f"{layer}.layer_norm2", f"{ours}/layer_norm2", repeat=n)
        rules += linear(f"{layer}.mlp.fc1", f"{ours}/mlp/fc1", repeat=n)
        rules += linear(f"{layer}.mlp.fc2", f"{ours}/mlp/fc2", repeat=n)
    if config.siglip.final_norm:
        rules += norm(f"{_VISION}.post_layernorm", "siglip/post_layernorm")
    return [*rules, *_unused_siglip(config)]


def _unused_siglip(config: SegEarthR2Config) -> list[Unused]:
    """The layers after the selected hidden state, the last norm and the attention-pooling head: stored, never read."""
    c, ff = config.siglip.hidden_size, config.siglip.intermediate_size

    def dense(name: str, rows: int, columns: int) -> list[Unused]:
        return [Unused(f"{name}.weight", (rows, columns)), Unused(f"{name}.bias", (rows,))]

    def scale(name: str) -> list[Unused]:
        return [Unused(f"{name}.weight", (c,)), Unused(f"{name}.bias", (c,))]

    unused: list[Unused] = []
    for i in range(config.siglip.layers_built, config.siglip.num_layers):
        layer = f"{_VISION}.encoder.layers.{i}"
        unused += scale(f"{layer}.layer_norm1") + scale(f"{layer}.layer_norm2")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            unused += dense(f"{layer}.self_attn.{name}", c, c)
        unused += dense(f"{layer}.mlp.fc1", ff, c) + dense(f"{layer}.mlp.fc2", c, ff)
    if not config.siglip.final_norm:
        unused += scale(f"{_VISION}.post_layernorm")
    head = f"{_VISION}.head"
    return [
        *unused,
        Unused(f"{head}.probe", (1, 1, c)),
        Unused(f"{head}.attention.in_proj_weight", (3 * c, c)),
        Unused(f"{head}.attention.in_proj_bias", (3 * c,)),
        *dense(f"{head}.attention.out_proj", c, c),
        *scale(f"{head}.layernorm"),
        *dense(f"{head}.mlp.fc1", ff, c),
        *dense(f"{head}.mlp.fc2", c, ff),
    ]


def _phi_rules(config: SegEarthR2Config) -> list[Rule | Unused]:
    n = config.phi.num_layers
    layer, ours = "model.layers.{i}", "phi/layers"
    return [
        Rule("model.embed_tokens.weight", ("phi/embed_tokens/table",)),
        *norm(f"{layer}.input_layernorm", f"{ours}/input_layernorm", repeat=n),
        *(
            rule
            for name in ("q_proj", "k_proj", "v_proj", "dense")
            for rule in linear(f"{layer}.self_attn.{name}", f"{ours}/self_attn/{name}", repeat=n)
        ),
        *linear(f"{layer}.mlp.fc1", f"{ours}/mlp/fc1", repeat=n),
        *linear(f"{layer}.mlp.fc2", f"{ours}/mlp/fc2", repeat=n),
        *norm("model.final_layernorm", "phi/final_layernorm"),
        *linear("lm_head", "phi/lm_head", bias=False),
        *(
            Rule(f"{layer}.self_attn.{name}.{adapter}.weight", (f"{ours}/self_attn/{name}/{leaf}",), LINEAR, n)
            for name in ("q_proj", "v_proj")
            for adapter, leaf in (("lora_A", "lora_a"), ("lora_B", "lora_b"))
            if config.phi.lora is not None
        ),
        # Older transformers releases store the rotary frequencies, a function of the configuration.
        *(Unused(f"model.layers.{i}.self_attn.rotary_emb.inv_freq", (config.phi.rotary_dim // 2,)) for i in range(n)),
    ]


def _swin_rules(config: SegEarthR2Config) -> list[Rule | Unused]:
    swin, tokens = config.swin, config.swin.window**2
    tower = "model.vision_tower_mask"
    rules: list[Rule | Unused] = [
        *conv(f"{tower}.patch_embed.proj", "swin/patch_embed/proj"),
        *norm(f"{tower}.patch_embed.norm", "swin/patch_embed/norm"),
    ]
    for s, depth in enumerate(swin.depths):
        stage, ours = f"{tower}.layers.{s}", f"swin/stages/{s}"
        for b in range(depth):
            block, path = f"{stage}.blocks.{b}", f"{ours}/blocks/{b}"
            table = "relative_position_bias_table"
            rules += [
                *norm(f"{block}.norm1", f"{path}/norm1"),
                *linear(f"{block}.attn.qkv", f"{path}/attn/qkv"),
                *linear(f"{block}.attn.proj", f"{path}/attn/proj"),
                Rule(f"{block}.attn.{table}", (f"{path}/attn/{table}",)),
                Unused(f"{block}.attn.relative_position_index", (tokens, tokens)),
                *norm(f"{block}.norm2", f"{path}/norm2"),
                *linear(f"{block}.mlp.fc1", f"{path}/mlp/fc1"),
                *linear(f"{block}.mlp.fc2", f"{path}/mlp/fc2"),
            ]
        if s < len(swin.depths) - 1:
            rules += norm(f"{stage}.downsample.norm", f"{ours}/downsample/norm")
            rules += linear(f"{stage}.downsample.reduction", f"{ours}/downsample/reduction", bias=False)
        rules += norm(f"{tower}.norm{s}", f"swin/norms/{s}")
    return rules


def _pixel_decoder_rules(config: SegEarthR2Config) -> list[Rule | Unused]:
    n = config.pixel_decoder.num_layers
    layer, ours = "pixel_decoder.transformer.encoder.layers.{i}", "pixel_decoder/layers"

    def conv_norm(name: str, path: str) -> list[Rule]:
        return [*conv(f"{name}.0", f"{path}/conv"), *norm(f"{name}.1", f"{path}/norm")]

    return [
        *(rule for level in range(3) for rule in conv_norm(f"pixel_decoder.input_proj.{level}", f"pixel_decoder/input_proj/{level}")),
        Rule("pixel_decoder.transformer.level_embed", ("pixel_decoder/level_embed",)),
        *(
            rule
            for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
            for rule in linear(f"{layer}.self_attn.{name}", f"{ours}/self_attn/{name}", repeat=n)
        ),
        *norm(f"{layer}.norm1", f"{ours}/norm1", repeat=n),
        *linear(f"{layer}.linear1", f"{ours}/linear1", repeat=n),
        *linear(f"{layer}.linear2", f"{ours}/linear2", repeat=n),
        *norm(f"{layer}.norm2", f"{ours}/norm2", repeat=n),
        *conv_norm("pixel_decoder.adapter_1", "pixel_decoder/lateral"),
        *conv_norm("pixel_decoder.layer_1", "pixel_decoder/output"),
        *conv("pixel_decoder.mask_features", "pixel_decoder/mask_features"),
    ]


def _mask_decoder_rules(config: SegEarthR2Config) -> list[Rule | Unused]:
    c = config.mask_decoder.hidden_dim
    rules: list[Rule | Unused] = []
    for i in range(config.mask_decoder.num_layers):
        ours = f"mask_decoder/layers/{i}"
        cross = f"predictor.transformer_cross_attention_layers.{i}"
        own = f"predictor.transformer_self_attention_layers.{i}"
        ffn = f"predictor.transformer_ffn_layers.{i}"
        cross_path, own_path = f"{ours}/cross_attention", f"{ours}/self_attention"
        rules += [
            *packed_linear(f"{cross}.multihead_attn.in_proj", [f"{cross_path}/{name}" for name in ("q_proj", "k_proj", "v_proj")]),
            *linear(f"{cross}.multihead_attn.out_proj", f"{cross_path}/out_proj"),
            *norm(f"{cross}.norm", f"{ours}/cross_attention_norm"),
            # One query attends to itself alone: its weight is 1 whatever query and key are, so their projections are unused.
            *packed_linear(f"{own}.self_attn.in_proj", [None, None, f"{own_path}/v_proj"]),
            *linear(f"{own}.self_attn.out_proj", f"{own_path}/out_proj"),
            *norm(f"{own}.norm", f"{ours}/self_attention_norm"),
            *linear(f"{ffn}.linear1", f"{ours}/ffn/linear1"),
            *linear(f"{ffn}.linear2", f"{ours}/ffn/linear2"),
            *norm(f"{ffn}.norm", f"{ours}/ffn_norm"),
        ]
    for i in range(3):
        rules += linear(f"predictor.mask_embed.layers.{i}", f"mask_decoder/mask_embed/{i}")
    rules += [
        *norm("predictor.decoder_norm", "mask_decoder/decoder_norm"),
        Rule("predictor.level_embed.weight", ("mask_decoder/level_embed",)),
        # Learned queries and the projection of predicted classes: the one-query decoder has neither.
        *(Unused(f"predictor.{name}.weight", (None, c)) for name in ("query_feat", "query_embed", "SEG_query_embed", "new_query_embed")),
    ]
    for name in ("SEG_proj", "CLASS_proj"):  # CLASS_proj is of one published fork only
        for i in range(2):
            rules += [Unused(f"predictor.{name}.layers.{i}.weight", (None, c)), Unused(f"predictor.{name}.layers.{i}.bias", (None,))]
    return rules
