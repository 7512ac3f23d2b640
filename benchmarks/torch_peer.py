"""The same prediction in PyTorch, eager: what `benchmarks.predict` is compared with.

The network is `checkpoints.torch_forward`, the reference's forward pass, with its tensors in memory beforehand. Around it stands here what
the reference's `inference` does with `generate`: greedy decoding with a cache that grows by concatenation, as `DynamicCache` of
transformers does. Every mask has its own copy of the image's maps in the mask decoder. Reading the prompt and placing the picture is the
code of this project, so that both sides begin and end alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from segearth_r2_jax.checkpoints import torch_forward
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map
from segearth_r2_jax.inputs.conversation import IMAGE_SLOT, encode_prompt, expand
from segearth_r2_jax.inputs.image_processing import normalize_for_siglip, normalize_for_swin, squash
from segearth_r2_jax.inputs.letterbox import Letterbox
from segearth_r2_jax.inputs.tokenizer import Tokenizer
from segearth_r2_jax.models.binding import Params
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config

Cache = list[tuple[torch.Tensor, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class LoadedWeights(torch_forward.Weights):
    """Tensors that are torch's already."""

    def get(self, name: str, rows: Sequence[int] | None = None) -> torch.Tensor:
        tensor = self.tensors[f"{self.prefix}{name}"]
        return tensor if rows is None else tensor[torch.as_tensor(np.asarray(rows))]


class Prediction(NamedTuple):
    """ids int [t]; masks: bool [h, w] on the image's pixels, one per [SEG]."""

    ids: list[int]
    masks: list[np.ndarray]


class Prepared(NamedTuple):
    """What both peers begin with. row: ids of the expanded prompt [t]; framed, squashed: normalised [1, 3, h, w] for Swin and SigLIP."""

    letterbox: Letterbox
    row: np.ndarray
    framed: torch.Tensor
    squashed: torch.Tensor


def prepared(config: SegEarthR2Config, tokenizer: Tokenizer, template: str, image: np.ndarray, instruction: str) -> Prepared:
    """Of an image uint8 [h, w, 3] and an instruction."""
    letterbox = Letterbox(*image.shape[:2], config.image_size)
    row = expand(encode_prompt(tokenizer, template, instruction), config.siglip.num_tokens).token_ids
    framed = _batch(normalize_for_swin(letterbox.place_image(image)))
    return Prepared(letterbox, row, framed, _batch(normalize_for_siglip(squash(image, config.siglip.image_size))))


class TorchPeer:
    """float32, on the CPU."""

    def __init__(self, config: SegEarthR2Config, params: Params, tokenizer: Tokenizer, template: str):
        tensors: Mapping[str, torch.Tensor] = {
            name: torch.from_numpy(np.array(array, np.float32, order="C")) for name, array in key_map(config).to_reference(params)
        }
        self._weights = LoadedWeights(tensors, "float32")
        self._layers = [self._weights.under(f"model.layers.{i}") for i in range(config.phi.num_layers)]
        self._config, self._tokenizer, self._template = config, tokenizer, template
        self._seg = tokenizer.seg_id
        half = config.phi.rotary_dim // 2
        frequencies = config.phi.rope_theta ** (-torch.arange(0, 2 * half, 2, dtype=torch.float32) / config.phi.rotary_dim)
        angles = torch.arange(4096, dtype=torch.float32)[:, None] * frequencies
        self._cos, self._sin = angles.cos(), angles.sin()

    @torch.inference_mode()
    def predict(self, image: np.ndarray, instruction: str, max_new_tokens: int) -> Prediction:
        """uint8 [h, w, 3] and words -> what `Segmenter.segment` gives."""
        letterbox, row, framed, squashed = prepared(self._config, self._tokenizer, self._template, image, instruction)
        ids, states = self.generate(row, torch_forward.image_tokens(self._weights, self._config, squashed), max_new_tokens)
        w, config = self._weights, self._config
        features = torch_forward.swin(w.under("model.vision_tower_mask"), config, framed)
        mask_features, maps = torch_forward.pixel_decoder(w.under("pixel_decoder"), config, features)
        if not states:
            return Prediction(ids, [])
        queries = w.linear(torch.cat(states), "SEG_token_projector")
        logits = torch_forward.mask_decoder(w.under("predictor"), config, maps, mask_features, queries)[-1].numpy()
        return Prediction(ids, [letterbox.restore(mask) > 0 for mask in logits])

    def generate(self, row: np.ndarray, image_tokens: torch.Tensor, max_new_tokens: int) -> tuple[list[int], list[torch.Tensor]]:
        """The expanded prompt's ids [t] and image tokens [1, n, d] -> the answer's ids, and the state [1, d] of every [SEG]."""
        table = self._weights.get("model.embed_tokens.weight")
        seen = row == IMAGE_SLOT
        start = int(seen.argmax())
        before, after = (table[torch.from_numpy(part.astype(np.int64))][None] for part in (row[:start], row[start + int(seen.sum()) :]))
        x, cache, position = torch.cat([before, image_tokens, after], 1), [], 0
        ids: list[int] = []
        states: list[torch.Tensor] = []
        while True:
            hidden = self._step(x, cache, position)
            if ids and ids[-1] == self._seg:
                states.append(hidden)
            # One step more than there are tokens gives a [SEG] at the limit its state.
            if len(ids) == max_new_tokens:
                break
            position += x.shape[1]
            ids.append(int(self._weights.linear(hidden, "lm_head")[0, : self._config.phi.embed_rows].argmax()))
            if ids[-1] == self._tokenizer.end_id or (len(ids) == max_new_tokens and ids[-1] != self._seg):
                break
            x = table[ids[-1]][None, None]
        return ids, states

    def _step(self, x: torch.Tensor, cache: Cache, position: int) -> torch.Tensor:
        """[1, t, d] at `position` and after it -> the last token's state [1, d]; the cache is extended."""
        phi = self._config.phi
        half, t = phi.rotary_dim // 2, x.shape[1]
        cos, sin = self._cos[position : position + t], self._sin[position : position + t]

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.unflatten(-1, (phi.num_heads, -1)).transpose(1, 2)

        def rotated(y: torch.Tensor) -> torch.Tensor:
            a, b, rest = y[..., :half], y[..., half : 2 * half], y[..., 2 * half :]
            return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

        for i, layer in enumerate(self._layers):
            h = layer.layer_norm(x, "input_layernorm", phi.layer_norm_eps)
            q, k, v = (heads(layer.linear(h, f"self_attn.{name}_proj")) for name in "qkv")
            q, k = rotated(q), rotated(k)
            if position:
                k, v = torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)
                cache[i] = (k, v)
            else:
                cache.append((k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=not position)
            mlp = layer.linear(F.gelu(layer.linear(h, "mlp.fc1"), approximate="tanh"), "mlp.fc2")
            x = x + layer.linear(y.transpose(1, 2).flatten(2), "self_attn.dense") + mlp
        return self._weights.layer_norm(x[:, -1], "model.final_layernorm", phi.layer_norm_eps)


def _batch(pixels: np.ndarray) -> torch.Tensor:
    """[h, w, 3] -> [1, 3, h, w]"""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]
