"""Swin, pixel decoder and mask decoder against transformers' PyTorch modules with random weights, float32.

SegEarth-R2 differs from stock Mask2Former in a few places. Each comparison brings the PyTorch side to the same function by its weights,
its inputs or a hook; our networks run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segearth_r2_jax.checkpoints.key_rules import KeyMap, Rule, conv, linear, norm, packed_linear
from segearth_r2_jax.models.binding import abstract_module, bind, module_params, unflatten
from segearth_r2_jax.models.mask_decoder import MaskDecoder, MaskDecoderConfig
from segearth_r2_jax.models.pixel_decoder import PixelDecoder, PixelDecoderConfig
from segearth_r2_jax.models.swin import Swin, SwinConfig

torch = pytest.importorskip("torch", reason="the comparison needs PyTorch, which is a development dependency only")

TOLERANCE = 2e-5

# Image sizes that leave padding in some windows and, in the second, in the patches and the merged rows too.
SWIN_SIZES = {
    "even": (SwinConfig(embed_dim=16, depths=(2, 1, 4, 1), num_heads=(1, 2, 4, 8), window=4), (160, 128)),
    "odd": (SwinConfig(embed_dim=12, depths=(1, 2, 5, 2), num_heads=(2, 3, 4, 6), window=5), (203, 170)),
}
# Sizes of res2; the coarser maps halve it, rounded up.
PIXEL_DECODER_SIZES = {
    "even": (PixelDecoderConfig(in_channels=(8, 16, 24, 40), conv_dim=64, mask_dim=48, num_layers=2, num_heads=4, ffn_dim=96), (32, 48)),
    "odd": (PixelDecoderConfig(in_channels=(6, 10, 14, 22), conv_dim=96, mask_dim=96, num_layers=3, num_heads=3, ffn_dim=64), (37, 26)),
}
MASK_DECODER_SIZES = {
    "even": (MaskDecoderConfig(hidden_dim=64, num_heads=4, num_layers=6, ffn_dim=128, mask_dim=64), (32, 32)),
    "odd": (MaskDecoderConfig(hidden_dim=48, num_heads=6, num_layers=7, ffn_dim=100, mask_dim=48), (27, 38)),
}
NUM_QUERIES = 3


def _load(make: Callable[[nnx.Rngs], nnx.Module], rules: list[Rule], tensors: Mapping[str, np.ndarray]) -> nnx.Module:
    """The module that `make` builds, with the weights `tensors`."""
    module = abstract_module(make)
    key_map = KeyMap(rules, module_params(module))
    leaves, _ = key_map.to_parameters({name: tensors[name] for name in key_map.shapes})
    return bind(module, unflatten({path: np.asarray(leaf) for path, leaf in leaves.items()}))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _randomized(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Values in every parameter: transformers starts biases at 0 and scales at 1, where an error could hide."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def _channels_first(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(array, -1, 1).copy())


def _check(actual: jax.Array, expected: torch.Tensor) -> None:
    """Ours is channels last."""
    actual, expected = np.moveaxis(np.asarray(actual), -1, 1), expected.numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


def _halvings(size: tuple[int, int]) -> list[tuple[int, int]]:
    sizes = [size]
    for _ in range(3):
        sizes.append(tuple((length + 1) // 2 for length in sizes[-1]))
    return sizes


def _swin_rules(config: SwinConfig) -> list[Rule]:
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


@pytest.mark.parametrize("size", SWIN_SIZES)
@torch.no_grad()
def test_swin(size: str):
    from transformers import SwinBackbone
    from transformers import SwinConfig as TorchSwinConfig

    config, image_size = SWIN_SIZES[size]
    backbone = SwinBackbone(
        TorchSwinConfig(
            image_size=max(image_size),
            embed_dim=config.embed_dim,
            depths=list(config.depths),
            num_heads=list(config.num_heads),
            window_size=config.window,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
    ).eval()
    tensors = _randomized(backbone)
    for name in [name for name in tensors if ".attention.q_proj." in name]:
        packed = [tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
        tensors[name.replace("q_proj", "qkv")] = np.concatenate(packed)
    swin = _load(lambda rngs: Swin(config, rngs=rngs), _swin_rules(config), tensors)

    pixels = _random(2, *image_size, 3)
    expected = backbone(_channels_first(pixels)).feature_maps
    for ours, theirs in zip(jax.jit(lambda m, x: m(x))(swin, pixels), expected, strict=True):
        _check(ours, theirs)


def _pixel_decoder_rules(config: PixelDecoderConfig) -> list[Rule]:
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


@pytest.mark.parametrize("size", PIXEL_DECODER_SIZES)
@torch.no_grad()
def test_pixel_decoder(size: str):
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

    config, finest = PIXEL_DECODER_SIZES[size]
    torch_config = Mask2FormerConfig(
        feature_size=config.conv_dim,
        mask_feature_size=config.mask_dim,
        encoder_feedforward_dim=config.ffn_dim,
        encoder_layers=config.num_layers,
        num_attention_heads=config.num_heads,
    )
    decoder = Mask2FormerPixelDecoder(torch_config, list(config.in_channels)).eval()
    # Transformers leaves this parameter's memory as it finds it.
    torch.nn.init.normal_(decoder.level_embed)
    tensors = _randomized(decoder)
    # Two of Mask2Former's convolutions have no bias, and its lateral one has no ReLU.
    for name in ("adapter_1.0.bias", "layer_1.0.bias"):
        tensors[name] = np.zeros(config.conv_dim, np.float32)
    decoder.adapter_1.register_forward_hook(lambda module, inputs, output: output.relu())
    ours = _load(lambda rngs: PixelDecoder(config, rngs=rngs), _pixel_decoder_rules(config), tensors)

    sizes = _halvings(finest)
    features = [_random(2, *size, channels) for size, channels in zip(sizes, config.in_channels, strict=True)]
    expected = decoder([_channels_first(x) for x in features], output_hidden_states=False, output_attentions=False, return_dict=True)
    output = jax.jit(lambda m, x: m(x))(ours, features)
    _check(output.mask_features, expected.mask_features)
    for feature_map, theirs in zip(output.multi_scale, expected.multi_scale_features, strict=True):
        _check(feature_map, theirs)


def _mask_decoder_rules(config: MaskDecoderConfig) -> list[Rule]:
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


@pytest.mark.parametrize("size", MASK_DECODER_SIZES)
@torch.no_grad()
def test_mask_decoder(size: str):
    """All queries of an image at once here; there one after the other, each alone and without a query position."""
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule

    config, finest = MASK_DECODER_SIZES[size]
    torch_config = Mask2FormerConfig(
        hidden_dim=config.hidden_dim,
        mask_feature_size=config.mask_dim,
        dim_feedforward=config.ffn_dim,
        decoder_layers=config.num_layers + 1,
        num_attention_heads=config.num_heads,
        num_queries=1,
    )
    decoder = Mask2FormerTransformerModule(config.hidden_dim, torch_config).eval()
    tensors = _randomized(decoder)
    ours = _load(lambda rngs: MaskDecoder(config, rngs=rngs), _mask_decoder_rules(config), tensors)

    sizes = _halvings(finest)
    multi_scale = tuple(_random(2, *size, config.hidden_dim) for size in reversed(sizes[1:]))
    mask_features = _random(2, *finest, config.mask_dim)
    queries = _random(2, NUM_QUERIES, config.hidden_dim)
    predictions = np.asarray(jax.jit(lambda m, *x: m(*x))(ours, multi_scale, mask_features, queries))
    assert predictions.shape == (config.num_layers + 1, 2, NUM_QUERIES, *finest)

    decoder.queries_embedder.weight.zero_()
    for image in range(2):
        maps = [_channels_first(x[image : image + 1]) for x in multi_scale]
        for query in range(NUM_QUERIES):
            decoder.queries_features.weight.copy_(torch.from_numpy(queries[image, query : query + 1]))
            expected = decoder(maps, _channels_first(mask_features[image : image + 1])).masks_queries_logits
            for ours_i, theirs_i in zip(predictions[:, image, query], expected, strict=True):
                _check(jnp.asarray(ours_i)[None, ..., None], theirs_i)
