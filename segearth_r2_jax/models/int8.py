"""Weights of dense layers in 8 bits, for answering: half the memory of bfloat16, and half of what every generated word has to read.

Symmetric, one scale for each output feature, rounded to nearest; activations keep their dtype (the weight-only case of Dettmers et al.
2022, "LLM.int8()", section 2). The scale is applied to the product, so that no kernel is ever made in floating point.
"""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp

_LARGEST = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Kernel:
    """values int8 [.., in, out] times scale float32 [.., out]: a dense kernel, or a stack of them, in the place of its array."""

    values: jax.Array
    scale: jax.Array

    def __getitem__(self, everything: types.EllipsisType) -> Int8Kernel:
        """What `[...]` of a parameter gives."""
        if everything is not ...:
            raise IndexError(f"an int8 kernel has no part [{everything}]")
        return self


@jax.jit
def to_int8(kernel: jax.Array) -> Int8Kernel:
    """The kernel [.., in, out] that comes nearest; no value is off by more than half its feature's scale, max |kernel[.., out]| / 127."""
    exact = kernel.astype(jnp.float32)
    largest = jnp.abs(exact).max(-2)
    scale = jnp.where(largest > 0, largest / _LARGEST, 1)
    return Int8Kernel(jnp.rint(exact / scale[..., None, :]).astype(jnp.int8), scale)
