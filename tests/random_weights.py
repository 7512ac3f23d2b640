"""Networks with random weights from numpy: nothing to compile, and the same numbers on every version of JAX."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from segearth_r2_jax.models.binding import Params, abstract_module, bind, flatten, module_params, unflatten


def random_params(make: Callable[[nnx.Rngs], nnx.Module], seed: int = 0) -> Params:
    """Parameters of the module that `make` builds, with values everywhere: biases, and the B of a low-rank adaptation, are 0 where
    training starts, and an error could hide there."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, leaf in sorted(flatten(module_params(abstract_module(make))).items()):
        values = rng.normal(size=leaf.shape)
        if path.endswith(("kernel", "lora_a", "lora_b")):
            values /= np.prod(leaf.shape[-4:-1] if leaf.ndim == 4 else leaf.shape[-2]) ** 0.5
        elif not path.endswith("table"):
            values = 0.1 * values + path.endswith("scale")
        params[path] = jnp.asarray(values, jnp.float32)
    return unflatten(params)


def random_module(make: Callable[[nnx.Rngs], nnx.Module], seed: int = 0) -> nnx.Module:
    """The module that `make` builds, with `random_params`."""
    return bind(abstract_module(make), random_params(make, seed))
