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

from segearth_r2_jax.checkpoints.key_rules import KeyMap, Rule
from segearth_r2_jax.models.binding import abstract_module, bind, module_params, unflatten
from segearth_r2_jax.models.mask_decoder import MaskDecoder, MaskDecoderConfig
from segearth_r2_jax.models.pixel_decoder import PixelDecoder, PixelDecoderConfig
from segearth_r2_jax.models.swin import Swin, SwinConfig

torch = pytest.importorskip("torch", reason="the comparison needs PyTorch, which is a development dependency only")

from benchmarks import mask_branch_peer as peer  # noqa: E402

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


@pytest.mark.parametrize("size", SWIN_SIZES)
@torch.no_grad()
def test_swin(size: str):
    config, image_size = SWIN_SIZES[size]
    backbone = peer.torch_swin(config, max(image_size))
    tensors = _randomized(backbone)
    swin = _load(lambda rngs: Swin(config, rngs=rngs), peer.swin_rules(config), peer.pack_qkv(tensors))

    pixels = _random(2, *image_size, 3)
    expected = backbone(_channels_first(pixels)).feature_maps
    for ours, theirs in zip(jax.jit(lambda m, x: m(x))(swin, pixels), expected, strict=True):
        _check(ours, theirs)


@pytest.mark.parametrize("size", PIXEL_DECODER_SIZES)
@torch.no_grad()
def test_pixel_decoder(size: str):
    config, finest = PIXEL_DECODER_SIZES[size]
    decoder = peer.torch_pixel_decoder(config)
    tensors = peer.with_biases(_randomized(decoder))
    peer.as_in_segearth_r2(decoder)
    ours = _load(lambda rngs: PixelDecoder(config, rngs=rngs), peer.pixel_decoder_rules(config), tensors)

    sizes = _halvings(finest)
    features = [_random(2, *size, channels) for size, channels in zip(sizes, config.in_channels, strict=True)]
    expected = decoder([_channels_first(x) for x in features], output_hidden_states=False, output_attentions=False, return_dict=True)
    output = jax.jit(lambda m, x: m(x))(ours, features)
    _check(output.mask_features, expected.mask_features)
    for feature_map, theirs in zip(output.multi_scale, expected.multi_scale_features, strict=True):
        _check(feature_map, theirs)


@pytest.mark.parametrize("size", MASK_DECODER_SIZES)
@torch.no_grad()
def test_mask_decoder(size: str):
    """All queries of an image at once here; there one after the other, each alone and without a query position."""
    config, finest = MASK_DECODER_SIZES[size]
    decoder = peer.torch_mask_decoder(config)
    tensors = _randomized(decoder)
    ours = _load(lambda rngs: MaskDecoder(config, rngs=rngs), peer.mask_decoder_rules(config), tensors)

    sizes = _halvings(finest)
    multi_scale = tuple(_random(2, *size, config.hidden_dim) for size in reversed(sizes[1:]))
    mask_features = _random(2, *finest, config.mask_dim)
    queries = _random(2, NUM_QUERIES, config.hidden_dim)
    predictions = np.asarray(jax.jit(lambda m, *x: m(*x))(ours, multi_scale, mask_features, queries))
    assert predictions.shape == (config.num_layers + 1, 2, NUM_QUERIES, *finest)

    for image in range(2):
        maps = [_channels_first(x[image : image + 1]) for x in multi_scale]
        features = _channels_first(mask_features[image : image + 1])
        for query in range(NUM_QUERIES):
            expected = peer.decode(decoder, maps, features, torch.from_numpy(queries[image, query : query + 1]))
            for ours_i, theirs_i in zip(predictions[:, image, query], expected, strict=True):
                _check(jnp.asarray(ours_i)[None, ..., None], theirs_i)
