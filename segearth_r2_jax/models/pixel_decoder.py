"""Pixel decoder: deformable attention over the coarse feature maps, then one step up to stride 4.

Zhu et al. 2021, "Deformable DETR", section 4, as used by Mask2Former (Cheng et al. 2022, section 3.2.2). Mirrors
`MSDeformAttnPixelDecoder` of the reference (`msdeformattn.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from segearth_r2_jax.kernels.deformable_sampling import deformable_sampling
from segearth_r2_jax.models.layers import (
    Conv,
    GroupNorm,
    LayerNorm,
    Linear,
    check_remat,
    kept,
    parameter,
    rematerialized,
    stack_layers,
    wide,
)
from segearth_r2_jax.models.position_encoding import sine_position

_XAVIER = nnx.initializers.xavier_uniform()
_ZEROS = nnx.initializers.zeros_init()
# Uniform with variance 1 / fan_in, detectron2's `c2_xavier_fill`.
_CONV_INIT = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
_NUM_LEVELS = 3


@dataclasses.dataclass(frozen=True)
class PixelDecoderConfig:
    """Sizes of the pixel decoder.

    `in_channels` are those of res2 to res5; `remat` is what the backward pass recomputes of a layer (see `layers.rematerialized`).
    """

    in_channels: tuple[int, int, int, int]
    conv_dim: int = 256
    mask_dim: int = 256
    num_layers: int = 6
    num_heads: int = 8
    num_points: int = 4
    ffn_dim: int = 1024
    remat: str = "full"

    def __post_init__(self):
        check_remat(self.remat)
        if len(self.in_channels) != _NUM_LEVELS + 1:
            raise ValueError(f"in_channels needs one entry for each of res2 to res5, got {self.in_channels}")
        if self.conv_dim % self.num_heads or self.conv_dim % 32:
            raise ValueError(f"conv_dim {self.conv_dim} must be divisible by num_heads {self.num_heads} and by 32 (groups)")

    @classmethod
    def base(cls) -> PixelDecoderConfig:
        """The pixel decoder of SegEarth-R2, over Swin-B."""
        return cls(in_channels=(128, 256, 512, 1024))

    @classmethod
    def tiny(
        cls,
        in_channels: tuple[int, int, int, int] = (32, 64, 128, 256),
        conv_dim: int = 64,
        mask_dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        num_points: int = 4,
        ffn_dim: int = 128,
    ) -> PixelDecoderConfig:
        """A pixel decoder that trains on a CPU."""
        return cls(in_channels, conv_dim, mask_dim, num_layers, num_heads, num_points, ffn_dim, remat="none")


class PixelDecoderOutput(NamedTuple):
    """mask_features [b, h/4, w/4, mask_dim]; multi_scale: maps [b, h/s, w/s, conv_dim] for strides s = 32, 16, 8."""

    mask_features: jax.Array
    multi_scale: tuple[jax.Array, jax.Array, jax.Array]


class EncoderInput(NamedTuple):
    """The pixels of all levels in a row, coarsest level first: tokens [b, s, c], position [s, c], shapes ((h, w), ...)."""

    tokens: jax.Array
    position: jax.Array
    shapes: tuple[tuple[int, int], ...]


class ConvNorm(nnx.Module):
    """Convolution (with a bias, as in the reference) and group normalisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, kernel_init: nnx.Initializer, rngs: nnx.Rngs):
        self.conv = Conv(in_channels, out_channels, kernel_size, padding="SAME", kernel_init=kernel_init, rngs=rngs)
        self.norm = GroupNorm(out_channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class DeformableAttention(nnx.Module):
    """Every token looks at a few points of every level, placed around its own by learned offsets (mirrors `MSDeformAttn`)."""

    def __init__(self, config: PixelDecoderConfig, *, rngs: nnx.Rngs):
        c, heads, points = config.conv_dim, config.num_heads, config.num_points
        self.num_heads = heads
        self.num_points = points
        self.sampling_offsets = Linear(
            c, heads * _NUM_LEVELS * points * 2, axes=("embed", None), kernel_init=_ZEROS, bias_init=_star_offsets(heads, points), rngs=rngs
        )
        self.attention_weights = Linear(c, heads * _NUM_LEVELS * points, axes=("embed", None), kernel_init=_ZEROS, rngs=rngs)
        self.value_proj = Linear(c, c, axes=("embed", "heads"), kernel_init=_XAVIER, rngs=rngs)
        self.output_proj = Linear(c, c, axes=("heads", "embed"), kernel_init=_XAVIER, rngs=rngs)

    def __call__(self, tokens: jax.Array, position: jax.Array, shapes: tuple[tuple[int, int], ...]) -> jax.Array:
        """tokens [b, s, c] at `position` [s, c] -> [b, s, c]"""
        b, s, c = tokens.shape
        exact = wide(tokens.dtype)
        queries = tokens + position
        points = (b, s, self.num_heads, _NUM_LEVELS, self.num_points)
        offsets = self.sampling_offsets(queries).astype(exact).reshape(*points, 2)
        extent = np.array([(w, h) for h, w in shapes])[:, None]
        centres = reference_points(shapes, exact)[:, None, None, None]
        weights = self.attention_weights(queries).astype(exact).reshape(*points[:3], _NUM_LEVELS * self.num_points)
        weights = jax.nn.softmax(weights, axis=-1).reshape(points)
        values = self.value_proj(tokens).reshape(b, s, self.num_heads, c // self.num_heads)
        # Locations in float32 or wider whatever the compute dtype: half a pixel of the finest level is below the resolution of bfloat16.
        return self.output_proj(kept(deformable_sampling(values, shapes, centres + offsets / extent.astype(exact), weights)))


class EncoderLayer(nnx.Module):
    """Deformable self-attention and a feed-forward, both residual and post-norm."""

    def __init__(self, config: PixelDecoderConfig, *, rngs: nnx.Rngs):
        c = config.conv_dim
        self.self_attn = DeformableAttention(config, rngs=rngs)
        self.norm1 = LayerNorm(c, rngs=rngs)
        self.linear1 = Linear(c, config.ffn_dim, axes=("embed", "mlp"), kernel_init=_XAVIER, rngs=rngs)
        self.linear2 = Linear(config.ffn_dim, c, axes=("mlp", "embed"), kernel_init=_XAVIER, rngs=rngs)
        self.norm2 = LayerNorm(c, rngs=rngs)

    def __call__(self, tokens: jax.Array, position: jax.Array, shapes: tuple[tuple[int, int], ...]) -> jax.Array:
        x = self.norm1(tokens + self.self_attn(tokens, position, shapes))
        return self.norm2(x + self.linear2(jax.nn.relu(self.linear1(x))))


class PixelDecoder(nnx.Module):
    """The decoder: res5, res4 and res3 attend to each other; res2 joins in a single step up."""

    def __init__(self, config: PixelDecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        c = config.conv_dim
        self.input_proj = nnx.List(
            [ConvNorm(channels, c, 1, kernel_init=_XAVIER, rngs=rngs) for channels in reversed(config.in_channels[1:])]
        )
        self.level_embed = parameter(nnx.initializers.normal(1.0), (_NUM_LEVELS, c), (None, "embed"), rngs)
        self.layers = stack_layers(lambda rngs: EncoderLayer(config, rngs=rngs), config.num_layers, rngs)
        self.lateral = ConvNorm(config.in_channels[0], c, 1, kernel_init=_CONV_INIT, rngs=rngs)
        self.output = ConvNorm(c, c, 3, kernel_init=_CONV_INIT, rngs=rngs)
        self.mask_features = Conv(c, config.mask_dim, 1, kernel_init=_CONV_INIT, rngs=rngs)

    def __call__(self, features: Sequence[jax.Array]) -> PixelDecoderOutput:
        """Feature maps (res2, res3, res4, res5), each [b, h, w, its in_channels], to mask features and multi-scale maps."""
        tokens, position, shapes = self.encoder_input(features)
        multi_scale = self._split(self._encode(tokens, position, shapes), shapes)
        # The reference has a ReLU after the lateral convolution, Mask2Former has none.
        lateral = jax.nn.relu(self.lateral(features[0]))
        y = lateral + jax.image.resize(multi_scale[-1], lateral.shape, "bilinear", antialias=False)
        mask_features = self.mask_features(jax.nn.relu(self.output(y)))
        return PixelDecoderOutput(mask_features, multi_scale)

    def encoder_input(self, features: Sequence[jax.Array]) -> EncoderInput:
        """What the encoder layers start from: res5, res4 and res3 projected to one width, with position and level."""
        tokens, positions, shapes = [], [], []
        for level, (project, feature_map) in enumerate(zip(self.input_proj, reversed(features[1:]), strict=True)):
            x = project(feature_map)
            b, h, w, c = x.shape
            tokens.append(x.reshape(b, h * w, c))
            positions.append(sine_position(h, w, c, x.dtype).reshape(h * w, c) + self.level_embed[...][level].astype(x.dtype))
            shapes.append((h, w))
        return EncoderInput(jnp.concatenate(tokens, 1), jnp.concatenate(positions, 0), tuple(shapes))

    def _encode(self, tokens: jax.Array, position: jax.Array, shapes: tuple[tuple[int, int], ...]) -> jax.Array:
        definition, state = nnx.split(self.layers)

        def body(x, layer_state):
            return nnx.merge(definition, layer_state)(x, position, shapes), None

        return jax.lax.scan(rematerialized(body, self.config.remat), tokens, state)[0]

    @staticmethod
    def _split(tokens: jax.Array, shapes: tuple[tuple[int, int], ...]) -> tuple[jax.Array, ...]:
        ends = np.cumsum([h * w for h, w in shapes])[:-1]
        pieces = jnp.split(tokens, ends, axis=1)
        return tuple(x.reshape(x.shape[0], h, w, x.shape[-1]) for x, (h, w) in zip(pieces, shapes, strict=True))


def reference_points(shapes: tuple[tuple[int, int], ...], dtype: jax.typing.DTypeLike) -> jax.Array:
    """Centre (x, y) in [0, 1] of every pixel of every level, in the order of the tokens: [s, 2]."""
    centres = []
    for h, w in shapes:
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        centres.append(np.stack([x, y], -1).reshape(h * w, 2))
    return jnp.asarray(np.concatenate(centres), dtype)


def _star_offsets(num_heads: int, num_points: int) -> nnx.Initializer:
    """Offsets of the first step: head h looks in the direction 2 pi h / heads, point p at distance p + 1, alike on every level."""
    angle = 2 * np.pi * np.arange(num_heads) / num_heads
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    direction = direction / np.abs(direction).max(-1, keepdims=True)
    offsets = direction[:, None, None] * (np.arange(num_points) + 1)[:, None]
    offsets = np.broadcast_to(offsets, (num_heads, _NUM_LEVELS, num_points, 2)).reshape(-1)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
        return jnp.asarray(offsets, dtype).reshape(shape)

    return init
