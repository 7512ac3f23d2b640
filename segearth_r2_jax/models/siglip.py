"""SigLIP's image tower (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"; a ViT, Dosovitskiy et al. 2021).

Mirrors `SiglipVisionTransformer` of transformers as SegEarth-R2 uses it: the output is one hidden state, `hidden_states[select_layer]`,
without the tower's last layers, final normalisation and attention pooling. Only the layers up to that state are built.
"""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from segearth_r2_jax.kernels.attention import attention
from segearth_r2_jax.models.layers import Conv, LayerNorm, Linear, check_remat, parameter, rematerialized, stack_layers


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """Sizes of the tower.

    `num_layers` counts the layers of the published tower; `select_layer` indexes its hidden states as in Python: 0 is the embeddings,
    i the output of layer i, -1 the output of the last layer, -2 the one before. `final_norm` normalises the selected state.
    `remat` is what the backward pass recomputes of a layer, if the tower is trained (see `layers.rematerialized`).
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    image_size: int
    select_layer: int = -2
    layer_norm_eps: float = 1e-6
    final_norm: bool = False
    remat: str = "none"

    def __post_init__(self):
        check_remat(self.remat)
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if not -self.num_layers - 1 <= self.select_layer <= self.num_layers:
            raise ValueError(f"select_layer {self.select_layer} is none of the {self.num_layers + 1} hidden states")
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")

    @property
    def grid(self) -> int:
        """Image tokens per side; pixels beyond the last whole patch are not used."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid**2

    @property
    def layers_built(self) -> int:
        return self.select_layer if self.select_layer >= 0 else self.num_layers + 1 + self.select_layer

    @classmethod
    def so400m_384(cls) -> SiglipConfig:
        """siglip-so400m-patch14-384: 729 tokens of 1152."""
        return cls(hidden_size=1152, intermediate_size=4304, num_layers=27, num_heads=16, patch_size=14, image_size=384)

    @classmethod
    def tiny(
        cls,
        *,
        hidden_size: int = 96,
        intermediate_size: int = 192,
        num_layers: int = 3,
        num_heads: int = 4,
        patch_size: int = 16,
        image_size: int = 128,
    ) -> SiglipConfig:
        return cls(hidden_size, intermediate_size, num_layers, num_heads, patch_size, image_size)


class SiglipAttention(nnx.Module):
    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        d = config.hidden_size
        self.q_proj = Linear(d, d, axes=("embed", "heads"), rngs=rngs)
        self.k_proj = Linear(d, d, axes=("embed", "heads"), rngs=rngs)
        self.v_proj = Linear(d, d, axes=("embed", "heads"), rngs=rngs)
        self.out_proj = Linear(d, d, axes=("heads", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, s, d = x.shape
        q, k, v = (proj(x).reshape(b, s, self.num_heads, -1) for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = attention(q, k, v, causal=False, scale=q.shape[-1] ** -0.5)
        return self.out_proj(y.reshape(b, s, d))


class SiglipMlp(nnx.Module):
    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, axes=("embed", "mlp"), rngs=rngs)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=True))


class SiglipLayer(nnx.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.layer_norm1 = LayerNorm(config.hidden_size, rngs=rngs, epsilon=config.layer_norm_eps)
        self.self_attn = SiglipAttention(config, rngs=rngs)
        self.layer_norm2 = LayerNorm(config.hidden_size, rngs=rngs, epsilon=config.layer_norm_eps)
        self.mlp = SiglipMlp(config, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Siglip(nnx.Module):
    """Image -> one feature vector per patch."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, p = config.hidden_size, config.patch_size
        self.patch_embedding = Conv(3, d, p, stride=p, rngs=rngs)
        self.position_embedding = parameter(nnx.initializers.normal(d**-0.5), (config.num_tokens, d), (None, "embed"), rngs)
        self.layers = stack_layers(lambda rngs: SiglipLayer(config, rngs=rngs), config.layers_built, rngs) if config.layers_built else None
        self.post_layernorm = LayerNorm(d, rngs=rngs, epsilon=config.layer_norm_eps) if config.final_norm else None

    def __call__(self, pixels: jax.Array, *, output_hidden_states: bool = False) -> jax.Array | tuple[jax.Array, jax.Array]:
        """The selected hidden state of normalised images.

        Args:
            pixels: [b, image_size, image_size, 3], in [-1, 1].
            output_hidden_states: also return the embeddings and the output of every layer but the last, [layers, b, tokens, hidden].

        Returns:
            [b, tokens, hidden], tokens row by row.

        Raises:
            ValueError: the images have another size than the configuration says.
        """
        size = self.config.image_size
        if pixels.shape[1:] != (size, size, 3):
            raise ValueError(f"expected images of shape [b, {size}, {size}, 3], got {pixels.shape}")
        x = self.patch_embedding(pixels)
        x = x.reshape(x.shape[0], self.config.num_tokens, -1) + self.position_embedding[...].astype(x.dtype)
        inputs = x[None][:0]
        if self.layers is not None:
            definition, state = nnx.split(self.layers)

            def body(x: jax.Array, state: nnx.State) -> tuple[jax.Array, jax.Array | None]:
                return nnx.merge(definition, state)(x), x if output_hidden_states else None

            x, inputs = jax.lax.scan(rematerialized(body, self.config.remat), x, state)
        if self.post_layernorm is not None:
            x = self.post_layernorm(x)
        return (x, inputs) if output_hidden_states else x
