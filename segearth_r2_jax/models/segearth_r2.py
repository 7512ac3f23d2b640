"""SegEarth-R2 (Xin et al., CVPR 2026): an image and an instruction in; words and one mask per `[SEG]` token out.

Mirrors `SegEarthR2` of the reference (`model/language_model/llava_phi.py`). A SigLIP tower and a projector give image tokens, which are
spliced into the prompt of Phi-2; the final hidden state of each `[SEG]` token, projected, is one query of a Mask2Former-style decoder
over a Swin backbone. An image passes each tower once, whatever the number of its masks.

b batch, t tokens, n image tokens, m masks, d language width, c mask width, p predictions (initial + one per decoder layer).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from segearth_r2_jax import dataclass_io
from segearth_r2_jax.models.layers import Linear, LoraConfig, split_or_none
from segearth_r2_jax.models.mask_decoder import MaskDecoder, MaskDecoderConfig
from segearth_r2_jax.models.multimodal_prompt import splice
from segearth_r2_jax.models.phi import Phi, PhiConfig
from segearth_r2_jax.models.pixel_decoder import PixelDecoder, PixelDecoderConfig, PixelDecoderOutput
from segearth_r2_jax.models.projector import Projector
from segearth_r2_jax.models.siglip import Siglip, SiglipConfig
from segearth_r2_jax.models.swin import Swin, SwinConfig


@dataclasses.dataclass(frozen=True)
class SegEarthR2Config:
    """Sizes of every part. `image_size` is the side of the letterboxed square that the mask branch sees, in pixels."""

    siglip: SiglipConfig
    phi: PhiConfig
    swin: SwinConfig
    pixel_decoder: PixelDecoderConfig
    mask_decoder: MaskDecoderConfig
    image_size: int = 1024

    @classmethod
    def segearth_r2_3b(cls, *, embed_rows: int = 51200, lora: LoraConfig | None = None, remat: str = "full") -> SegEarthR2Config:
        """The published sizes: SigLIP-so400m/14-384, Phi-2, Swin-B, Mask2Former decoders; 3,325 M parameters."""
        return cls(
            siglip=SiglipConfig.so400m_384(),
            phi=PhiConfig.phi_2(embed_rows=embed_rows, lora=lora, remat=remat),
            swin=SwinConfig.base(),
            pixel_decoder=PixelDecoderConfig.base(),
            mask_decoder=MaskDecoderConfig.base(),
        )

    @classmethod
    def tiny(cls, *, vocab_size: int, image_size: int = 128) -> SegEarthR2Config:
        """1.5 M parameters: learns drawn scenes in minutes on a laptop's CPU; every part of the full model is there."""
        swin = SwinConfig.tiny(embed_dim=24, window=4)
        return cls(
            siglip=SiglipConfig.tiny(image_size=96, hidden_size=64, intermediate_size=128, num_layers=2),
            phi=PhiConfig.tiny(vocab_size=vocab_size, hidden_size=96, intermediate_size=288, num_layers=2, num_heads=6),
            swin=swin,
            pixel_decoder=PixelDecoderConfig.tiny(in_channels=swin.channels, num_layers=1, num_points=2),
            mask_decoder=MaskDecoderConfig.tiny(),
            image_size=image_size,
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SegEarthR2Config:
        """Raises UserError on an unknown or missing field."""
        return dataclass_io.from_dict(cls, values, "model")


class SegEarthR2Output(NamedTuple):
    """What a training step needs of a forward pass.

    hidden: [b, t, d], the language model's last states, of which `Phi.logits` makes next-token logits; mask_logits: [p, b, m, h, w],
    stride 4, the last prediction is the final one; attention_rows: [layers, b, m, n] attention of each [SEG] row to the image tokens,
    summed over heads, or None.
    """

    hidden: jax.Array
    mask_logits: jax.Array
    attention_rows: jax.Array | None


class SegEarthR2(nnx.Module):
    """The whole network. `__call__` is the training pass; inference calls the parts (see `inference.segment`)."""

    def __init__(self, config: SegEarthR2Config, *, rngs: nnx.Rngs):
        self.config = config
        self.siglip = Siglip(config.siglip, rngs=rngs)
        self.projector = Projector(config.siglip.hidden_size, config.phi.hidden_size, rngs=rngs)
        self.phi = Phi(config.phi, rngs=rngs)
        self.swin = Swin(config.swin, rngs=rngs)
        self.pixel_decoder = PixelDecoder(config.pixel_decoder, rngs=rngs)
        self.mask_decoder = MaskDecoder(config.mask_decoder, rngs=rngs)
        self.seg_projector = Linear(config.phi.hidden_size, config.mask_decoder.hidden_dim, axes=("embed", None), rngs=rngs)

    def image_tokens(self, pixels_siglip: jax.Array) -> jax.Array:
        """Normalised [b, v, v, 3] -> [b, n, d]."""
        return self.projector(self.siglip(pixels_siglip))

    def prompt_embeddings(self, token_ids: jax.Array, image_tokens: jax.Array, image_start: jax.Array) -> jax.Array:
        """Expanded ids [b, t] and image tokens [b, n, d] -> the language model's input [b, t, d]; ids below 0 have no word embedding."""
        words = self.phi.embed(jnp.maximum(token_ids, 0)).astype(image_tokens.dtype)
        return splice(words, token_ids, image_tokens, image_start)

    def pixel_features(self, pixels: jax.Array, *, rng: jax.Array | None = None) -> PixelDecoderOutput:
        """Normalised, letterboxed [b, s, s, 3] -> the mask features and maps that all masks of the image share."""
        return self.pixel_decoder(self.swin(pixels, rng=rng))

    def decode_masks(self, features: PixelDecoderOutput, seg_states: jax.Array) -> jax.Array:
        """[SEG] states [b, m, d] -> mask logits [p, b, m, h, w]."""
        return self.mask_decoder(features.multi_scale, features.mask_features, self.seg_projector(seg_states))

    def final_masks(self, features: PixelDecoderOutput, seg_states: jax.Array) -> jax.Array:
        """[SEG] states [b, m, d] -> mask logits [b, m, h, w] of the last prediction."""
        return self.mask_decoder.final_masks(features.multi_scale, features.mask_features, self.seg_projector(seg_states))

    def __call__(
        self,
        *,
        pixels: jax.Array,
        pixels_siglip: jax.Array,
        token_ids: jax.Array,
        attention_mask: jax.Array,
        image_start: jax.Array,
        seg_positions: jax.Array,
        supervise_attention: bool = True,
        rng: jax.Array | None = None,
    ) -> SegEarthR2Output:
        """The training pass over the arrays of a batch (see `data_pipeline.loader`), images already normalised.

        `rng` switches on stochastic depth and dropout where the configuration has them.
        """
        phi_rng, swin_rng = split_or_none(rng, 2)
        image_tokens = self.image_tokens(pixels_siglip)
        embeds = self.prompt_embeddings(token_ids, image_tokens, image_start)
        language = self.phi(
            embeds,
            attention_mask,
            query_rows=seg_positions if supervise_attention else None,
            key_columns=(image_start, image_tokens.shape[1]),
            rng=phi_rng,
        )
        seg_states = jnp.take_along_axis(language.hidden, seg_positions[..., None], axis=1)
        mask_logits = self.decode_masks(self.pixel_features(pixels, rng=swin_rng), seg_states)
        return SegEarthR2Output(language.hidden, mask_logits, language.attention_rows)
