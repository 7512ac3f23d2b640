"""Mask decoder: queries look at the image inside their own predicted masks and predict better masks, layer by layer.

Cheng et al. 2022, "Masked-attention Mask Transformer for Universal Image Segmentation" (Mask2Former), section 3.2. Mirrors
`MultiScaleMaskedTransformerDecoderForOPTPreTrain` of the reference (`mask2former_transformer_decoder.py`).

In the reference every mask is a batch row of its own: one query, with a query position of zeros. Here the queries of an image
are rows of one array that share the image's keys and values. They do not see each other, so no number changes; and
self-attention over a single query is a softmax over one key, which leaves its value and output projections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from segearth_r2_jax.kernels.masked_attention import masked_attention
from segearth_r2_jax.models.layers import LayerNorm, Linear, parameter, scan_periods, wide
from segearth_r2_jax.models.position_encoding import sine_position

_XAVIER = nnx.initializers.xavier_uniform()
# Xavier over a packed [3c, c] matrix of query, key and value projections, as PyTorch's attention initialises it.
_XAVIER_PACKED = nnx.initializers.variance_scaling(0.5, "fan_avg", "uniform")
# PyTorch's default for dense layers: uniform within 1 / sqrt(fan_in).
_TORCH_DEFAULT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_NUM_LEVELS = 3


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig:
    """Sizes of the mask decoder; `hidden_dim` is also the width of the pixel decoder's maps."""

    hidden_dim: int = 256
    num_heads: int = 8
    num_layers: int = 9
    ffn_dim: int = 2048
    mask_dim: int = 256

    def __post_init__(self):
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be divisible by num_heads {self.num_heads} and by 4")

    @classmethod
    def base(cls) -> MaskDecoderConfig:
        """The decoder of SegEarth-R2."""
        return cls()

    @classmethod
    def tiny(
        cls, hidden_dim: int = 64, num_heads: int = 4, num_layers: int = 3, ffn_dim: int = 128, mask_dim: int = 64
    ) -> MaskDecoderConfig:
        """A decoder that trains on a CPU."""
        return cls(hidden_dim=hidden_dim, num_heads=num_heads, num_layers=num_layers, ffn_dim=ffn_dim, mask_dim=mask_dim)


class MaskedCrossAttention(nnx.Module):
    """Attention of the queries to the pixels of one level; keys and values are projected once for all queries of an image."""

    def __init__(self, config: MaskDecoderConfig, *, rngs: nnx.Rngs):
        c = config.hidden_dim
        self.num_heads = config.num_heads
        self.head_dim = c // config.num_heads
        self.q_proj = Linear(c, c, axes=("embed", "heads"), kernel_init=_XAVIER_PACKED, rngs=rngs)
        self.k_proj = Linear(c, c, axes=("embed", "heads"), kernel_init=_XAVIER_PACKED, rngs=rngs)
        self.v_proj = Linear(c, c, axes=("embed", "heads"), kernel_init=_XAVIER_PACKED, rngs=rngs)
        self.out_proj = Linear(c, c, axes=("heads", "embed"), kernel_init=_XAVIER, rngs=rngs)

    def keys_values(self, memory: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [b, s, n, d] of the pixels `memory` [b, s, c] at `position` [s, c]."""
        heads = (*memory.shape[:2], self.num_heads, self.head_dim)
        return self.k_proj(memory + position).reshape(heads), self.v_proj(memory).reshape(heads)

    def __call__(
        self, queries: jax.Array, keys: jax.Array, values: jax.Array, mask_embed: jax.Array, mask_features: jax.Array
    ) -> jax.Array:
        """queries [b, q, c], keys and values [b, s, n, d], mask_embed [b, q, m], mask_features [b, s, m] -> [b, q, c]"""
        q = self.q_proj(queries).reshape(*queries.shape[:2], self.num_heads, self.head_dim)
        y = masked_attention(q, keys, values, mask_embed, mask_features, scale=self.head_dim**-0.5)
        return self.out_proj(y.reshape(queries.shape))


class SingleQueryAttention(nnx.Module):
    """Self-attention of a query that sees only itself."""

    def __init__(self, config: MaskDecoderConfig, *, rngs: nnx.Rngs):
        c = config.hidden_dim
        self.v_proj = Linear(c, c, axes=("embed", "heads"), kernel_init=_XAVIER_PACKED, rngs=rngs)
        self.out_proj = Linear(c, c, axes=("heads", "embed"), kernel_init=_XAVIER, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out_proj(self.v_proj(x))


class FeedForward(nnx.Module):
    """Two dense layers with a ReLU between them."""

    def __init__(self, config: MaskDecoderConfig, *, rngs: nnx.Rngs):
        self.linear1 = Linear(config.hidden_dim, config.ffn_dim, axes=("embed", "mlp"), kernel_init=_XAVIER, rngs=rngs)
        self.linear2 = Linear(config.ffn_dim, config.hidden_dim, axes=("mlp", "embed"), kernel_init=_XAVIER, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear2(jax.nn.relu(self.linear1(x)))


class MaskDecoderLayer(nnx.Module):
    """Masked cross-attention, self-attention, feed-forward: all residual and post-norm."""

    def __init__(self, config: MaskDecoderConfig, *, rngs: nnx.Rngs):
        self.cross_attention = MaskedCrossAttention(config, rngs=rngs)
        self.cross_attention_norm = LayerNorm(config.hidden_dim, rngs=rngs)
        self.self_attention = SingleQueryAttention(config, rngs=rngs)
        self.self_attention_norm = LayerNorm(config.hidden_dim, rngs=rngs)
        self.ffn = FeedForward(config, rngs=rngs)
        self.ffn_norm = LayerNorm(config.hidden_dim, rngs=rngs)

    def __call__(
        self, queries: jax.Array, keys: jax.Array, values: jax.Array, mask_embed: jax.Array, mask_features: jax.Array
    ) -> jax.Array:
        """queries [b, q, c], keys and values [b, s, n, d], mask_embed [b, q, m], mask_features [b, s, m] -> [b, q, c]"""
        x = self.cross_attention_norm(queries + self.cross_attention(queries, keys, values, mask_embed, mask_features))
        x = self.self_attention_norm(x + self.self_attention(x))
        return self.ffn_norm(x + self.ffn(x))


class MaskDecoder(nnx.Module):
    """The decoder. Layer i looks at level i mod 3: strides 32, 16, 8, and again."""

    def __init__(self, config: MaskDecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        c = config.hidden_dim
        self.layers = nnx.List([MaskDecoderLayer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.decoder_norm = LayerNorm(c, rngs=rngs)
        self.mask_embed = nnx.List(
            [
                Linear(c, c, axes=("embed", "mlp"), kernel_init=_TORCH_DEFAULT, rngs=rngs),
                Linear(c, c, axes=("mlp", "embed"), kernel_init=_TORCH_DEFAULT, rngs=rngs),
                Linear(c, config.mask_dim, axes=("embed", "mlp"), kernel_init=_TORCH_DEFAULT, rngs=rngs),
            ]
        )
        self.level_embed = parameter(nnx.initializers.normal(1.0), (_NUM_LEVELS, c), (None, "embed"), rngs)

    def __call__(self, multi_scale: Sequence[jax.Array], mask_features: jax.Array, queries: jax.Array) -> jax.Array:
        """Mask logits of every query: the first from the queries as they come, then one per layer, the last the final one.

        Args:
            multi_scale: three maps [b, h_l, w_l, hidden_dim], coarsest first (strides 32, 16, 8).
            mask_features: [b, h, w, mask_dim] at stride 4.
            queries: [b, q, hidden_dim], one per mask.

        Returns:
            [num_layers + 1, b, q, h, w]
        """
        return _mask_logits(self.mask_embeddings(multi_scale, mask_features, queries), mask_features)

    def final_masks(self, multi_scale: Sequence[jax.Array], mask_features: jax.Array, queries: jax.Array) -> jax.Array:
        """The last prediction alone, [b, q, h, w]: the others' logits at stride 4 are never computed."""
        return _mask_logits(self.mask_embeddings(multi_scale, mask_features, queries)[-1], mask_features)

    def mask_embeddings(self, multi_scale: Sequence[jax.Array], mask_features: jax.Array, queries: jax.Array) -> jax.Array:
        """What each prediction multiplies the mask features with: [num_layers + 1, b, q, mask_dim]. For the arguments see `__call__`."""
        memories = [self.memory(level, feature_map) for level, feature_map in enumerate(multi_scale)]
        features = [mask_features_at(feature_map.shape[1:3], mask_features) for feature_map in multi_scale]

        def body(
            carry: tuple[jax.Array, jax.Array], layer: MaskDecoderLayer, level: int, _: None
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            x, embedding = carry
            keys, values = layer.cross_attention.keys_values(*memories[level])
            x = layer(x, keys, values, embedding, features[level])
            embedding = self.mask_embedding(x)
            return (x, embedding), embedding

        first = self.mask_embedding(queries)
        _, embeddings = scan_periods(self.layers, _NUM_LEVELS, body, (queries, first))
        return jnp.concatenate([first[None], embeddings])

    def memory(self, level: int, feature_map: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A level [b, h, w, c] as pixels in a row [b, s, c] and their positions [s, c]."""
        b, h, w, c = feature_map.shape
        pixels = feature_map.reshape(b, h * w, c) + self.level_embed[...][level].astype(feature_map.dtype)
        return pixels, sine_position(h, w, c, feature_map.dtype).reshape(h * w, c)

    def mask_embedding(self, queries: jax.Array) -> jax.Array:
        """[b, q, hidden_dim] -> [b, q, mask_dim]"""
        x = self.decoder_norm(queries)
        for layer in self.mask_embed[:-1]:
            x = jax.nn.relu(layer(x))
        return self.mask_embed[-1](x)


def mask_features_at(size: tuple[int, int], mask_features: jax.Array) -> jax.Array:
    """Mask features [b, h, w, c] at the resolution of a level, pixels in a row: [b, size[0] * size[1], c]; no gradient flows back.

    The reference interpolates the mask logits of every query and layer. Interpolation is linear, so the logits of interpolated features
    are the same, and these serve all queries and all layers of the level. In bfloat16 the reference rounds logits before and after it
    interpolates; here features are rounded once, after they were interpolated in float32, and the logits once.
    """
    b, h, w, c = mask_features.shape
    features = jax.lax.stop_gradient(mask_features).astype(wide(mask_features.dtype))
    down, right = h // size[0], w // size[1]
    if (h, w) == (down * size[0], right * size[1]) and down % 2 == right % 2 == 0:
        # A pixel's centre is a corner of four pixels: their mean, without the matrix products of `jax.image.resize`.
        corners = [features[:, down // 2 - 1 + i :: down, right // 2 - 1 + j :: right] for i in (0, 1) for j in (0, 1)]
        features = sum(corners) / 4
    else:
        features = jax.image.resize(features, (b, *size, c), "bilinear", antialias=False)
    return features.reshape(b, size[0] * size[1], c).astype(mask_features.dtype)


def _mask_logits(embeddings: jax.Array, mask_features: jax.Array) -> jax.Array:
    """[..., b, q, c] and [b, h, w, c] -> [..., b, q, h, w]"""
    return jnp.einsum("...bqc,bhwc->...bqhw", embeddings, mask_features)
