"""The reference's forward pass in PyTorch, straight from the tensors of a file: the other side of `verify_torch`.

Evaluation mode of `SegEarthR2` (`model/language_model/llava_phi.py`) and of what it is made of, written with torch's own functions
(`scaled_dot_product_attention`, `multi_head_attention_forward`, `grid_sample`, ...) and the reference's names and layouts: no code of
this project's networks and none of its tables takes part. A layer's weights are read, used and dropped, so that memory holds one layer
however large the model is.

This is the one module of the product that imports torch; `verify_torch` imports it when it is needed.

Images are [b, c, h, w]. b batch, n tokens, d width, m masks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config

_GROUPS = 32
_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors whose names begin with `prefix`, as torch tensors of `dtype` ("float32" or "float64").

    rounded_to: the floating-point dtype that their values are rounded to first, if not None.
    """

    tensors: Mapping[str, Any]
    dtype: str
    rounded_to: np.dtype | None = None
    prefix: str = ""

    def under(self, name: str) -> Weights:
        """Those that begin with `name` and a dot, too."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return f"{self.prefix}{name}" in self.tensors

    def get(self, name: str, rows: Sequence[int] | None = None) -> torch.Tensor:
        """The tensor `name`, or these rows of it.

        Raises:
            UserError: there is none.
        """
        if not self.has(name):
            raise UserError(f"missing key {self.prefix}{name}")
        array = np.asarray(self.tensors[f"{self.prefix}{name}"])
        array = array if rows is None else array[np.asarray(rows)]
        if self.rounded_to is not None:
            array = array.astype(self.rounded_to)
        return torch.from_numpy(np.array(array, self.dtype, order="C"))

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """The dense layer `name`, with a bias if it has one."""
        return F.linear(x, self.get(f"{name}.weight"), self.get(f"{name}.bias") if self.has(f"{name}.bias") else None)

    def conv(self, x: torch.Tensor, name: str, *, stride: int = 1, padding: int = 0) -> torch.Tensor:
        """The convolution `name`."""
        return F.conv2d(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"), stride=stride, padding=padding)

    def layer_norm(self, x: torch.Tensor, name: str, epsilon: float = _NORM_EPSILON) -> torch.Tensor:
        """The layer normalisation `name`, over the last dimension."""
        return F.layer_norm(x, x.shape[-1:], self.get(f"{name}.weight"), self.get(f"{name}.bias"), epsilon)


class Outputs(NamedTuple):
    """logits [text tokens, vocab] (of the prompt's tokens, not of the image's); seg_states [m, d]; mask_logits [m, h, w], stride 4."""

    logits: np.ndarray
    seg_states: np.ndarray
    mask_logits: np.ndarray


@torch.no_grad()
def forward(
    weights: Weights,
    config: SegEarthR2Config,
    pixels: np.ndarray,
    pixels_siglip: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    seg_positions: np.ndarray,
) -> Outputs:
    """One image and one prompt.

    Args:
        pixels, pixels_siglip: [h, w, 3] and [v, v, 3], normalised.
        before, after: token ids of the prompt on either side of the image.
        seg_positions: which tokens of `after` ask for a mask.

    Raises:
        UserError: a tensor is missing.
    """
    image, image_siglip = (torch.from_numpy(x.astype(weights.dtype)).permute(2, 0, 1)[None] for x in (pixels, pixels_siglip))
    tokens = image_tokens(weights, config, image_siglip)
    words = [weights.get("model.embed_tokens.weight", ids)[None] for ids in (before, after)]
    hidden = language_model(weights, config, torch.cat([words[0], tokens, words[1]], 1))[0]
    text = torch.cat([hidden[: len(before)], hidden[len(hidden) - len(after) :]])
    seg_states = text[len(before) + torch.from_numpy(np.asarray(seg_positions))]
    features = swin(weights.under("model.vision_tower_mask"), config, image)
    mask_features, maps = pixel_decoder(weights.under("pixel_decoder"), config, features)
    queries = weights.linear(seg_states, "SEG_token_projector")
    masks = mask_decoder(weights.under("predictor"), config, maps, mask_features, queries)
    return Outputs(weights.linear(text, "lm_head").numpy(), seg_states.numpy(), masks[-1].numpy())


def image_tokens(weights: Weights, config: SegEarthR2Config, pixels: torch.Tensor) -> torch.Tensor:
    """[b, 3, v, v] -> [b, n, d]: `hidden_states[select_layer]` of HF's SiglipVisionTransformer, and `mm_projector` (mlp2x_gelu)."""
    siglip = config.siglip
    w = weights.under("model.vision_tower.vision_model")
    x = w.conv(pixels, "embeddings.patch_embedding", stride=siglip.patch_size).flatten(2).transpose(1, 2)
    x = x + w.get("embeddings.position_embedding.weight")
    for i in range(siglip.layers_built):
        layer = w.under(f"encoder.layers.{i}")
        h = layer.layer_norm(x, "layer_norm1", siglip.layer_norm_eps)
        q, k, v = (_heads(layer.linear(h, f"self_attn.{name}_proj"), siglip.num_heads) for name in "qkv")
        x = x + layer.linear(_joined(F.scaled_dot_product_attention(q, k, v)), "self_attn.out_proj")
        h = layer.layer_norm(x, "layer_norm2", siglip.layer_norm_eps)
        x = x + layer.linear(F.gelu(layer.linear(h, "mlp.fc1"), approximate="tanh"), "mlp.fc2")
    if siglip.final_norm:
        x = w.layer_norm(x, "post_layernorm", siglip.layer_norm_eps)
    projector = weights.under("model.mm_projector")
    return projector.linear(F.gelu(projector.linear(x, "0")), "2")


def language_model(weights: Weights, config: SegEarthR2Config, x: torch.Tensor) -> torch.Tensor:
    """[b, n, d] -> [b, n, d] after the final normalisation: HF's PhiModel, with PEFT's adapters where there are any."""
    phi = config.phi
    half = phi.rotary_dim // 2
    frequencies = phi.rope_theta ** (-torch.arange(0, phi.rotary_dim, 2, dtype=x.dtype) / phi.rotary_dim)
    angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()

    def rotate(y: torch.Tensor) -> torch.Tensor:
        a, b, rest = y[..., :half], y[..., half : 2 * half], y[..., 2 * half :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def project(layer: Weights, h: torch.Tensor, name: str) -> torch.Tensor:
        y = layer.linear(h, name)
        if layer.has(f"{name}.lora_A.weight"):
            low = F.linear(h, layer.get(f"{name}.lora_A.weight"))
            y = y + F.linear(low, layer.get(f"{name}.lora_B.weight")) * (phi.lora.alpha / phi.lora.rank)
        return _heads(y, phi.num_heads)

    for i in range(phi.num_layers):
        layer = weights.under(f"model.layers.{i}")
        h = layer.layer_norm(x, "input_layernorm", phi.layer_norm_eps)
        q, k, v = (project(layer, h, f"self_attn.{name}_proj") for name in "qkv")
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        mlp = layer.linear(F.gelu(layer.linear(h, "mlp.fc1"), approximate="tanh"), "mlp.fc2")
        x = x + layer.linear(_joined(y), "self_attn.dense") + mlp
    return weights.layer_norm(x, "model.final_layernorm", phi.layer_norm_eps)


def swin(w: Weights, config: SegEarthR2Config, pixels: torch.Tensor) -> list[torch.Tensor]:
    """[b, 3, h, w] -> res2 to res5, each [b, c, h, w] (`swin_trans.py`)."""
    sizes = config.swin
    p = sizes.patch_size
    pixels = F.pad(pixels, (0, -pixels.shape[3] % p, 0, -pixels.shape[2] % p))
    x = w.layer_norm(w.conv(pixels, "patch_embed.proj", stride=p).permute(0, 2, 3, 1), "patch_embed.norm")
    outputs = []
    for s, depth in enumerate(sizes.depths):
        stage = w.under(f"layers.{s}")
        for b in range(depth):
            block = stage.under(f"blocks.{b}")
            shift = sizes.window // 2 if b % 2 else 0
            x = x + _window_attention(block, block.layer_norm(x, "norm1"), sizes.window, shift, sizes.num_heads[s])
            x = x + block.linear(F.gelu(block.linear(block.layer_norm(x, "norm2"), "mlp.fc1")), "mlp.fc2")
        outputs.append(w.layer_norm(x, f"norm{s}").permute(0, 3, 1, 2))
        if s + 1 < len(sizes.depths):
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
            x = stage.linear(stage.layer_norm(x, "downsample.norm"), "downsample.reduction")
    return outputs


def _window_attention(w: Weights, x: torch.Tensor, size: int, shift: int, heads: int) -> torch.Tensor:
    b, height, width, c = x.shape
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    rows, columns = x.shape[1] // size, x.shape[2] // size

    def windows(y: torch.Tensor) -> torch.Tensor:
        """[b, rows * size, columns * size, k] -> [b * windows, size * size, k]"""
        y = y.reshape(-1, rows, size, columns, size, y.shape[-1])
        return y.transpose(2, 3).reshape(-1, size * size, y.shape[-1])

    blocked = None
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
        region = torch.zeros(1, rows * size, columns * size, 1)
        strips = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
        for number, (down, across) in enumerate((down, across) for down in strips for across in strips):
            region[:, down, across] = number
        region = windows(region)[..., 0]
        blocked = (region[:, None, :] != region[:, :, None]).to(x.dtype) * -100.0  # [windows, t, t]
    q, k, v = (_heads(part, heads) for part in w.linear(windows(x), "attn.qkv").chunk(3, -1))
    place = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    offset = place[:, None] - place[None] + size - 1
    bias = w.get("attn.relative_position_bias_table")[offset[..., 0] * (2 * size - 1) + offset[..., 1]].permute(2, 0, 1)  # [n, t, t]
    if blocked is not None:
        bias = (bias + blocked[:, None]).repeat(b, 1, 1, 1)
    y = w.linear(_joined(F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(len(q), -1, -1, -1))), "attn.proj")
    y = y.reshape(b, rows, columns, size, size, c).transpose(2, 3).reshape(b, rows * size, columns * size, c)
    return y.roll((shift, shift), (1, 2))[:, :height, :width]


def pixel_decoder(w: Weights, config: SegEarthR2Config, features: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """res2 to res5 -> mask features [b, c, h/4, w/4] and maps at strides 32, 16, 8 (`MSDeformAttnPixelDecoder`)."""

    def conv_norm(x: torch.Tensor, name: str, padding: int = 0) -> torch.Tensor:
        x = w.conv(x, f"{name}.0", padding=padding)
        return F.group_norm(x, _GROUPS, w.get(f"{name}.1.weight"), w.get(f"{name}.1.bias"), _NORM_EPSILON)

    maps = [conv_norm(x, f"input_proj.{level}") for level, x in enumerate(reversed(features[1:]))]
    shapes = [(x.shape[2], x.shape[3]) for x in maps]
    level_embed = w.get("transformer.level_embed")
    places = [sine_position(x) + level_embed[level][:, None, None] for level, x in enumerate(maps)]
    tokens, position = (torch.cat([x.flatten(2) for x in part], 2).transpose(1, 2) for part in (maps, places))
    for i in range(config.pixel_decoder.num_layers):
        layer = w.under(f"transformer.encoder.layers.{i}")
        y = _deformable_attention(layer.under("self_attn"), config, tokens + position, tokens, shapes)
        tokens = layer.layer_norm(tokens + y, "norm1")
        y = layer.linear(F.relu(layer.linear(tokens, "linear1")), "linear2")
        tokens = layer.layer_norm(tokens + y, "norm2")
    split = tokens.transpose(1, 2).split([height * width for height, width in shapes], 2)
    maps = [x.unflatten(2, shape) for x, shape in zip(split, shapes, strict=True)]
    lateral = F.relu(conv_norm(features[0], "adapter_1"))
    y = lateral + F.interpolate(maps[-1], lateral.shape[2:], mode="bilinear", align_corners=False)
    return w.conv(F.relu(conv_norm(y, "layer_1", padding=1)), "mask_features"), maps


def _deformable_attention(
    w: Weights, config: SegEarthR2Config, queries: torch.Tensor, tokens: torch.Tensor, shapes: list[tuple[int, int]]
) -> torch.Tensor:
    heads, points, levels = config.pixel_decoder.num_heads, config.pixel_decoder.num_points, len(shapes)
    b, n, c = tokens.shape
    offsets = w.linear(queries, "sampling_offsets").view(b, n, heads, levels, points, 2)
    attention = w.linear(queries, "attention_weights").view(b, n, heads, levels * points).softmax(-1).view(b, n, heads, levels, points)
    centres = []
    for height, width in shapes:
        y, x = (torch.arange(size, dtype=tokens.dtype) + 0.5 for size in (height, width))
        centres.append(torch.cartesian_prod(y / height, x / width).flip(-1))
    extent = torch.tensor([(width, height) for height, width in shapes], dtype=tokens.dtype)
    grid = 2 * (torch.cat(centres)[None, :, None, None, None] + offsets / extent[:, None]) - 1
    values = w.linear(tokens, "value_proj").view(b, n, heads, c // heads).split([height * width for height, width in shapes], 1)
    total = 0.0
    for level, shape in enumerate(shapes):
        plane = values[level].permute(0, 2, 3, 1).reshape(b * heads, c // heads, *shape)
        where = grid[:, :, :, level].transpose(1, 2).reshape(b * heads, n, points, 2)
        sampled = F.grid_sample(plane, where, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = attention[:, :, :, level].transpose(1, 2).reshape(b * heads, 1, n, points)
        total = total + (sampled * weight).sum(-1)
    return w.linear(total.view(b, c, n).transpose(1, 2), "output_proj")


def mask_decoder(
    w: Weights, config: SegEarthR2Config, maps: list[torch.Tensor], mask_features: torch.Tensor, queries: torch.Tensor
) -> list[torch.Tensor]:
    """Maps and mask features of one image, queries [m, c] -> every prediction [m, h, w], the last the final one
    (`MultiScaleMaskedTransformerDecoderForOPTPreTrain`: a mask is a batch row with one query at position zero)."""
    heads, m = config.mask_decoder.num_heads, len(queries)
    level_embed = w.get("level_embed.weight")
    memories = [(x + level_embed[level][:, None, None]).flatten(2).permute(2, 0, 1).expand(-1, m, -1) for level, x in enumerate(maps)]
    positions = [sine_position(x).flatten(2).permute(2, 0, 1) for x in maps]

    def predict(x: torch.Tensor, size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, m, c] -> mask logits [m, h, w], and bool [m * heads, 1, s] of the pixels that the next layer may not see."""
        y = w.layer_norm(x[0], "decoder_norm")
        for i in range(3):
            y = w.linear(y if i == 0 else F.relu(y), f"mask_embed.layers.{i}")
        mask = torch.einsum("mc,chw->mhw", y, mask_features[0])
        resized = F.interpolate(mask[:, None], size, mode="bilinear", align_corners=False).flatten(2)
        blocked = resized.sigmoid() < 0.5
        blocked = blocked & ~blocked.all(-1, keepdim=True)
        return mask, blocked.repeat_interleave(heads, 0)

    x = queries[None]
    mask, blocked = predict(x, maps[0].shape[2:])
    predictions = [mask]
    for i in range(config.mask_decoder.num_layers):
        level = i % len(maps)
        layer = w.under(f"transformer_cross_attention_layers.{i}")
        y = _attention(layer.under("multihead_attn"), x, memories[level] + positions[level], memories[level], heads, blocked)
        x = layer.layer_norm(x + y, "norm")
        layer = w.under(f"transformer_self_attention_layers.{i}")
        x = layer.layer_norm(x + _attention(layer.under("self_attn"), x, x, x, heads, None), "norm")
        layer = w.under(f"transformer_ffn_layers.{i}")
        x = layer.layer_norm(x + layer.linear(F.relu(layer.linear(x, "linear1")), "linear2"), "norm")
        mask, blocked = predict(x, maps[(i + 1) % len(maps)].shape[2:])
        predictions.append(mask)
    return predictions


def _attention(w: Weights, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, blocked: torch.Tensor | None) -> torch.Tensor:
    """torch's MultiheadAttention: q [t, b, c], k and v [s, b, c] -> [t, b, c]."""
    weights = [w.get(name) for name in ("in_proj_weight", "in_proj_bias")]
    out = [w.get(name) for name in ("out_proj.weight", "out_proj.bias")]
    return F.multi_head_attention_forward(
        q, k, v, q.shape[-1], heads, *weights, None, None, False, 0.0, *out, training=False, need_weights=False, attn_mask=blocked
    )[0]


def sine_position(x: torch.Tensor) -> torch.Tensor:
    """Of a map [b, c, h, w]: [1, c, h, w] (`PositionEmbeddingSine`, normalised)."""
    c, height, width = x.shape[1:]
    k = torch.arange(c // 2, dtype=x.dtype)
    divisor = 10000.0 ** (2 * (k // 2) / (c // 2))
    encoded = []
    for size in (height, width):
        angle = (torch.arange(size, dtype=x.dtype) + 1)[:, None] / (size + 1e-6) * (2 * torch.pi) / divisor
        encoded.append(torch.where(torch.arange(c // 2) % 2 == 0, angle.sin(), angle.cos()))
    y = encoded[0].T[:, :, None].expand(-1, -1, width)
    return torch.cat([y, encoded[1].T[:, None, :].expand(-1, height, -1)])[None]


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[b, t, d] -> [b, n, t, h]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(x: torch.Tensor) -> torch.Tensor:
    """[b, n, t, h] -> [b, t, d]"""
    return x.transpose(1, 2).flatten(2)
