"""Phi-2 (Javaheripi et al. 2023; architecture of phi-1, Gunasekar et al. 2023, section 2), the language model of SegEarth-R2.

Mirrors `PhiForCausalLM` of transformers, without the bias of its LM head, which the reference drops. A layer is parallel:
x + attention(h) + mlp(h) with one h = LayerNorm(x). The first `rotary_fraction` of each head is rotated by its position (RoFormer,
Su et al. 2021), pairing element i with i + rotary_dim / 2.

The layers are stacked and scanned: one layer is compiled, whatever their number. What differs between training, prefill and decoding
is only how a layer attends, so that is the function (`attend`) each of them hands to the layer.

b batch, t tokens, n heads, h head width, d hidden width, s cache slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from segearth_r2_jax.kernels.attention import attention
from segearth_r2_jax.kernels.attention_rows import attention_rows
from segearth_r2_jax.models.layers import (
    Embedding,
    LayerNorm,
    Linear,
    LoraConfig,
    check_remat,
    dropout,
    rematerialized,
    split_or_none,
    stack_layers,
    wide,
)
from segearth_r2_jax.placement import constrain

Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
Rotation = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class PhiConfig:
    """Sizes of the model.

    `vocab_size` counts the rows of the LM head and `embed_rows` those of the input table: in the reference a tokenizer with added
    tokens resizes only the latter. `lora` adapts q_proj and v_proj. `remat` is what the backward pass recomputes of a layer: "none",
    "dots" or "full" (see `layers.rematerialized`).
    """

    vocab_size: int
    embed_rows: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    rotary_fraction: float = 0.4
    rope_theta: float = 1e4
    layer_norm_eps: float = 1e-5
    residual_dropout: float = 0.0
    lora: LoraConfig | None = None
    remat: str = "none"

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ValueError(
                f"rotary_fraction {self.rotary_fraction} rotates {self.rotary_dim} of the {self.head_dim} elements of a head; "
                "that has to be an even number above 0"
            )
        check_remat(self.remat)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def rotary_dim(self) -> int:
        return int(self.rotary_fraction * self.head_dim)

    @classmethod
    def phi_2(
        cls,
        *,
        embed_rows: int = 51200,
        residual_dropout: float = 0.0,
        lora: LoraConfig | None = None,
        remat: str = "full",
    ) -> PhiConfig:
        """Phi-2, 2.7 B parameters. Its own training used a `residual_dropout` of 0.1, which the reference leaves on in fine-tuning."""
        return cls(
            vocab_size=51200,
            embed_rows=embed_rows,
            hidden_size=2560,
            intermediate_size=10240,
            num_layers=32,
            num_heads=32,
            residual_dropout=residual_dropout,
            lora=lora,
            remat=remat,
        )

    @classmethod
    def tiny(
        cls,
        *,
        vocab_size: int,
        embed_rows: int | None = None,
        hidden_size: int = 128,
        intermediate_size: int = 384,
        num_layers: int = 3,
        num_heads: int = 4,
        residual_dropout: float = 0.0,
        lora: LoraConfig | None = None,
        remat: str = "none",
    ) -> PhiConfig:
        """`embed_rows` is `vocab_size` unless it is given."""
        return cls(
            vocab_size=vocab_size,
            embed_rows=vocab_size if embed_rows is None else embed_rows,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=num_layers,
            num_heads=num_heads,
            residual_dropout=residual_dropout,
            lora=lora,
            remat=remat,
        )


class PhiOutput(NamedTuple):
    """hidden: [b, t, d] after the final normalisation.

    attention_rows: [layers, b, rows, columns] attention probabilities summed over heads, float32 or wider, or None.
    hidden_states: [layers + 1, b, t, d], the input of each layer and then `hidden`, or None.
    """

    hidden: jax.Array
    attention_rows: jax.Array | None
    hidden_states: jax.Array | None


class KVCache(NamedTuple):
    """keys (rotated), values: [layers, b, n, s, h], in which a head's slots lie together as the products of attention read them.

    Slot p belongs to position p.
    """

    keys: jax.Array
    values: jax.Array

    def with_room(self, slots: int) -> KVCache:
        """The same with `slots` free slots behind."""
        return KVCache(*(jnp.pad(a, ((0, 0), (0, 0), (0, 0), (0, slots), (0, 0))) for a in self))


def rotation(positions: jax.Array, rotary_dim: int, theta: float, dtype: jax.typing.DTypeLike) -> Rotation:
    """Cosine and sine, each [.., rotary_dim / 2], of positions * theta ** (-2 i / rotary_dim)."""
    inverse_frequency = theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    angles = positions[..., None].astype(dtype) * jnp.asarray(inverse_frequency, dtype)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos_sin: Rotation) -> jax.Array:
    """Rotates the first elements of each head of x [b, t, n, h] by the angles of its position ([b or 1, t, rotary_dim / 2])."""
    cos, sin = (a[:, :, None, :] for a in cos_sin)
    half = cos.shape[-1]
    a, b, rest = x[..., :half].astype(cos.dtype), x[..., half : 2 * half].astype(cos.dtype), x[..., 2 * half :]
    return jnp.concatenate([(a * cos - b * sin).astype(x.dtype), (b * cos + a * sin).astype(x.dtype), rest], axis=-1)


class PhiAttention(nnx.Module):
    def __init__(self, config: PhiConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        d = config.hidden_size
        self.q_proj = Linear(d, d, axes=("embed", "heads"), rngs=rngs, lora=config.lora)
        self.k_proj = Linear(d, d, axes=("embed", "heads"), rngs=rngs)
        self.v_proj = Linear(d, d, axes=("embed", "heads"), rngs=rngs, lora=config.lora)
        self.dense = Linear(d, d, axes=("heads", "embed"), rngs=rngs)

    def project(self, x: jax.Array, cos_sin: Rotation, *, rng: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[b, t, d] -> rotated queries, rotated keys, values, each [b, t, n, h]."""
        q_rng, v_rng = split_or_none(rng, 2)
        shape = (*x.shape[:2], self.num_heads, -1)
        q = rotate(self.q_proj(x, rng=q_rng).reshape(shape), cos_sin)
        k = rotate(self.k_proj(x).reshape(shape), cos_sin)
        return q, k, self.v_proj(x, rng=v_rng).reshape(shape)


class PhiMlp(nnx.Module):
    def __init__(self, config: PhiConfig, *, rngs: nnx.Rngs):
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, axes=("embed", "mlp"), rngs=rngs)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=True))


class PhiLayer(nnx.Module):
    """Parallel transformer layer."""

    def __init__(self, config: PhiConfig, *, rngs: nnx.Rngs):
        self.residual_dropout = config.residual_dropout
        self.input_layernorm = LayerNorm(config.hidden_size, rngs=rngs, epsilon=config.layer_norm_eps)
        self.self_attn = PhiAttention(config, rngs=rngs)
        self.mlp = PhiMlp(config, rngs=rngs)

    def __call__(self, x: jax.Array, cos_sin: Rotation, attend: Attend, *, rng: jax.Array | None = None) -> tuple[jax.Array, Any]:
        """x [b, t, d] -> ([b, t, d], what `attend(q, k, v)` returned beside its output [b, t, n, h])."""
        lora_rng, attention_rng, mlp_rng = split_or_none(rng, 3)
        h = self.input_layernorm(x)
        y, extra = attend(*self.self_attn.project(h, cos_sin, rng=lora_rng))
        y = dropout(self.self_attn.dense(y.reshape(x.shape)), self.residual_dropout, attention_rng)
        return x + y + dropout(self.mlp(h), self.residual_dropout, mlp_rng), extra


class Phi(nnx.Module):
    """Embedding, decoder layers, final normalisation and LM head. `rng` arguments switch dropout on; None is evaluation."""

    def __init__(self, config: PhiConfig, *, rngs: nnx.Rngs):
        self.config = config
        d = config.hidden_size
        self.embed_tokens = Embedding(config.embed_rows, d, axes=("vocab", "embed"), rngs=rngs)
        self.layers = stack_layers(lambda rngs: PhiLayer(config, rngs=rngs), config.num_layers, rngs)
        self.final_layernorm = LayerNorm(d, rngs=rngs, epsilon=config.layer_norm_eps)
        self.lm_head = Linear(d, config.vocab_size, axes=("embed", "vocab"), rngs=rngs, use_bias=False)

    def embed(self, ids: jax.Array) -> jax.Array:
        """Token ids [b, t] in 0 .. embed_rows - 1 -> [b, t, d] in the dtype of the table."""
        return self.embed_tokens(ids)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [.., d] -> next-token logits [.., vocab]."""
        return self.lm_head(hidden)

    def _rotation(self, positions: jax.Array, dtype: jax.typing.DTypeLike) -> Rotation:
        return rotation(positions, self.config.rotary_dim, self.config.rope_theta, wide(dtype))

    @property
    def _scale(self) -> float:
        return self.config.head_dim**-0.5

    def __call__(
        self,
        embeds: jax.Array,
        attention_mask: jax.Array,
        *,
        query_rows: jax.Array | None = None,
        key_columns: tuple[jax.Array, int] | None = None,
        rng: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> PhiOutput:
        """One pass over whole sequences; position i of a row is its i-th element, padding or not.

        Args:
            embeds: [b, t, d]; its dtype is the compute dtype.
            attention_mask: bool [b, t], False where a token may not be attended to.
            query_rows: int [b, r], positions whose attention probabilities are returned, or None.
            key_columns: (start int [b], length): the window of keys on which those are returned; None for all keys.
            rng: dropout key, or None for evaluation.
            output_hidden_states: also return the input of every layer.
        """
        t = embeds.shape[1]
        cos_sin = self._rotation(jnp.arange(t)[None], embeds.dtype)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            y = attention(q, k, v, causal=True, key_mask=attention_mask, scale=self._scale)
            if query_rows is None:
                return y, None
            q_rows = jnp.take_along_axis(q, query_rows[:, :, None, None], axis=1)
            rows = attention_rows(q_rows, k, query_rows, attention_mask, scale=self._scale).sum(1)  # [b, r, t]
            if key_columns is not None:
                start, length = key_columns
                rows = jax.vmap(lambda row, i: jax.lax.dynamic_slice_in_dim(row, i, length, axis=1))(rows, start)
            return y, rows

        definition, state = nnx.split(self.layers)

        def body(x: jax.Array, layer: tuple[nnx.State, jax.Array | None]) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
            layer_state, layer_rng = layer
            # What the layers hand on is also what is kept for the backward pass.
            x = constrain(x, "batch", None, None)
            y, rows = nnx.merge(definition, layer_state)(x, cos_sin, attend, rng=layer_rng)
            return y, (rows, x if output_hidden_states else None)

        layer_rngs = None if rng is None else jax.random.split(rng, self.config.num_layers)
        x, (rows, inputs) = jax.lax.scan(rematerialized(body, self.config.remat), embeds, (state, layer_rngs))
        hidden = self.final_layernorm(x)
        return PhiOutput(hidden, rows, jnp.concatenate([inputs, hidden[None]]) if output_hidden_states else None)

    def prefill(self, embeds: jax.Array) -> tuple[jax.Array, KVCache]:
        """A pass over the beginning of sequences, [b, t, d] without padding, that keeps what `decode` needs of it.

        Returns:
            Hidden states [b, t, d] after the final normalisation, and a cache of t slots.
        """
        cos_sin = self._rotation(jnp.arange(embeds.shape[1])[None], embeds.dtype)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            return attention(q, k, v, causal=True, scale=self._scale), (k.swapaxes(1, 2), v.swapaxes(1, 2))

        definition, state = nnx.split(self.layers)
        x, (keys, values) = jax.lax.scan(lambda x, s: nnx.merge(definition, s)(x, cos_sin, attend), embeds, state)
        return self.final_layernorm(x), KVCache(keys, values)

    def decode(self, embeds: jax.Array, cache: KVCache, positions: jax.Array) -> tuple[jax.Array, KVCache]:
        """The next t tokens of every row, few of them; rows may stand at different positions.

        A token sees the slots up to its own. What the slots behind the last token hold does not matter: a row with fewer tokens than
        others is padded on the right, and its next call overwrites what the padding left.

        Args:
            embeds: [b, t, d].
            cache: holds the tokens before `positions`.
            positions: int [b], of the first of the tokens; positions + t is at most the number of slots.

        Returns:
            Hidden states [b, t, d] after the final normalisation, and the cache with the tokens in their slots.
        """
        b, t = embeds.shape[:2]
        rows, places = jnp.arange(b)[:, None], positions[:, None] + jnp.arange(t)
        cos_sin = self._rotation(places, embeds.dtype)
        definition, state = nnx.split(self.layers)

        # The cache is carried, not scanned over, so that a step writes its slots in place.
        def body(carry: tuple[jax.Array, KVCache], layer: tuple[nnx.State, jax.Array]) -> tuple[tuple[jax.Array, KVCache], None]:
            x, (keys, values) = carry
            layer_state, i = layer

            def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KVCache]:
                new = KVCache(keys.at[i, rows, :, places].set(k), values.at[i, rows, :, places].set(v))
                weights = attention_rows(q, new.keys[i].swapaxes(1, 2), places, scale=self._scale)
                return jnp.einsum("bnts,bnsh->btnh", weights.astype(v.dtype), new.values[i]), new

            return nnx.merge(definition, layer_state)(x, cos_sin, attend), None

        (x, cache), _ = jax.lax.scan(body, (embeds, cache), (state, jnp.arange(self.config.num_layers)))
        return self.final_layernorm(x), cache
