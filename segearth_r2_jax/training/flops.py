"""The floating-point operations of a step, counted from the sizes of the model: the numerator of model FLOP utilisation.

As in appendix B of PaLM (Chowdhery et al. 2022) only matrix products count, recomputation does not, and causal attention counts as if every
token saw every other. The network is followed here with one bit per activation, "does a gradient have to reach it", since what is frozen
costs less: see FORMULA.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config
from segearth_r2_jax.models.siglip import SiglipConfig

FORMULA = """\
FLOPs = sum over the matrix products [m, k] x [k, n] of 2 m k n (1 + operands that a gradient has to reach)
  counted: dense layers and low-rank adapters, convolutions (k = window x input channels), attention (scores and weighted sum, all tokens
  with all, window by window in Swin, mask queries with all pixels of a level), the attention rows of [SEG], the LM head, mask predictions
  (at stride 4, and at the level that a layer of the mask decoder looks at)
  not counted: recomputation, the loss, interpolation (deformable and point sampling, resizing), normalisation and other element-wise work
  a gradient has to reach a trained parameter, and an activation that a trained parameter lies before; stacked layers count alike
  MFU = FLOPs per step / (seconds per step x devices x peak bfloat16 FLOP/s of a device)"""


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """FLOPs by part of the model ("siglip", "projector", "phi", "lm_head", "seg_projector", "swin", "pixel_decoder", "mask_decoder")."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def training_flops(
    model: SegEarthR2Config, trainable: tuple[str, ...], *, batch: int, tokens: int, masks: int, supervise_attention: bool = True
) -> FlopCount:
    """One step: forward, and backward as far as the parameters that `trainable` (regular expressions, see `RunConfig`) trains need it.

    Args:
        batch: images of the step, on all devices together.
        tokens: length of the token rows. masks: mask slots per image.
        supervise_attention: the attention rows of the [SEG] tokens are computed.
    """
    trace = _Trace(trainable)
    images = trace.image_tokens(model, batch)
    hidden = trace.language(model, images, batch, tokens, rows=masks if supervise_attention else 0)
    trace.linear("lm_head", "phi/lm_head", hidden, batch * tokens, model.phi.hidden_size, model.phi.vocab_size)
    trace.mask_decoder(model, hidden, *trace.pixel_features(model, batch), batch, masks, predictions=model.mask_decoder.num_layers + 1)
    return FlopCount(trace.parts)


def inference_flops(
    model: SegEarthR2Config, *, batch: int, prefix_tokens: int, prompt_tokens: int, new_tokens: int, masks: int
) -> dict[str, FlopCount]:
    """What "encode", "answer" and "masks" take for `batch` prompts, each about its own image (see `inference.segment`).

    A prompt has `prefix_tokens` up to the image's last and `prompt_tokens` after it; the answer has `new_tokens`, the most that the cache
    has room for. What follows the prefix attends to the whole cache, as the compiled loop does, and needs the logits of one position per
    row and token; `masks` masks of each image are decoded in one pass.
    """
    encode, answer, decoder = _Trace(()), _Trace(()), _Trace(())
    encode.image_tokens(model, batch)
    encode.language(model, False, batch, prefix_tokens, rows=0)
    encode.pixel_features(model, batch)
    slots = prefix_tokens + prompt_tokens + new_tokens
    for tokens in (prompt_tokens, *[1] * (new_tokens - 1)):
        answer.language(model, False, batch, tokens, rows=0, keys=slots)
    answer.linear("lm_head", "phi/lm_head", False, batch * new_tokens, model.phi.hidden_size, model.phi.vocab_size)
    decoder.mask_decoder(model, False, False, False, batch, masks, predictions=1)
    return {"encode": FlopCount(encode.parts), "answer": FlopCount(answer.parts), "masks": FlopCount(decoder.parts)}


class _Trace:
    """Adds up products while it follows the network. An activation is a bool: whether a gradient has to reach it."""

    def __init__(self, trainable: tuple[str, ...]):
        self._trainable = tuple(re.compile(pattern) for pattern in trainable)
        self.parts: dict[str, float] = {}

    def trained(self, *paths: str) -> bool:
        return any(pattern.search(path) for pattern in self._trainable for path in paths)

    def product(self, part: str, m: int, k: int, n: int, left: bool, right: bool) -> bool:
        self.parts[part] = self.parts.get(part, 0.0) + 2.0 * m * k * n * (1 + left + right)
        return left or right

    def linear(self, part: str, path: str, x: bool, m: int, k: int, n: int, lora: LoraConfig | None = None) -> bool:
        """A dense layer or a convolution; biases that a network does not have are trained by no pattern that matters."""
        y = self.product(part, m, k, n, x, self.trained(f"{path}/kernel"))
        if lora is not None:
            low = self.product(part, m, k, lora.rank, x, self.trained(f"{path}/lora_a"))
            y |= self.product(part, m, lora.rank, n, low, self.trained(f"{path}/lora_b"))
        return y or self.trained(f"{path}/bias")

    def norm(self, path: str, x: bool) -> bool:
        return x or self.trained(f"{path}/scale", f"{path}/bias")

    def attention(self, part: str, batch: int, queries: int, keys: int, width: int, q: bool, k: bool, v: bool) -> bool:
        """All heads together: `width` is that of all of them."""
        scores = self.product(part, batch * queries, width, keys, q, k)
        return self.product(part, batch * queries, keys, width, scores, v)

    def image_tokens(self, model: SegEarthR2Config, batch: int) -> bool:
        c = model.siglip
        d, rows = c.hidden_size, batch * c.num_tokens
        x = self.linear("siglip", "siglip/patch_embedding", False, rows, 3 * c.patch_size**2, d)
        x |= self.trained("siglip/position_embedding")
        if c.layers_built:
            x = self._stacked("siglip/layers", c.layers_built, x, lambda path, x: self._siglip_layer(path, x, c, batch))
        if c.final_norm:
            x = self.norm("siglip/post_layernorm", x)
        x = self.linear("projector", "projector/fc1", x, rows, d, model.phi.hidden_size)
        return self.linear("projector", "projector/fc2", x, rows, model.phi.hidden_size, model.phi.hidden_size)

    def _stacked(self, path: str, count: int, x: bool, layer: Callable[[str, bool], bool]) -> bool:
        """Layers of one form in a loop. A gradient passes through all of them if it enters or begins in one."""
        before = dict(self.parts)
        x = layer(path, x)
        self.parts = dict(before)
        x = layer(path, x)
        for part, flops in self.parts.items():
            self.parts[part] = before.get(part, 0.0) + count * (flops - before.get(part, 0.0))
        return x

    def _siglip_layer(self, path: str, x: bool, c: SiglipConfig, batch: int) -> bool:
        d, rows, attn = c.hidden_size, batch * c.num_tokens, f"{path}/self_attn"
        h = self.norm(f"{path}/layer_norm1", x)
        q, k, v = (self.linear("siglip", f"{attn}/{name}", h, rows, d, d) for name in ("q_proj", "k_proj", "v_proj"))
        y = self.attention("siglip", batch, c.num_tokens, c.num_tokens, d, q, k, v)
        x |= self.linear("siglip", f"{attn}/out_proj", y, rows, d, d)
        h = self.norm(f"{path}/layer_norm2", x)
        h = self.linear("siglip", f"{path}/mlp/fc1", h, rows, d, c.intermediate_size)
        return self.linear("siglip", f"{path}/mlp/fc2", h, rows, c.intermediate_size, d) or x

    def language(self, model: SegEarthR2Config, images: bool, batch: int, tokens: int, *, rows: int, keys: int | None = None) -> bool:
        """`rows`: attention rows returned; `keys`: slots of the cache, None where the tokens attend to each other."""
        c = model.phi
        d, m = c.hidden_size, batch * tokens

        def layer(path: str, x: bool) -> bool:
            attn = f"{path}/self_attn"
            h = self.norm(f"{path}/input_layernorm", x)
            q = self.linear("phi", f"{attn}/q_proj", h, m, d, d, c.lora)
            k = self.linear("phi", f"{attn}/k_proj", h, m, d, d)
            v = self.linear("phi", f"{attn}/v_proj", h, m, d, d, c.lora)
            y = self.attention("phi", batch, tokens, tokens if keys is None else keys, d, q, k, v)
            y = self.linear("phi", f"{attn}/dense", y, m, d, d)
            self.product("phi", batch * rows, d, tokens, q, k)
            h = self.linear("phi", f"{path}/mlp/fc1", h, m, d, c.intermediate_size)
            return self.linear("phi", f"{path}/mlp/fc2", h, m, c.intermediate_size, d) or y or x

        x = images or self.trained("phi/embed_tokens/table")
        return self.norm("phi/final_layernorm", self._stacked("phi/layers", c.num_layers, x, layer))

    def pixel_features(self, model: SegEarthR2Config, batch: int) -> tuple[bool, bool]:
        """Backbone and pixel decoder: the multi-scale maps and the mask features."""
        maps = self._swin(model, batch)
        c = model.pixel_decoder
        part, d = "pixel_decoder", c.conv_dim
        sides = _sides(model)
        tokens = False
        for i, level in enumerate((3, 2, 1)):
            name = f"{part}/input_proj/{i}"
            x = self.linear(part, f"{name}/conv", maps[level], batch * sides[level] ** 2, c.in_channels[level], d)
            tokens |= self.norm(f"{name}/norm", x)
        position = self.trained(f"{part}/level_embed")
        m = batch * sum(side**2 for side in sides[1:])
        samples = c.num_heads * 3 * c.num_points

        def layer(path: str, x: bool) -> bool:
            attn, query = f"{path}/self_attn", x or position
            y = self.linear(part, f"{attn}/sampling_offsets", query, m, d, 2 * samples)
            y |= self.linear(part, f"{attn}/attention_weights", query, m, d, samples)
            y |= self.linear(part, f"{attn}/value_proj", x, m, d, d)
            x = self.norm(f"{path}/norm1", self.linear(part, f"{attn}/output_proj", y, m, d, d) or x)
            h = self.linear(part, f"{path}/linear1", x, m, d, c.ffn_dim)
            return self.norm(f"{path}/norm2", self.linear(part, f"{path}/linear2", h, m, c.ffn_dim, d) or x)

        scales = self._stacked(f"{part}/layers", c.num_layers, tokens, layer)
        m = batch * sides[0] ** 2
        x = self.linear(part, f"{part}/lateral/conv", maps[0], m, c.in_channels[0], d)
        x = self.norm(f"{part}/lateral/norm", x) or scales
        x = self.norm(f"{part}/output/norm", self.linear(part, f"{part}/output/conv", x, m, 9 * d, d))
        return scales, self.linear(part, f"{part}/mask_features", x, m, d, c.mask_dim)

    def _swin(self, model: SegEarthR2Config, batch: int) -> list[bool]:
        c = model.swin
        sides = _sides(model)
        x = self.linear("swin", "swin/patch_embed/proj", False, batch * sides[0] ** 2, 3 * c.patch_size**2, c.embed_dim)
        x = self.norm("swin/patch_embed/norm", x)
        maps = []
        for i, (side, d, depth) in enumerate(zip(sides, c.channels, c.depths, strict=True)):
            windows = batch * math.ceil(side / c.window) ** 2
            for j in range(depth):
                x = self._swin_block(f"swin/stages/{i}/blocks/{j}", x, windows, c.window**2, d, batch * side**2, c.mlp_ratio)
            maps.append(self.norm(f"swin/norms/{i}", x))
            if i + 1 < len(sides):
                down = f"swin/stages/{i}/downsample"
                x = self.linear("swin", f"{down}/reduction", self.norm(f"{down}/norm", x), batch * sides[i + 1] ** 2, 4 * d, 2 * d)
        return maps

    def _swin_block(self, path: str, x: bool, windows: int, size: int, d: int, m: int, ratio: int) -> bool:
        """`windows` windows of `size` tokens, the padding of the map included; `m` pixels without it."""
        attn = f"{path}/attn"
        qkv = self.linear("swin", f"{attn}/qkv", self.norm(f"{path}/norm1", x), windows * size, d, 3 * d)
        scores = self.product("swin", windows * size, d, size, qkv, qkv) or self.trained(f"{attn}/relative_position_bias_table")
        y = self.product("swin", windows * size, size, d, scores, qkv)
        x |= self.linear("swin", f"{attn}/proj", y, windows * size, d, d)
        h = self.linear("swin", f"{path}/mlp/fc1", self.norm(f"{path}/norm2", x), m, d, ratio * d)
        return self.linear("swin", f"{path}/mlp/fc2", h, m, ratio * d, d) or x

    def mask_decoder(
        self, model: SegEarthR2Config, hidden: bool, scales: bool, features: bool, batch: int, masks: int, *, predictions: int
    ) -> None:
        """`predictions`: how many of the predictions, counted from the last, are made at stride 4."""
        c, part = model.mask_decoder, "mask_decoder"
        d, m, sides = c.hidden_dim, batch * masks, _sides(model)
        x = self.linear("seg_projector", "seg_projector", hidden, m, model.phi.hidden_size, d)
        memory = scales or self.trained(f"{part}/level_embed")

        def embedding(x: bool) -> bool:
            x = self.norm(f"{part}/decoder_norm", x)
            for i, width in enumerate((d, d, c.mask_dim)):
                x = self.linear(part, f"{part}/mask_embed/{i}", x, m, d, width)
            return x

        embeddings = [embedding(x)]
        for i in range(c.num_layers):
            path = f"{part}/layers/{i}"
            cross, alone, ffn = f"{path}/cross_attention", f"{path}/self_attention", f"{path}/ffn"
            pixels = sides[3 - i % 3] ** 2
            k = self.linear(part, f"{cross}/k_proj", memory, batch * pixels, d, d)
            v = self.linear(part, f"{cross}/v_proj", memory, batch * pixels, d, d)
            q = self.linear(part, f"{cross}/q_proj", x, m, d, d)
            self.product(part, m, c.mask_dim, pixels, False, False)
            y = self.attention(part, batch, masks, pixels, d, q, k, v)
            x = self.norm(f"{cross}_norm", self.linear(part, f"{cross}/out_proj", y, m, d, d) or x)
            y = self.linear(part, f"{alone}/out_proj", self.linear(part, f"{alone}/v_proj", x, m, d, d), m, d, d)
            x = self.norm(f"{alone}_norm", y or x)
            h = self.linear(part, f"{ffn}/linear1", x, m, d, c.ffn_dim)
            x = self.norm(f"{path}/ffn_norm", self.linear(part, f"{ffn}/linear2", h, m, c.ffn_dim, d) or x)
            embeddings.append(embedding(x))
        # One product of all predictions.
        self.product(part, predictions * m, c.mask_dim, sides[0] ** 2, any(embeddings), features)


def _sides(model: SegEarthR2Config) -> list[int]:
    """Side of the maps res2 to res5, in pixels."""
    sides = [math.ceil(model.image_size / model.swin.patch_size)]
    for _ in model.swin.depths[1:]:
        sides.append(math.ceil(sides[-1] / 2))
    return sides
