"""The reference implementation's numbers as this project's configuration, parameters and modules.

Everything is read from the fixtures folder, so another set of fixtures with other sizes runs too.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from segearth_r2_jax.checkpoints.reference_config import config_from_reference
from segearth_r2_jax.checkpoints.segearth_r2_rules import key_map
from segearth_r2_jax.models.binding import Params, abstract_module, bind, unflatten
from segearth_r2_jax.models.segearth_r2 import SegEarthR2, SegEarthR2Config


def reference_weights(fixtures_dir: Path) -> dict[str, np.ndarray]:
    """The reference's state dict by its own names and layouts, as stored."""
    return load_file(fixtures_dir / "weights.safetensors")


def fixture_config(fixtures_dir: Path) -> SegEarthR2Config:
    """The configuration of the network that made the fixtures."""
    shapes = {name: weight.shape for name, weight in reference_weights(fixtures_dir).items()}
    return config_from_reference(json.loads((fixtures_dir / "config.json").read_text()), shapes)


def fixture_model(fixtures_dir: Path) -> SegEarthR2:
    """The network that made the fixtures, abstract (shapes only)."""
    config = fixture_config(fixtures_dir)
    return abstract_module(lambda rngs: SegEarthR2(config, rngs=rngs))


def fixture_parameters(fixtures_dir: Path, dtype: np.typing.DTypeLike, config: SegEarthR2Config | None = None) -> Params:
    """The fixtures' weights as the nested parameter tree of `SegEarthR2(config)`, numpy arrays of `dtype`.

    A part of the network takes its part of the tree: `merge(abstract_siglip, fixture_parameters(folder, "float64")["siglip"])`.
    `config` is `fixture_config` unless a test changes it (another selected layer of SigLIP, for instance).
    """
    config = config or fixture_config(fixtures_dir)
    leaves, _ = key_map(config).to_parameters(reference_weights(fixtures_dir))
    return unflatten({path: np.asarray(leaf.astype(dtype)) for path, leaf in leaves.items()})


def merge(abstract: nnx.Module, params: Params) -> nnx.Module:
    """The module `abstract` with the parameters `params`."""
    return bind(abstract, params)
