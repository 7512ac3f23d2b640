"""The same prediction by `transformers`' PyTorch modules, put together as the reference does: what `benchmarks.predict` is compared with.

SigLIP, Phi and its `generate`, Swin and Mask2Former's decoders are transformers' own; what stands here is the reference's `inference`:
the prompt's embeddings with the image's in their place, greedy generation that keeps the hidden states, a query from the state of each
[SEG], and a copy of the image's maps for each of them. Reading the prompt and placing the picture is the code of this project, so that
both sides begin and end alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention

from benchmarks import language_peer, mask_branch_peer
from benchmarks.torch_peer import Prediction, prepared
from segearth_r2_jax.checkpoints.key_rules import KeyMap, Rule
from segearth_r2_jax.inputs.conversation import IMAGE_SLOT
from segearth_r2_jax.inputs.tokenizer import Tokenizer
from segearth_r2_jax.models.binding import Params
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config


class TransformersPeer:
    """float32, on the CPU. `attention` is transformers' name of an implementation, "eager" or "sdpa"."""

    def __init__(self, config: SegEarthR2Config, params: Params, tokenizer: Tokenizer, template: str, *, attention: str):
        """The biases of the pixel decoder's lateral and output convolution, which Mask2Former does not have, must be 0."""
        self._config, self._tokenizer, self._template = config, tokenizer, template
        implementation = {"attn_implementation": attention}
        self._siglip = language_peer.torch_siglip(config.siglip, **implementation)
        self._phi = language_peer.torch_phi(config.phi, end_id=tokenizer.end_id, **implementation)
        self._projector = torch.nn.Sequential(
            torch.nn.Linear(config.siglip.hidden_size, config.phi.hidden_size),
            torch.nn.GELU(),
            torch.nn.Linear(config.phi.hidden_size, config.phi.hidden_size),
        )
        self._swin = mask_branch_peer.torch_swin(config.swin, config.image_size, **implementation)
        self._pixel_decoder = _with_points(mask_branch_peer.torch_pixel_decoder(config.pixel_decoder), config)
        self._mask_decoder = mask_branch_peer.torch_mask_decoder(config.mask_decoder)
        self._seg_projector = torch.nn.Linear(config.phi.hidden_size, config.mask_decoder.hidden_dim)
        rules = language_peer.siglip_rules(config.siglip, self._siglip, final_norm=config.siglip.final_norm)
        _load(self._siglip, rules, params["siglip"])
        _load(self._phi, language_peer.phi_rules(config.phi), params["phi"])
        for module, of in ((self._projector[0], params["projector"]["fc1"]), (self._projector[2], params["projector"]["fc2"])):
            _load_linear(module, of)
        _load_linear(self._seg_projector, params["seg_projector"])
        _load(self._swin, mask_branch_peer.swin_rules(config.swin), params["swin"])
        _load(self._pixel_decoder, mask_branch_peer.pixel_decoder_rules(config.pixel_decoder), params["pixel_decoder"])
        mask_branch_peer.as_in_segearth_r2(self._pixel_decoder)
        _load(self._mask_decoder, mask_branch_peer.mask_decoder_rules(config.mask_decoder), params["mask_decoder"])

    @torch.inference_mode()
    def predict(self, image: np.ndarray, instruction: str, max_new_tokens: int) -> Prediction:
        """uint8 [h, w, 3] and words -> what `Segmenter.segment` gives."""
        letterbox, row, framed, squashed = prepared(self._config, self._tokenizer, self._template, image, instruction)
        tower = self._siglip(squashed, output_hidden_states=True)
        embeds = self._phi.get_input_embeddings()(torch.from_numpy(np.where(row == IMAGE_SLOT, 0, row).astype(np.int64)))
        embeds[torch.from_numpy(row == IMAGE_SLOT)] = self._projector(tower.hidden_states[self._config.siglip.select_layer])[0]
        answer = self._phi.generate(
            inputs_embeds=embeds[None],
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        ids = answer.sequences[0].tolist()
        # Step i + 1 sees word i.
        states = [step[-1][0, -1] for token, step in zip(ids, answer.hidden_states[1:], strict=False) if token == self._tokenizer.seg_id]
        if ids[-1] == self._tokenizer.seg_id:
            # As here, and unlike the reference, a [SEG] at the limit is not lost: one more step gives it its state.
            last = self._phi.get_input_embeddings()(torch.tensor([ids[-1:]]))
            states.append(self._phi.model(inputs_embeds=last, past_key_values=answer.past_key_values).last_hidden_state[0, -1])
        if not states:
            return Prediction(ids, [])
        features = self._pixel_decoder(
            list(self._swin(framed).feature_maps), output_hidden_states=False, output_attentions=False, return_dict=True
        )
        queries = self._seg_projector(torch.stack(states))
        logits = mask_branch_peer.decode(self._mask_decoder, features.multi_scale_features, features.mask_features, queries)[-1]
        return Prediction(ids, [letterbox.restore(mask) > 0 for mask in logits[:, 0].numpy()])


def _with_points(decoder: torch.nn.Module, config: SegEarthR2Config) -> torch.nn.Module:
    """The pixel decoder with the configured number of points, where transformers' has 4."""
    sizes = config.pixel_decoder
    for layer in decoder.encoder.layers:
        layer.self_attn = Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(
            embed_dim=sizes.conv_dim, num_heads=sizes.num_heads, n_levels=3, n_points=sizes.num_points
        )
    return decoder.eval()


def _load(module: torch.nn.Module, rules: list[Rule], params: Params) -> None:
    """Our parameters as the module's; what it has beyond them keeps its values and does not matter."""
    tensors: Mapping[str, np.ndarray] = dict(KeyMap(rules, params).to_reference(params))
    tensors = {part: values for name, array in tensors.items() for part, values in _unpacked(name, array)}
    own = module.state_dict()
    named = {name: torch.from_numpy(np.array(array, np.float32, order="C")) for name, array in tensors.items() if name in own}
    if lost := [name for name in tensors.keys() - own.keys() if tensors[name].any()]:
        raise ValueError(f"transformers has no place for {lost}, which is not 0")
    module.load_state_dict(named, strict=False)


def _unpacked(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The inverse of `mask_branch_peer.pack_qkv` for one tensor."""
    if ".attention.qkv." not in name:
        return [(name, array)]
    return [(name.replace("qkv", f"{part}_proj"), values) for part, values in zip("qkv", np.split(array, 3), strict=True)]


def _load_linear(module: torch.nn.Linear, params: Params) -> None:
    module.weight.data = torch.from_numpy(np.array(np.asarray(params["kernel"], np.float32).T, order="C"))
    module.bias.data = torch.from_numpy(np.array(params["bias"], np.float32))
