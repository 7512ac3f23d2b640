"""The language side with the weights of a fixture set, and how its numbers are compared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from segearth_r2_jax.checkpoints.key_rules import KeyMap, Rule
from segearth_r2_jax.checkpoints.segearth_r2_rules import segearth_r2_rules
from segearth_r2_jax.models.binding import abstract_module, bind, module_params, unflatten
from segearth_r2_jax.models.layers import Linear
from segearth_r2_jax.models.phi import Phi, PhiConfig
from segearth_r2_jax.models.projector import Projector
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config
from segearth_r2_jax.models.siglip import Siglip, SiglipConfig

# Maximal error over maximal value, as the fixtures suggest.
TOLERANCE = {"float32": 2e-5, "float64": 1e-8}


class Language(nnx.Module):
    """The parts of SegEarth-R2 between an image, a prompt and the queries of the mask decoder."""

    def __init__(self, siglip: SiglipConfig, phi: PhiConfig, mask_dim: int, *, rngs: nnx.Rngs):
        self.siglip = Siglip(siglip, rngs=rngs)
        self.projector = Projector(siglip.hidden_size, phi.hidden_size, rngs=rngs)
        self.phi = Phi(phi, rngs=rngs)
        self.seg_projector = Linear(phi.hidden_size, mask_dim, axes=("embed", None), rngs=rngs)


def load_language(folder: Path, **siglip_changes: object) -> Language:
    """Sizes and weights from a fixture folder; `siglip_changes` replaces fields of the tower's configuration."""
    sizes = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "weights.safetensors")
    siglip = SiglipConfig(
        hidden_size=sizes["vis_dim"],
        intermediate_size=sizes["vis_ff"],
        num_layers=sizes["vis_layers"],
        num_heads=sizes["vis_heads"],
        patch_size=sizes["vis_patch"],
        image_size=sizes["vis_image"],
        select_layer=sizes["vis_select"],
    )
    siglip = dataclasses.replace(siglip, **siglip_changes)
    phi = PhiConfig(
        vocab_size=sizes["vocab"],
        embed_rows=weights["model.embed_tokens.weight"].shape[0],
        hidden_size=sizes["llm_dim"],
        intermediate_size=sizes["llm_ff"],
        num_layers=sizes["llm_layers"],
        num_heads=sizes["llm_heads"],
    )
    module = abstract_module(lambda rngs: Language(siglip, phi, sizes["dim"], rngs=rngs))
    config = dataclasses.replace(SegEarthR2Config.tiny(vocab_size=phi.vocab_size), siglip=siglip, phi=phi)
    parts = ("siglip/", "projector/", "phi/", "seg_projector/")
    rules = [rule for rule in segearth_r2_rules(config) if isinstance(rule, Rule) and rule.paths[0] and rule.paths[0].startswith(parts)]
    key_map = KeyMap(rules, module_params(module))
    leaves, _ = key_map.to_parameters({name: weights[name] for name in key_map.shapes})
    return bind(module, unflatten({path: np.asarray(leaf) for path, leaf in leaves.items()}))


class Arrays:
    """An .npz of the fixtures, read in one precision."""

    def __init__(self, path: Path, precision: str):
        self.precision = precision
        self._file = np.load(path)

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def __getitem__(self, name: str) -> np.ndarray:
        """The array in this precision where it was stored so; floating-point inputs are widened."""
        wide_name = f"{name}__f64"
        array = self._file[wide_name if self.precision == "float64" and wide_name in self._file else name]
        return array.astype(self.precision) if array.dtype.kind == "f" else array

    def check(self, name: str, actual: np.ndarray) -> None:
        """`actual` is the array `name`, to the tolerance of the precision in which that was stored."""
        expected, actual = self[name], np.asarray(actual)
        stored_wide = f"{name}__f64" in self._file
        tolerance = TOLERANCE["float64" if self.precision == "float64" and stored_wide else "float32"]
        assert actual.dtype == self.precision, f"{name}: computed in {actual.dtype}, not in {self.precision}"
        assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        assert error <= tolerance, f"{name}: error {error:.2e} relative to the largest value, tolerance {tolerance:.0e}"
