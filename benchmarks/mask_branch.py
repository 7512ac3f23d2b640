"""The mask branch at its real sizes on a processor: an image of 1024 pixels and [SEG] states in, masks out.

    python -m benchmarks.mask_branch [--rounds 3] [--compile] [--output benchmarks/results/mask_branch.json]

This package (Swin-B, pixel decoder, mask decoder as in inference: the last prediction only) against `transformers`' PyTorch modules of the
same sizes with the same weights, in float32 and in one process. PyTorch repeats the maps of an image for every mask, as the reference does.
The masks are compared first; then the three parts of both are timed in turns, and their sums are the branch: the backbone with PyTorch's
eager attention and with its `scaled_dot_product_attention` (the decoders have one form), the mask decoder for 1 and for 8 masks. With
`--compile` PyTorch's decoders, and one more backbone, are compiled by `torch.compile`. Needs torch and transformers.
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
from benchmarks.timing import in_turns, summary
from segearth_r2_jax.checkpoints.key_rules import KeyMap, Rule
from segearth_r2_jax.inference.segment import final_masks
from segearth_r2_jax.models.binding import Params, abstract_module, bind, module_params, unflatten
from segearth_r2_jax.models.mask_decoder import MaskDecoderConfig
from segearth_r2_jax.models.pixel_decoder import PixelDecoderConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config
from segearth_r2_jax.models.swin import SwinConfig

RESULTS = Path(__file__).resolve().parent / "results" / "mask_branch.json"
SIZE = 1024
MASKS = (1, 8)
# Of float32 through some 40 layers, in relation to the largest value.
TOLERANCE = 2e-3


class Ours:
    """The network of this package, its three parts jitted; the language side is tiny and does not run."""

    def __init__(self, config: SegEarthR2Config, params: Params):
        abstract = abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))
        self._params = jax.device_put(params)
        self._swin = jax.jit(lambda p, x: bind(abstract, p).swin(x))
        self._pixel_decoder = jax.jit(lambda p, x: bind(abstract, p).pixel_decoder(x))
        self._masks = jax.jit(lambda p, features, states: final_masks(bind(abstract, p), features, states))

    def swin(self, pixels: jax.Array) -> Any:
        return jax.block_until_ready(self._swin(self._params, pixels))

    def pixel_decoder(self, maps: Any) -> Any:
        return jax.block_until_ready(self._pixel_decoder(self._params, maps))

    def mask_decoder(self, features: Any, states: jax.Array) -> jax.Array:
        """States [1, q, d] -> [1, q, s / 4, s / 4]"""
        return jax.block_until_ready(self._masks(self._params, features, states))


class Theirs:
    """The same of PyTorch's modules; `swin` has a function for every implementation of attention."""

    def __init__(self, config: SegEarthR2Config):
        torch.manual_seed(0)
        self._backbones = {name: peer.torch_swin(config.swin, SIZE, attn_implementation=name) for name in ("eager", "sdpa")}
        self._backbones["sdpa"].load_state_dict(self._backbones["eager"].state_dict())
        self._pixel_decoder = peer.torch_pixel_decoder(config.pixel_decoder)
        self._mask_decoder = peer.torch_mask_decoder(config.mask_decoder)
        self._seg_projector = torch.nn.Linear(config.phi.hidden_size, config.mask_decoder.hidden_dim)

    def params(self, config: SegEarthR2Config, rest: Params) -> Params:
        """Its weights as the parameters of this package's network, with `rest` for the language side."""
        weights = self._seg_projector.state_dict()
        return rest | {
            "swin": _parameters(peer.swin_rules(config.swin), rest["swin"], peer.pack_qkv(_arrays(self._backbones["eager"]))),
            "pixel_decoder": _parameters(
                peer.pixel_decoder_rules(config.pixel_decoder), rest["pixel_decoder"], peer.with_biases(_arrays(self._pixel_decoder))
            ),
            "mask_decoder": _parameters(peer.mask_decoder_rules(config.mask_decoder), rest["mask_decoder"], _arrays(self._mask_decoder)),
            "seg_projector": {"kernel": weights["weight"].numpy().T, "bias": weights["bias"].numpy()},
        }

    def as_in_segearth_r2(self) -> None:
        peer.as_in_segearth_r2(self._pixel_decoder)

    def compile(self) -> None:
        """Another backbone by `torch.compile`, and the decoders by it."""
        self._backbones["sdpa, torch.compile"] = torch.compile(self._backbones["sdpa"])
        self._pixel_decoder, self._mask_decoder = torch.compile(self._pixel_decoder), torch.compile(self._mask_decoder)

    @property
    def swin(self) -> dict[str, Callable[[torch.Tensor], Any]]:
        """Pixels [1, 3, s, s] -> four maps, by implementation."""
        return {name: torch.no_grad()(lambda x, module=module: module(x).feature_maps) for name, module in self._backbones.items()}

    @torch.no_grad()
    def pixel_decoder(self, maps: Any) -> Any:
        return self._pixel_decoder(list(maps), output_hidden_states=False, output_attentions=False, return_dict=True)

    @torch.no_grad()
    def mask_decoder(self, features: Any, states: torch.Tensor) -> torch.Tensor:
        """States [q, d] -> [q, 1, s / 4, s / 4]"""
        return peer.decode(self._mask_decoder, features.multi_scale_features, features.mask_features, self._seg_projector(states))[-1]


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


def run(rounds: int, compiled: bool) -> dict[str, Any]:
    """Comparison, then times of the parts, their sums and ratios."""
    config = configuration()
    theirs = Theirs(config)
    shapes = module_params(abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs)))
    ours = Ours(config, theirs.params(config, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)))
    theirs.as_in_segearth_r2()

    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
    states = rng.normal(size=(1, max(MASKS), config.phi.hidden_size)).astype(np.float32)
    torch_pixels, torch_states = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(states[0])
    jax_pixels, jax_states = jax.device_put(pixels), {q: jax.device_put(states[:, :q]) for q in MASKS}

    start = time.perf_counter()
    maps = ours.swin(jax_pixels)
    features = ours.pixel_decoder(maps)
    masks = ours.mask_decoder(features, jax_states[max(MASKS)])
    report: dict[str, Any] = {"compilation and first call, seconds": round(time.perf_counter() - start, 1)}
    torch_maps = theirs.swin["eager"](torch_pixels)
    torch_features = theirs.pixel_decoder(torch_maps)
    report["compared"] = compare(np.asarray(masks)[0], theirs.mask_decoder(torch_features, torch_states)[:, 0].numpy())
    print(report, flush=True)
    if compiled:
        theirs.compile()

    contenders: dict[str, Callable[[], Any]] = {"Swin-B, ours": lambda: ours.swin(jax_pixels)}
    contenders |= {f"Swin-B, PyTorch {name}": lambda swin=swin: swin(torch_pixels) for name, swin in theirs.swin.items()}
    contenders["pixel decoder, ours"] = lambda: ours.pixel_decoder(maps)
    contenders["pixel decoder, PyTorch"] = lambda: theirs.pixel_decoder(torch_maps)
    for q in MASKS:
        contenders[f"mask decoder of {q}, ours"] = lambda q=q: ours.mask_decoder(features, jax_states[q])
        contenders[f"mask decoder of {q}, PyTorch"] = lambda q=q: theirs.mask_decoder(torch_features, torch_states[:q])
    seconds = {name: summary(times) for name, times in in_turns(contenders, rounds).items()}
    medians = {name: found["median"] for name, found in seconds.items()}

    def whole(q: int, side: str, backbone: str) -> float:
        return medians[f"Swin-B, {backbone}"] + medians[f"pixel decoder, {side}"] + medians[f"mask decoder of {q}, {side}"]

    mine = {q: whole(q, "ours", "ours") for q in MASKS}
    peers = {f"PyTorch {name}": {q: whole(q, "PyTorch", f"PyTorch {name}") for q in MASKS} for name in theirs.swin}
    return report | {
        "parts": seconds,
        "whole branch, seconds by number of masks": {
            name: {q: round(found[q], 3) for q in MASKS} for name, found in {"ours": mine, **peers}.items()
        },
        "PyTorch / ours, by number of masks": {name: {q: round(found[q] / mine[q], 2) for q in MASKS} for name, found in peers.items()},
        "ours, 8 masks / 1 mask": round(mine[8] / mine[1], 3),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="calls of each contender that are timed")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too; it needs a C++ compiler and some minutes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    report = {
        "sizes": {"image": SIZE, "backbone": "Swin-B, windows of 12", "masks": MASKS, "dtype": "float32"},
        "machine": machine(("jax", "jaxlib", "flax", "torch", "transformers", "numpy")),
        **run(args.rounds, args.compile),
    }
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
