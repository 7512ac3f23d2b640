"""The reference's weights through this project and back, bit for bit, and the table at the published sizes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
from reference import fixture_config, fixture_model, fixture_parameters, reference_weights

from segearth_r2_jax.checkpoints import manager
from segearth_r2_jax.checkpoints.key_rules import KeyMap, Unused
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map, segearth_r2_rules
from segearth_r2_jax.checkpoints.torch_files.state_dict import read_state_dict
from segearth_r2_jax.cli import convert
from segearth_r2_jax.models.binding import bind, flatten
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config


def run(source: Path, target: Path) -> Path:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    convert.run(parser.parse_args(["--source", str(source), "--target", str(target)]))
    return target


def test_reference_to_orbax_to_reference_is_bit_exact_for_every_key(fixtures_dir, tmp_path):
    orbax = run(fixtures_dir / "weights.safetensors", tmp_path / "orbax")
    back = read_state_dict(run(orbax, tmp_path / "back"))
    weights = reference_weights(fixtures_dir)
    assert back.keys() == weights.keys()
    for name, weight in weights.items():
        array = np.asarray(back[name])
        assert (array.dtype, array.shape, array.tobytes()) == (weight.dtype, weight.shape, weight.tobytes()), name
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (fixtures_dir / "tokenizer.json").read_bytes()
    # And once more, now that config.json is of the form that a checkpoint has.
    again = run(tmp_path / "back", tmp_path / "again")
    assert manager.read_model_config(again) == manager.read_model_config(orbax) == fixture_config(fixtures_dir)
    assert flatten(manager.load_parameters(again)).keys() == flatten(fixture_parameters(fixtures_dir, "float32")).keys()


def test_the_fixtures_parameters_are_those_of_the_model(fixtures_dir):
    model = bind(fixture_model(fixtures_dir), fixture_parameters(fixtures_dir, np.float64))
    weights = reference_weights(fixtures_dir)
    np.testing.assert_array_equal(model.seg_projector.kernel[...], weights["SEG_token_projector.weight"].T)
    np.testing.assert_array_equal(model.phi.layers.mlp.fc1.bias[...][1], weights["model.layers.1.mlp.fc1.bias"])


# The key table of the published model: pattern -> shape; {a..b} runs over numbers, (x|y) over names. `rows` are those of the input table.
def published_shapes(rows: int) -> dict[str, tuple[int, ...]]:
    d, v, m = 2560, 1152, 256
    vision = "model.vision_tower.vision_model"
    table: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, d),
        "model.layers.{0..31}.self_attn.(q_proj|k_proj|v_proj|dense).weight": (d, d),
        "model.layers.{0..31}.self_attn.(q_proj|k_proj|v_proj|dense).bias": (d,),
        "model.layers.{0..31}.mlp.fc1.weight": (10240, d),
        "model.layers.{0..31}.mlp.fc1.bias": (10240,),
        "model.layers.{0..31}.mlp.fc2.weight": (d, 10240),
        "model.layers.{0..31}.mlp.fc2.bias": (d,),
        "model.layers.{0..31}.input_layernorm.(weight|bias)": (d,),
        "model.final_layernorm.(weight|bias)": (d,),
        "lm_head.weight": (51200, d),
        "model.mm_projector.0.weight": (d, v),
        "model.mm_projector.2.weight": (d, d),
        "model.mm_projector.(0|2).bias": (d,),
        f"{vision}.embeddings.patch_embedding.weight": (v, 3, 14, 14),
        f"{vision}.embeddings.patch_embedding.bias": (v,),
        f"{vision}.embeddings.position_embedding.weight": (729, v),
        f"{vision}.encoder.layers.{{0..26}}.self_attn.(q|k|v|out)_proj.weight": (v, v),
        f"{vision}.encoder.layers.{{0..26}}.self_attn.(q|k|v|out)_proj.bias": (v,),
        f"{vision}.encoder.layers.{{0..26}}.(layer_norm1|layer_norm2).(weight|bias)": (v,),
        f"{vision}.encoder.layers.{{0..26}}.mlp.fc1.weight": (4304, v),
        f"{vision}.encoder.layers.{{0..26}}.mlp.fc1.bias": (4304,),
        f"{vision}.encoder.layers.{{0..26}}.mlp.fc2.weight": (v, 4304),
        f"{vision}.encoder.layers.{{0..26}}.mlp.fc2.bias": (v,),
        f"{vision}.(post_layernorm|head.layernorm).(weight|bias)": (v,),
        f"{vision}.head.probe": (1, 1, v),
        f"{vision}.head.attention.in_proj_weight": (3 * v, v),
        f"{vision}.head.attention.in_proj_bias": (3 * v,),
        f"{vision}.head.attention.out_proj.weight": (v, v),
        f"{vision}.head.attention.out_proj.bias": (v,),
        f"{vision}.head.mlp.fc1.weight": (4304, v),
        f"{vision}.head.mlp.fc1.bias": (4304,),
        f"{vision}.head.mlp.fc2.weight": (v, 4304),
        f"{vision}.head.mlp.fc2.bias": (v,),
        "model.vision_tower_mask.patch_embed.proj.weight": (128, 3, 4, 4),
        "model.vision_tower_mask.patch_embed.proj.bias": (128,),
        "model.vision_tower_mask.patch_embed.norm.(weight|bias)": (128,),
        "pixel_decoder.input_proj.0.0.weight": (m, 1024, 1, 1),
        "pixel_decoder.input_proj.1.0.weight": (m, 512, 1, 1),
        "pixel_decoder.input_proj.2.0.weight": (m, 256, 1, 1),
        "pixel_decoder.input_proj.{0..2}.0.bias": (m,),
        "pixel_decoder.input_proj.{0..2}.1.(weight|bias)": (m,),
        "pixel_decoder.transformer.level_embed": (3, m),
        "pixel_decoder.adapter_1.0.weight": (m, 128, 1, 1),
        "pixel_decoder.layer_1.0.weight": (m, m, 3, 3),
        "pixel_decoder.(adapter_1|layer_1).0.bias": (m,),
        "pixel_decoder.(adapter_1|layer_1).1.(weight|bias)": (m,),
        "pixel_decoder.mask_features.weight": (m, m, 1, 1),
        "pixel_decoder.mask_features.bias": (m,),
        "predictor.decoder_norm.(weight|bias)": (m,),
        "predictor.level_embed.weight": (3, m),
        "predictor.(query_feat|query_embed).weight": (100, m),
        "predictor.SEG_query_embed.weight": (101, m),
        "predictor.new_query_embed.weight": (1, m),
        "predictor.mask_embed.layers.{0..2}.weight": (m, m),
        "predictor.mask_embed.layers.{0..2}.bias": (m,),
        "predictor.SEG_proj.layers.{0..1}.weight": (m, m),
        "predictor.SEG_proj.layers.{0..1}.bias": (m,),
        "SEG_token_projector.weight": (m, d),
        "SEG_token_projector.bias": (m,),
    }
    for s, (depth, heads) in enumerate(zip((2, 2, 18, 2), (4, 8, 16, 32), strict=True)):
        c, block = 128 * 2**s, f"model.vision_tower_mask.layers.{s}.blocks.{{0..{depth - 1}}}"
        table |= {
            f"{block}.(norm1|norm2).(weight|bias)": (c,),
            f"{block}.attn.qkv.weight": (3 * c, c),
            f"{block}.attn.qkv.bias": (3 * c,),
            f"{block}.attn.proj.weight": (c, c),
            f"{block}.attn.proj.bias": (c,),
            f"{block}.attn.relative_position_bias_table": (529, heads),
            f"{block}.attn.relative_position_index": (144, 144),
            f"{block}.mlp.fc1.weight": (4 * c, c),
            f"{block}.mlp.fc1.bias": (4 * c,),
            f"{block}.mlp.fc2.weight": (c, 4 * c),
            f"{block}.mlp.fc2.bias": (c,),
            f"model.vision_tower_mask.norm{s}.(weight|bias)": (c,),
        }
        if s < 3:
            table[f"model.vision_tower_mask.layers.{s}.downsample.reduction.weight"] = (2 * c, 4 * c)
            table[f"model.vision_tower_mask.layers.{s}.downsample.norm.(weight|bias)"] = (4 * c,)
    layer = "pixel_decoder.transformer.encoder.layers.{0..5}"
    for name, rows_, columns in (
        ("self_attn.sampling_offsets", 192, m),
        ("self_attn.attention_weights", 96, m),
        ("self_attn.(value_proj|output_proj)", m, m),
        ("linear1", 1024, m),
        ("linear2", m, 1024),
    ):
        table |= {f"{layer}.{name}.weight": (rows_, columns), f"{layer}.{name}.bias": (rows_,)}
    table[f"{layer}.(norm1|norm2).(weight|bias)"] = (m,)
    cross, own, ffn = (f"predictor.transformer_{name}_layers.{{0..8}}" for name in ("cross_attention", "self_attention", "ffn"))
    for attention in (f"{cross}.multihead_attn", f"{own}.self_attn"):
        table |= {f"{attention}.in_proj_weight": (3 * m, m), f"{attention}.in_proj_bias": (3 * m,)}
        table |= {f"{attention}.out_proj.weight": (m, m), f"{attention}.out_proj.bias": (m,)}
    table |= {f"{ffn}.linear1.weight": (2048, m), f"{ffn}.linear1.bias": (2048,)}
    table |= {f"{ffn}.linear2.weight": (m, 2048), f"{ffn}.linear2.bias": (m,)}
    table |= {f"{part}.norm.(weight|bias)": (m,) for part in (cross, own, ffn)}
    return {name: shape for pattern, shape in table.items() for name in expand(pattern)}


def expand(pattern: str) -> list[str]:
    """Every name that a pattern of the table stands for."""
    if number := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        choices = [str(n) for n in range(int(number[1]), int(number[2]) + 1)]
        match = number
    elif names := re.search(r"\(([^()]*)\)", pattern):
        choices, match = names[1].split("|"), names
    else:
        return [pattern]
    return [name for choice in choices for name in expand(pattern[: match.start()] + choice + pattern[match.end() :])]


@pytest.fixture(scope="module", params=[51200, 50296], ids=["padded table", "table of the tokenizer's size"])
def published(request) -> tuple[KeyMap, SegEarthR2Config, int]:
    config = SegEarthR2Config.segearth_r2_3b(embed_rows=request.param)
    return key_map(config), config, request.param


def test_the_published_sizes_give_the_reference_its_shapes(published):
    keys, config, rows = published
    expected = published_shapes(rows)
    optional = {name for name in keys.shapes if name.startswith("predictor.CLASS_proj.") or name.endswith(".rotary_emb.inv_freq")}
    assert keys.shapes.keys() - optional == expected.keys()
    keys.check(expected)
    unused = {rule.reference for rule in segearth_r2_rules(config) if isinstance(rule, Unused)}
    for name in expected.keys() - unused:
        assert keys.shapes[name] == expected[name], name
    values = sum(int(np.prod(shape)) for name, shape in expected.items() if "position_index" not in name)
    assert round(values / 1e6, 2) == round(3325.06 + (rows - 51200) * 2560 / 1e6, 2)


def test_the_references_shapes_give_the_model_its_parameters(published):
    """The other direction, without a number allocated: what the stored tensors add up to in every leaf."""
    keys, _, rows = published
    leaves: dict[str, tuple[int, ...]] = {}
    layers: dict[str, list[int]] = {}
    for name, shape in published_shapes(rows).items():
        for part in keys.parts[name]:
            piece = (part.stop - part.start, *shape[1:])
            piece = piece if part.layout is None else tuple(piece[axis] for axis in part.layout)
            if part.path is not None:
                assert leaves.setdefault(part.path, piece) == piece, name
                layers.setdefault(part.path, []).append(part.index)
    for path, indices in layers.items():
        if indices != [None]:
            assert indices == list(range(len(indices))), path
            leaves[path] = (len(indices), *leaves[path])
    assert leaves == keys.leaves


def test_adapters_are_named_after_the_layer_that_they_adapt():
    config = SegEarthR2Config.segearth_r2_3b(lora=LoraConfig(rank=4))
    keys = key_map(config)
    adapters = {name: shape for name, shape in keys.shapes.items() if ".lora_" in name}
    projections = [f"model.layers.{i}.self_attn.{name}" for i in range(32) for name in ("q_proj", "v_proj")]
    assert adapters == {f"{name}.lora_{half}.weight": shape for name in projections for half, shape in (("A", (4, 2560)), ("B", (2560, 4)))}
