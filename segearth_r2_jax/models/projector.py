"""From image features to image tokens (LLaVA 1.5, Liu et al. 2023, section 3.2; reference: `build_vision_projector`, "mlp2x_gelu")."""

from __future__ import annotations

import jax
from flax import nnx

from segearth_r2_jax.models.layers import Linear, gelu


class Projector(nnx.Module):
    """Two dense layers with the exact GELU between them."""

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(in_features, out_features, axes=("embed", "mlp"), rngs=rngs)
        self.fc2 = Linear(out_features, out_features, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, tokens, in_features] -> [b, tokens, out_features]."""
        return self.fc2(gelu(self.fc1(x)))
