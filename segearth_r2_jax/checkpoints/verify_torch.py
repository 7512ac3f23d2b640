"""Whether a converted network computes what its PyTorch weights compute: one random image and prompt through both.

PyTorch runs the reference's forward pass from the file's own tensors (`torch_forward`), this project its network from the checkpoint
folder. Compared are what everything else follows from: next-token logits, [SEG] states and mask logits. Both compute in float64, where
the two agree to a few 1e-15 at the sizes of the tests and no pixel of the masked attention is undecided; in float32 they agree to 1e-6
there, but a mask logit close to zero could fall on different sides.

This is a check of a conversion as a whole. That no bit was lost is what the checksums of the report are for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segearth_r2_jax.checkpoints import manager
from segearth_r2_jax.checkpoints.array_trees import load_tree
from segearth_r2_jax.checkpoints.lora import merge_lora
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import Params, abstract_module, bind, unflatten
from segearth_r2_jax.models.multimodal_prompt import splice
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config

# Largest error over largest value, by the precision of the arithmetic.
BOUNDS = {"float64": 1e-10, "float32": 2e-5}
# The prompt: this many tokens before the image and after it; the last ones ask for masks.
_BEFORE, _AFTER, _MASKS = 6, 14, 2


@dataclasses.dataclass(frozen=True)
class Comparison:
    """name: what was compared; error: the largest difference over the largest value of PyTorch's; count: how many numbers."""

    name: str
    error: float
    bound: float
    count: int

    @property
    def holds(self) -> bool:
        """Whether the error is within the bound (a NaN is not)."""
        return self.error <= self.bound


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """The comparisons, all of which hold, and the precision in which both sides computed."""

    comparisons: tuple[Comparison, ...]
    precision: str

    def lines(self) -> list[str]:
        """One line for each."""
        return [
            f"verified against PyTorch in {self.precision}: {c.name} ({c.count:,} values) differ by at most {c.error:.1e} of the largest "
            f"(bound {c.bound:.0e})"
            for c in self.comparisons
        ]


class _Example(NamedTuple):
    pixels: np.ndarray  # [s, s, 3]
    pixels_siglip: np.ndarray  # [v, v, 3]
    before: np.ndarray  # token ids
    after: np.ndarray
    seg_positions: np.ndarray  # of `after`


def require_torch() -> None:
    """Raises UserError if PyTorch is not installed."""
    try:
        from segearth_r2_jax.checkpoints import torch_forward  # noqa: F401
    except ImportError as error:
        raise UserError("--verify computes with PyTorch, which is not installed; expected `pip install torch` before") from error


def verify(
    source: Mapping[str, Any],
    config: SegEarthR2Config,
    checkpoint: Path,
    *,
    seed: int = 0,
    stored_as: np.typing.DTypeLike | None = None,
    precision: str = "float64",
) -> VerifyReport:
    """Compare the forward pass of PyTorch from `source` with that of the checkpoint folder `checkpoint`.

    source: the reference's tensors by name (anything that `numpy.asarray` reads). Adapters may be there ("...q_proj.lora_A.weight") or
        merged; if they are merged there and not in the checkpoint, they are merged here first, as an export does.
    config: the checkpoint's network.
    seed: of the image and the prompt.
    stored_as: the dtype that the conversion rounded floating-point weights to; both sides round theirs to it, so that only errors of the
        conversion are left.
    precision: of the arithmetic, "float64" or "float32".

    Raises:
        UserError: PyTorch is not installed; a tensor is missing in either; the outputs differ by more than `BOUNDS` allow.
    """
    require_torch()
    from segearth_r2_jax.checkpoints import torch_forward

    stored_as = None if stored_as is None else np.dtype(stored_as)
    example = _example(config, seed)
    weights = torch_forward.Weights(source, precision, stored_as)
    # As a PyTorch file whose adapters are merged, and a checkpoint folder whose adapters are not.
    merged = config.phi.lora is not None and not any(".lora_A." in name for name in source)
    theirs = torch_forward.forward(weights, config, *example)
    ours = _run(config, checkpoint, example, stored_as, precision, merged)
    comparisons = []
    for name, actual, expected in zip(("logits", "[SEG] states", "mask logits"), ours, theirs, strict=True):
        largest = np.abs(expected).max()
        error = float(np.abs(actual - expected).max() / largest) if largest > 0 else float(np.abs(actual).max())
        comparisons.append(Comparison(name, error, BOUNDS[precision], expected.size))
    if wrong := [c for c in comparisons if not c.holds]:
        differences = ", ".join(f"{c.name} by {c.error:.1e} of the largest value (bound {c.bound:.0e})" for c in wrong)
        raise UserError(f"{checkpoint}: does not compute what the PyTorch weights compute: {differences}")
    return VerifyReport(tuple(comparisons), precision)


def _example(config: SegEarthR2Config, seed: int) -> _Example:
    rng = np.random.default_rng(seed)
    rows = min(config.phi.embed_rows, config.phi.vocab_size)
    return _Example(
        pixels=rng.standard_normal((config.image_size, config.image_size, 3)),
        pixels_siglip=rng.uniform(-1, 1, (config.siglip.image_size, config.siglip.image_size, 3)),
        before=rng.integers(0, rows, _BEFORE),
        after=rng.integers(0, rows, _AFTER),
        seg_positions=np.arange(_AFTER - _MASKS, _AFTER),
    )


def _run(
    config: SegEarthR2Config, checkpoint: Path, example: _Example, stored_as: np.dtype | None, precision: str, merged: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of the prompt's tokens, [SEG] states and final mask logits, as `torch_forward.forward` orders them.

    The network runs part by part, and the parameters of one part are in memory, in the dtype in which they are stored.
    """
    lora = config.phi.lora
    if merged:
        config = dataclasses.replace(config, phi=dataclasses.replace(config.phi, lora=None))
    leaves = manager.stored_leaves(checkpoint)
    for tree in {tree for tree, _ in leaves.values()}:
        manager.require_undamaged(tree)

    def load(parts: tuple[str, ...], dtype: np.dtype | None) -> Params:
        wanted = {path: entry for path, entry in leaves.items() if path.split("/")[0] in parts}
        loaded: dict[str, Any] = {}
        for tree in {tree for tree, _ in wanted.values()}:
            loaded |= load_tree(tree, {path: leaf for path, (where, leaf) in wanted.items() if where == tree}, dtype)
        return unflatten(loaded)

    # Apart from the language model an adapted network is the one without adapters, and need not be compiled again.
    network, towers = _network(config), _network(dataclasses.replace(config, phi=dataclasses.replace(config.phi, lora=None)))
    image, image_siglip = (x[None].astype(precision) for x in (example.pixels, example.pixels_siglip))
    n = config.siglip.num_tokens
    ids = np.concatenate([example.before, np.full(n, -1), example.after])[None]
    text = np.concatenate([np.arange(_BEFORE), np.arange(_BEFORE + n, _BEFORE + n + _AFTER)])
    with jax.enable_x64(precision == "float64"):
        try:
            tokens = towers.see(load(("siglip", "projector"), stored_as), image_siglip)
            if merged:  # before anything is rounded
                language = merge_lora(load(("phi",), None), lora)
                language = language if stored_as is None else jax.tree.map(lambda leaf: leaf.astype(stored_as), language)
            else:
                language = load(("phi",), stored_as)
            logits, states = network.read(language, tokens, ids, text, _BEFORE + example.seg_positions)
            del language
            masks = towers.segment(load(("swin", "pixel_decoder", "mask_decoder", "seg_projector"), stored_as), image, states)
        except KeyError as error:
            raise UserError(f"{checkpoint}: {error.args[0]}") from error
        return np.asarray(logits), np.asarray(states), np.asarray(masks)


class _Network:
    """The network in three compiled parts, each a function of its parameters."""

    def __init__(self, config: SegEarthR2Config):
        self._model = abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))
        self.see, self.read, self.segment = jax.jit(self._see), jax.jit(self._read), jax.jit(self._segment)

    def _bound(self, name: str, params: Params) -> Any:
        return bind(getattr(self._model, name), params[name])

    def _see(self, params: Params, pixels: jax.Array) -> jax.Array:
        """[1, v, v, 3] -> image tokens [1, n, d]"""
        return self._bound("projector", params)(self._bound("siglip", params)(pixels))

    def _read(
        self, params: Params, tokens: jax.Array, ids: jax.Array, text: jax.Array, seg_positions: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Ids [1, t], -1 where the image is; `text`: where the words are; `seg_positions`: which of them are [SEG].

        -> logits [words, vocab], states [m, d]
        """
        phi = self._bound("phi", params)
        words = phi.embed(jnp.maximum(ids, 0)).astype(tokens.dtype)
        embeds = splice(words, ids, tokens, jnp.array([_BEFORE]))
        hidden = phi(embeds, jnp.ones(ids.shape, bool)).hidden[:, text]
        return phi.logits(hidden)[0], hidden[0, seg_positions]

    def _segment(self, params: Params, pixels: jax.Array, states: jax.Array) -> jax.Array:
        """[1, s, s, 3] and [SEG] states [m, d] -> the final mask logits [m, h, w]"""
        features = self._bound("pixel_decoder", params)(self._bound("swin", params)(pixels))
        queries = self._bound("seg_projector", params)(states[None])
        return self._bound("mask_decoder", params).final_masks(features.multi_scale, features.mask_features, queries)[0]


@functools.cache
def _network(config: SegEarthR2Config) -> _Network:
    return _Network(config)
