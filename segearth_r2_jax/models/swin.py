"""Swin Transformer, the image encoder of the mask branch: an image in, four feature maps at strides 4 to 32 out.

Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", section 3. Mirrors `SwinTransformer`
of the reference (`swin_trans.py`), the form used for detection: any image size, and one LayerNorm per output.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from segearth_r2_jax.models.layers import Conv, LayerNorm, Linear, check_remat, gelu, parameter, scan_periods, split_or_none, wide

_WEIGHT_INIT = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Sizes of a Swin Transformer.

    `drop_path` is the stochastic depth rate of the last block (it rises linearly from 0); `remat` is what the backward pass recomputes of
    a block, if the backbone is trained (see `layers.rematerialized`).
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window: int
    mlp_ratio: int = 4
    drop_path: float = 0.3
    patch_size: int = 4
    remat: str = "none"

    def __post_init__(self):
        check_remat(self.remat)
        if len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} must name the same number of stages")
        for channels, heads in zip(self.channels, self.num_heads, strict=True):
            if channels % heads:
                raise ValueError(f"a stage of {channels} channels cannot be split into {heads} heads")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every output map, finest first."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))

    @classmethod
    def base(cls) -> SwinConfig:
        """Swin-B with windows of 12, the backbone of SegEarth-R2."""
        return cls(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window=12)

    @classmethod
    def tiny(
        cls,
        embed_dim: int = 32,
        depths: tuple[int, ...] = (1, 1, 2, 1),
        num_heads: tuple[int, ...] = (1, 2, 4, 8),
        window: int = 8,
        drop_path: float = 0.0,
    ) -> SwinConfig:
        """A backbone that trains on a CPU."""
        return cls(embed_dim=embed_dim, depths=depths, num_heads=num_heads, window=window, drop_path=drop_path)


class WindowAttention(nnx.Module):
    """Self-attention inside each window with a learned bias per relative position."""

    def __init__(self, channels: int, num_heads: int, window: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.window = window
        self.qkv = Linear(channels, 3 * channels, axes=("embed", "heads"), kernel_init=_WEIGHT_INIT, rngs=rngs)
        self.proj = Linear(channels, channels, axes=("heads", "embed"), kernel_init=_WEIGHT_INIT, rngs=rngs)
        self.relative_position_bias_table = parameter(_WEIGHT_INIT, ((2 * window - 1) ** 2, num_heads), (None, None), rngs)

    def __call__(self, x: jax.Array, regions: jax.Array) -> jax.Array:
        """x [b, g, t, c] for g windows of t = window² tokens; regions int [g, t]: tokens of different regions do not see each other."""
        b, g, t, c = x.shape
        qkv = self.qkv(x).reshape(b, g, t, 3, self.num_heads, c // self.num_heads)
        # Heads in front of tokens, here and in the result: otherwise a CPU's compiler transposes the probabilities to suit its product.
        q, k, v = (qkv[..., i, :, :].swapaxes(2, 3) for i in range(3))
        logits = jnp.einsum("bgnqd,bgnkd->bgnqk", q * (c // self.num_heads) ** -0.5, k).astype(wide(x.dtype))
        logits = logits + self._bias(t).astype(logits.dtype)
        different = regions[:, None, :, None] != regions[:, None, None, :]
        # Added as in the reference, not set to minus infinity.
        logits = logits + jnp.where(different, -100.0, 0.0).astype(logits.dtype)
        # The softmax is normalised after its product with the values, which has fewer numbers than the probabilities.
        exponentials = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        y = jnp.einsum("bgnqk,bgnkd->bgnqd", exponentials.astype(x.dtype), v, preferred_element_type=logits.dtype)
        y = (y / exponentials.sum(-1, keepdims=True)).astype(x.dtype)
        return self.proj(y.swapaxes(2, 3).reshape(b, g, t, c))

    def _bias(self, t: int) -> jax.Array:
        """[n, t, t]"""
        bias = self.relative_position_bias_table[...][_relative_position_index(self.window).reshape(-1)]
        return bias.reshape(t, t, self.num_heads).transpose(2, 0, 1)


class Mlp(nnx.Module):
    """Two dense layers with the exact (erf) GELU between them."""

    def __init__(self, channels: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(channels, hidden, axes=("embed", "mlp"), kernel_init=_WEIGHT_INIT, rngs=rngs)
        self.fc2 = Linear(hidden, channels, axes=("mlp", "embed"), kernel_init=_WEIGHT_INIT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(x)))


class SwinBlock(nnx.Module):
    """Window attention (its windows shifted by half a window in every second block) and an MLP, both pre-norm."""

    def __init__(self, config: SwinConfig, stage: int, *, rngs: nnx.Rngs):
        channels = config.channels[stage]
        self.window = config.window
        self.norm1 = LayerNorm(channels, rngs=rngs)
        self.attn = WindowAttention(channels, config.num_heads[stage], config.window, rngs=rngs)
        self.norm2 = LayerNorm(channels, rngs=rngs)
        self.mlp = Mlp(channels, config.mlp_ratio * channels, rngs=rngs)

    def __call__(
        self, x: jax.Array, shifted: jax.Array | bool, drop_path: jax.Array | float = 0.0, rng: jax.Array | None = None
    ) -> jax.Array:
        """x [b, h, w, c] -> [b, h, w, c]; shifted: are the windows, by half a window; each branch is dropped with probability `drop_path`
        if `rng` is given.
        """
        rng_attention, rng_mlp = split_or_none(rng, 2)
        x = x + stochastic_depth(self._attend(self.norm1(x), shifted), drop_path, rng_attention)
        return x + stochastic_depth(self.mlp(self.norm2(x)), drop_path, rng_mlp)

    def _attend(self, x: jax.Array, shifted: jax.Array | bool) -> jax.Array:
        b, h, w, c = x.shape
        size, half = self.window, self.window // 2
        # The padding comes after the normalisation and is attended to like any other token: the reference masks it nowhere.
        x = jnp.pad(x, ((0, 0), (0, -h % size), (0, -w % size), (0, 0)))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        # Two blocks differ by the shift only, so that one is compiled for all of a stage. It is what a compiler spends its time on.
        shift = jnp.where(shifted, half, 0)
        x = jnp.roll(x, (-shift, -shift), (1, 2))
        regions = jnp.where(shifted, _shift_regions(rows * size, columns * size, size, half), 0)
        x = x.reshape(b, rows, size, columns, size, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, size * size, c)
        x = self.attn(x, regions)
        x = x.reshape(b, rows, columns, size, size, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * size, columns * size, c)
        return jnp.roll(x, (shift, shift), (1, 2))[:, :h, :w]


class PatchMerging(nnx.Module):
    """Halves the resolution and doubles the channels: [b, h, w, c] -> [b, ceil(h/2), ceil(w/2), 2c]."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * channels, rngs=rngs)
        self.reduction = Linear(4 * channels, 2 * channels, axes=("mlp", "embed"), use_bias=False, kernel_init=_WEIGHT_INIT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        # The four neighbours are concatenated column by column: (row, column) = (0,0), (1,0), (0,1), (1,1).
        x = x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(b, (h + 1) // 2, (w + 1) // 2, 4 * c)))


class PatchEmbedding(nnx.Module):
    """Non-overlapping patches to tokens; the image is zero-padded at the right and the bottom to whole patches."""

    def __init__(self, config: SwinConfig, *, rngs: nnx.Rngs):
        self.patch_size = config.patch_size
        self.proj = Conv(3, config.embed_dim, config.patch_size, stride=config.patch_size, rngs=rngs)
        self.norm = LayerNorm(config.embed_dim, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        _, h, w, _ = pixels.shape
        return self.norm(self.proj(jnp.pad(pixels, ((0, 0), (0, -h % self.patch_size), (0, -w % self.patch_size), (0, 0)))))


class Stage(nnx.Module):
    """The blocks of one resolution and, but for the last stage, the step to the next."""

    def __init__(self, config: SwinConfig, stage: int, *, rngs: nnx.Rngs):
        self.remat = config.remat
        self.blocks = nnx.List([SwinBlock(config, stage, rngs=rngs) for _ in range(config.depths[stage])])
        if stage + 1 < len(config.depths):
            self.downsample = PatchMerging(config.channels[stage], rngs=rngs)

    def __call__(self, x: jax.Array, drop_paths: jax.Array, rngs: jax.Array | None) -> jax.Array:
        """x [b, h, w, c] through the blocks; drop_paths [blocks], rngs [blocks] or None."""

        def body(x: jax.Array, block: nnx.Module, _: int, own: tuple[jax.Array, jax.Array, jax.Array | None]) -> tuple[jax.Array, None]:
            return block(x, *own), None

        shifted = jnp.arange(len(self.blocks)) % 2 == 1
        return scan_periods(self.blocks, 1, body, x, (shifted, drop_paths, rngs), remat=self.remat)[0]


class Swin(nnx.Module):
    """The backbone. Every output map passes through its own LayerNorm; the next stage starts from the map before it."""

    def __init__(self, config: SwinConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = PatchEmbedding(config, rngs=rngs)
        self.stages = nnx.List([Stage(config, stage, rngs=rngs) for stage in range(len(config.depths))])
        self.norms = nnx.List([LayerNorm(channels, rngs=rngs) for channels in config.channels])

    def __call__(self, pixels: jax.Array, *, rng: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """Feature maps (res2, res3, res4, res5) of normalised images.

        Args:
            pixels: [b, H, W, 3], of any height and width.
            rng: switches stochastic depth on (training).

        Returns:
            [b, ceil(H/4), ceil(W/4), embed_dim] and, per stage, half the size (rounded up) and twice the channels.
        """
        x = self.patch_embed(pixels)
        outputs = []
        blocks = sum(self.config.depths)
        drop_paths = jnp.linspace(0.0, self.config.drop_path, blocks)
        rngs = None if rng is None else jax.random.split(rng, blocks)
        first = 0
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            own = slice(first, first + self.config.depths[i])
            first = own.stop
            x = stage(x, drop_paths[own], None if rngs is None else rngs[own])
            outputs.append(norm(x))
            if i + 1 < len(self.stages):
                x = stage.downsample(x)
        return tuple(outputs)


def stochastic_depth(x: jax.Array, rate: jax.Array | float, rng: jax.Array | None) -> jax.Array:
    """Drops a residual branch [b, ...] for whole samples with probability `rate` and scales the rest; the identity without `rng`."""
    if rng is None:
        return x
    keep = jax.random.bernoulli(rng, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def _relative_position_index(window: int) -> np.ndarray:
    """Row of the bias table for every pair of tokens of a window: int [window², window²]."""
    y, x = np.divmod(np.arange(window * window), window)
    dy = y[:, None] - y[None, :] + window - 1
    dx = x[:, None] - x[None, :] + window - 1
    return dy * (2 * window - 1) + dx


def _shift_regions(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Which part of the unshifted map every token of every window comes from: int [windows, window²]."""

    def strips(length: int) -> np.ndarray:
        position = np.arange(length)
        return (position >= length - window).astype(np.int32) + (position >= length - shift)

    regions = strips(height)[:, None] * 3 + strips(width)[None, :]
    regions = regions.reshape(height // window, window, width // window, window)
    return regions.transpose(0, 2, 1, 3).reshape(-1, window * window)
