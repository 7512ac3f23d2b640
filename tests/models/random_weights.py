"""Modules for tests without the cost of initialising them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from segearth_r2_jax.models.binding import abstract_module, bind, module_params


def random_module(make: Callable[[nnx.Rngs], nnx.Module], seed: int = 0) -> nnx.Module:
    """The module that `make` builds, with random values in every parameter, biases included; dense layers keep their variance."""
    rng = np.random.default_rng(seed)
    abstract = abstract_module(make)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = max(1, int(np.prod(leaf.shape[-4:-1])) if len(leaf.shape) == 4 else int(leaf.shape[-2:][0]))
        scale = fan_in**-0.5 if len(leaf.shape) > 1 else 1.0
        return jax.numpy.asarray(rng.normal(size=leaf.shape) * scale, leaf.dtype)

    return bind(abstract, jax.tree.map(draw, module_params(abstract)))
