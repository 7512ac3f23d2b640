"""The mask branch at its real sizes on a processor: an image of 1024 pixels and [SEG] states in, masks out.

    python -m benchmarks.mask_branch [--rounds 3] [--no-parts] [--compile] [--output benchmarks/results/mask_branch.json]

This package (Swin-B, pixel decoder, mask decoder as in inference: the last prediction only) against `transformers`' PyTorch modules of the
same sizes with the same weights, in float32 and in one process. PyTorch repeats the maps of an image for every mask, as the reference does.
Outputs are compared first; then both are timed in turns, for 1 and for 8 masks, with PyTorch's eager attention and with its
`scaled_dot_product_attention` in the backbone (the decoders have one form), and compiled with `torch.compile` if `--compile` is given. Then
the parts alone. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch

from benchmarks import mask_branch_peer as peer
from benchmarks.machine import machine
from benchmarks.timing import in_turns
from segearth_r2_jax.checkpoints.key_rules import KeyMap, Rule
from segearth_r2_jax.inference.segment import final_masks
from segearth_r2_jax.models.binding import Params, abstract_module, bind, init_params, unflatten
from segearth_r2_jax.models.mask_decoder import MaskDecoderConfig
from segearth_r2_jax.models.pixel_decoder import PixelDecoderConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config
from segearth_r2_jax.models.swin import SwinConfig

RESULTS = Path(__file__).resolve().parent / "results" / "mask_branch.json"
SIZE = 1024
QUERIES = (1, 8)
# Of float32 through some 40 layers, in relation to the largest value.
TOLERANCE = 2e-3


class Ours:
    """The network of this package, jitted in three parts and as a whole; the language side is tiny and does not run."""

    def __init__(self, config: SegEarthR2Config, params: Params):
        abstract = abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))
        self._params = jax.device_put(params)
        self._swin = jax.jit(lambda p, x: bind(abstract, p).swin(x))
        self._pixel_decoder = jax.jit(lambda p, x: bind(abstract, p).pixel_decoder(x))
        self._features = jax.jit(lambda p, x: bind(abstract, p).pixel_features(x))
        self._masks = jax.jit(lambda p, features, states: final_masks(bind(abstract, p), features, states))

    def swin(self, pixels: jax.Array) -> Any:
        return jax.block_until_ready(self._swin(self._params, pixels))

    def pixel_decoder(self, maps: Any) -> Any:
        return jax.block_until_ready(self._pixel_decoder(self._params, maps))

    def mask_decoder(self, features: Any, states: jax.Array) -> jax.Array:
        return jax.block_until_ready(self._masks(self._params, features, states))

    def __call__(self, pixels: jax.Array, states: jax.Array) -> jax.Array:
        """Pixels [1, s, s, 3], states [1, q, d] -> [1, q, s / 4, s / 4]"""
        return jax.block_until_ready(self._masks(self._params, self._features(self._params, pixels), states))


class Theirs:
    """The same of PyTorch's modules. Pixels [1, 3, s, s], states [q, d] -> [q, 1, s / 4, s / 4]"""

    def __init__(self, config: SegEarthR2Config, attention: str):
        torch.manual_seed(0)
        self.backbone = peer.torch_swin(config.swin, SIZE, attn_implementation=attention)
        self.decoder = peer.torch_pixel_decoder(config.pixel_decoder)
        self.masks = peer.torch_mask_decoder(config.mask_decoder)
        self.seg_projector = torch.nn.Linear(config.phi.hidden_size, config.mask_decoder.hidden_dim)

    def params(self, config: SegEarthR2Config, rest: Params) -> Params:
        """Its weights as the parameters of this package's network, with `rest` for the language side."""
        weights = self.seg_projector.state_dict()
        return rest | {
            "swin": _parameters(peer.swin_rules(config.swin), rest["swin"], peer.pack_qkv(_arrays(self.backbone))),
            "pixel_decoder": _parameters(
                peer.pixel_decoder_rules(config.pixel_decoder), rest["pixel_decoder"], peer.with_biases(_arrays(self.decoder))
            ),
            "mask_decoder": _parameters(peer.mask_decoder_rules(config.mask_decoder), rest["mask_decoder"], _arrays(self.masks)),
            "seg_projector": {"kernel": weights["weight"].numpy().T, "bias": weights["bias"].numpy()},
        }

    def compile(self) -> None:
        self.backbone, self.decoder, self.masks = (torch.compile(m) for m in (self.backbone, self.decoder, self.masks))

    @torch.no_grad()
    def swin(self, pixels: torch.Tensor) -> Any:
        return self.backbone(pixels).feature_maps

    @torch.no_grad()
    def pixel_decoder(self, maps: Any) -> Any:
        return self.decoder(list(maps), output_hidden_states=False, output_attentions=False, return_dict=True)

    @torch.no_grad()
    def mask_decoder(self, features: Any, states: torch.Tensor) -> torch.Tensor:
        return peer.decode(self.masks, features.multi_scale_features, features.mask_features, self.seg_projector(states))[-1]

    def __call__(self, pixels: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return self.mask_decoder(self.pixel_decoder(self.swin(pixels)), states)


def _arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _parameters(rules: list[Rule], shapes: Params, tensors: Mapping[str, np.ndarray]) -> Params:
    key_map = KeyMap(rules, shapes)
    leaves, _ = key_map.to_parameters({name: tensors[name] for name in key_map.shapes})
    return unflatten({path: np.asarray(leaf) for path, leaf in leaves.items()})


def configuration() -> SegEarthR2Config:
    """The published mask branch, with the tiny preset's language side."""
    return dataclasses.replace(
        SegEarthR2Config.tiny(vocab_size=64),
        swin=SwinConfig.base(),
        pixel_decoder=PixelDecoderConfig.base(),
        mask_decoder=MaskDecoderConfig.base(),
        image_size=SIZE,
    )


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """How far the masks' logits are apart; exits where they are not the same."""
    found = {
        "largest difference / largest logit": float(f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.1e}"),
        "pixels on the other side of the threshold": float(f"{((ours > 0) != (theirs > 0)).mean():.1e}"),
    }
    if found["largest difference / largest logit"] > TOLERANCE:
        raise SystemExit(f"the results differ, so that times say nothing: {found}")
    return found


def run(rounds: int, parts: bool, compiled: bool) -> dict[str, Any]:
    """Comparison, then times and ratios."""
    config = configuration()
    peers = {f"pytorch, {attention}": Theirs(config, attention) for attention in ("eager", "sdpa")}
    first = peers["pytorch, eager"]
    peers["pytorch, sdpa"].backbone.load_state_dict(first.backbone.state_dict())
    for name in ("decoder", "masks", "seg_projector"):
        setattr(peers["pytorch, sdpa"], name, getattr(first, name))
    ours = Ours(config, first.params(config, init_params(lambda rngs: SegEarthR2(config, rngs=rngs), 0)))
    # After the weights were read: the hook changes none.
    peer.as_in_segearth_r2(first.decoder)

    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
    states = rng.normal(size=(1, max(QUERIES), config.phi.hidden_size)).astype(np.float32)
    torch_pixels, torch_states = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(states[0])
    jax_pixels = jax.device_put(pixels)
    jax_states = {q: jax.device_put(states[:, :q]) for q in QUERIES}

    start = time.perf_counter()
    masks = np.asarray(ours(jax_pixels, jax_states[max(QUERIES)]))
    report: dict[str, Any] = {"compilation and first call, seconds": round(time.perf_counter() - start, 1)}
    report["compared"] = {name: compare(masks[0], theirs(torch_pixels, torch_states)[:, 0].numpy()) for name, theirs in peers.items()}
    if compiled:
        peers["pytorch, sdpa, torch.compile"] = Theirs(config, "sdpa")
        peers["pytorch, sdpa, torch.compile"].__dict__.update(peers["pytorch, sdpa"].__dict__)
        peers["pytorch, sdpa, torch.compile"].compile()
    contenders: dict[str, Callable[[], Any]] = {}
    for q in QUERIES:
        contenders[f"ours, {q}"] = lambda q=q: ours(jax_pixels, jax_states[q])
        for name, theirs in peers.items():
            contenders[f"{name}, {q}"] = lambda theirs=theirs, q=q: theirs(torch_pixels, torch_states[:q])
    seconds = in_turns(contenders, rounds)
    medians = {name: found["median"] for name, found in seconds.items()}
    report["seconds, by masks"] = seconds
    report["pytorch / ours"] = {
        f"{name}, {q}": round(medians[f"{name}, {q}"] / medians[f"ours, {q}"], 2) for name in peers for q in QUERIES
    }
    report["ours, 8 masks / 1 mask"] = round(medians["ours, 8"] / medians["ours, 1"], 3)
    if parts:
        report["parts, seconds"] = _parts(ours, peers["pytorch, sdpa"], jax_pixels, jax_states, torch_pixels, torch_states, rounds)
    return report


def _parts(ours: Ours, theirs: Theirs, jax_pixels, jax_states, torch_pixels, torch_states, rounds: int) -> dict[str, Any]:
    """Each part alone, with what the part before it made."""
    maps, torch_maps = ours.swin(jax_pixels), theirs.swin(torch_pixels)
    features, torch_features = ours.pixel_decoder(maps), theirs.pixel_decoder(torch_maps)
    report = {
        "Swin-B": in_turns({"ours": lambda: ours.swin(jax_pixels), "pytorch, sdpa": lambda: theirs.swin(torch_pixels)}, rounds),
        "pixel decoder": in_turns(
            {"ours": lambda: ours.pixel_decoder(maps), "pytorch, sdpa": lambda: theirs.pixel_decoder(torch_maps)}, rounds
        ),
    }
    for q in QUERIES:
        report[f"mask decoder, {q}"] = in_turns(
            {
                "ours": lambda q=q: ours.mask_decoder(features, jax_states[q]),
                "pytorch, sdpa": lambda q=q: theirs.mask_decoder(torch_features, torch_states[:q]),
            },
            rounds,
        )
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="calls of each contender that are timed")
    parser.add_argument("--no-parts", action="store_true", help="leave out the times of the parts")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too; it needs a C++ compiler and some minutes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    report = {
        "sizes": {"image": SIZE, "backbone": "Swin-B, windows of 12", "masks": QUERIES, "dtype": "float32"},
        "machine": machine(("jax", "jaxlib", "flax", "torch", "transformers", "numpy")),
        **run(args.rounds, not args.no_parts, args.compile),
    }
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
