"""A checkpoint folder with a small network of random weights, made in a second: for tests of what stands around the network."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from segearth_r2_jax.checkpoints.manager import save_base, write_config
from segearth_r2_jax.inputs.tokenizer import SEG_TOKEN, save_tokenizer, train_tokenizer
from segearth_r2_jax.models.binding import Params, abstract_module, flatten, module_params, unflatten
from segearth_r2_jax.models.mask_decoder import MaskDecoderConfig
from segearth_r2_jax.models.phi import PhiConfig
from segearth_r2_jax.models.pixel_decoder import PixelDecoderConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config
from segearth_r2_jax.models.siglip import SiglipConfig
from segearth_r2_jax.models.swin import SwinConfig

IMAGE_SIZE = 128
TEMPLATE = "train_phi_v0"
WORDS = ("roof", " river", " and", ",")


@functools.cache
def tokenizer():
    """A tokenizer of some 300 tokens that knows `WORDS`."""
    return train_tokenizer(["roof river and, " * 20, "find the roof and the river"], 300)


def config() -> SegEarthR2Config:
    """Its own sizes, not those of the tiny preset: the random answers that the tests rely on change with them."""
    swin = SwinConfig.tiny()
    return SegEarthR2Config(
        siglip=SiglipConfig.tiny(),
        phi=PhiConfig.tiny(vocab_size=len(tokenizer())),
        swin=swin,
        pixel_decoder=PixelDecoderConfig.tiny(in_channels=swin.channels),
        mask_decoder=MaskDecoderConfig.tiny(),
        image_size=IMAGE_SIZE,
    )


def parameters(config: SegEarthR2Config, *, seed: int = 12) -> Params:
    """Random weights whose answers are made of [SEG] and a few words, and do not end by themselves.

    The final normalisation has an offset, and the head of each of these tokens points along it: the rest of the vocabulary never wins,
    while the hidden state decides between them. The default seed gives answers that differ between images and have several masks.
    """
    rng = np.random.default_rng(seed)
    shapes = flatten(module_params(abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))))
    flat = {path: _random(rng, path, leaf.shape) for path, leaf in shapes.items()}
    offset = rng.normal(size=config.phi.hidden_size).astype(np.float32)
    flat["phi/final_layernorm/bias"] = offset
    for word in (SEG_TOKEN, *WORDS):
        for token in tokenizer().encode(word):
            flat["phi/lm_head/kernel"][:, token] += offset / 8
    return unflatten(flat)


def _random(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
    if path.endswith("/scale"):
        return np.ones(shape, np.float32)
    if path.endswith("/bias"):
        return rng.normal(0, 0.02, shape).astype(np.float32)
    fan_in = int(np.prod(shape[:-1][-3:])) if "kernel" in path else shape[-1]
    return rng.normal(0, fan_in**-0.5, shape).astype(np.float32)


def write_checkpoint(folder: Path, *, seed: int = 12) -> Path:
    """Writes the checkpoint into `folder`, which it returns."""
    size = config()
    write_config(folder, {"model": size.to_dict(), "template": TEMPLATE})
    save_tokenizer(tokenizer(), folder / "tokenizer.json")
    save_base(folder, parameters(size, seed=seed))
    return folder
