"""Building blocks shared by every network: dense, LoRA, convolution, normalisation, embedding.

Conventions of all networks here:

* Activations carry the compute dtype: a weight is cast to the dtype of its input where it is used. bfloat16 compute with
  float32 master weights, all-float32 and all-float64 are the same code.
* Statistics (softmax, normalisation) are computed in float32 or wider.
* Every parameter is an `nnx.Param` with `logical_axes`, one logical name (or None) per dimension; `sharding.rules` maps
  names to mesh axes. Layers that are stacked and scanned have one more leading dimension than names.
* Images are [b, h, w, c]; dense kernels are [in, out]; convolution kernels are [kh, kw, in, out].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from segearth_r2_jax.models.int8 import Int8Kernel
from segearth_r2_jax.placement import ACTIVATION_AXES, constrain, gathered

Initializer = Callable[..., jax.Array]

# The names that a parameter's dimension may carry; `sharding.rules` has a line for each.
LOGICAL_AXES = ("embed", "mlp", "heads", "vocab", "channels_in", "channels_out", "lora_rank", "layers")


def wide(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype in which statistics of `dtype` values are computed: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def parameter(init: Initializer, shape: tuple[int, ...], axes: tuple[str | None, ...], rngs: nnx.Rngs) -> nnx.Param:
    """A float32 parameter of `shape` whose dimensions carry the logical names `axes`."""
    if len(shape) != len(axes):
        raise ValueError(f"a parameter of shape {shape} needs {len(shape)} logical axes, got {axes}")
    return nnx.Param(init(rngs.params(), shape, jnp.float32), logical_axes=axes)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation of a dense layer (Hu et al. 2021): y += (x A) B * alpha / rank."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05


class Linear(nnx.Module):
    """Dense layer [.., in] -> [.., out], with low-rank adaptation if `lora` is given.

    `axes` are the logical names of the kernel's two dimensions; the bias carries the second. For answering, an `Int8Kernel` may take the
    kernel's place.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str | None, str | None],
        rngs: nnx.Rngs,
        use_bias: bool = True,
        lora: LoraConfig | None = None,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
    ):
        self.kernel = parameter(kernel_init, (in_features, out_features), axes, rngs)
        self.bias = parameter(bias_init, (out_features,), axes[1:], rngs) if use_bias else None
        self.axes = axes
        self.lora = lora
        if lora is not None:
            # As in peft: A like torch's default Linear (uniform, bound 1/sqrt(in)), B zero, so that training starts at the base.
            a_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            self.lora_a = parameter(a_init, (in_features, lora.rank), (axes[0], "lora_rank"), rngs)
            self.lora_b = parameter(nnx.initializers.zeros_init(), (lora.rank, out_features), ("lora_rank", axes[1]), rngs)

    def __call__(self, x: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """`rng` switches on the dropout of the low-rank branch (training only)."""
        kernel = self.kernel[...]
        if isinstance(kernel, Int8Kernel):
            y = jnp.matmul(x, gathered(kernel.values.astype(x.dtype), self.axes), preferred_element_type=wide(x.dtype))
            y = (y * kernel.scale).astype(x.dtype)
        else:
            y = x @ gathered(kernel.astype(x.dtype), self.axes)
        if self.lora is not None:
            z = dropout(x, self.lora.dropout, rng)
            a = gathered(self.lora_a[...].astype(x.dtype), (self.axes[0], "lora_rank"))
            z = (z @ a) @ gathered(self.lora_b[...].astype(x.dtype), ("lora_rank", self.axes[1]))
            y = y + z * (self.lora.alpha / self.lora.rank)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return constrain(y, "batch", *[None] * (y.ndim - 2), self.axes[1] if self.axes[1] in ACTIVATION_AXES else None)


class Conv(nnx.Module):
    """2-d convolution [b, h, w, in] -> [b, h', w', out]; `padding` is "VALID" or "SAME".

    One whose patches touch without overlapping, as those of an embedding of patches or of size 1, is a dense layer of the patches: one
    matrix product, up to twice as fast on a CPU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        rngs: nnx.Rngs,
        stride: int = 1,
        padding: str = "VALID",
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
    ):
        self.stride = stride
        self.padding = padding
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = parameter(kernel_init, shape, (None, None, "channels_in", "channels_out"), rngs)
        self.bias = parameter(nnx.initializers.zeros_init(), (out_channels,), ("channels_out",), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = gathered(self.kernel[...].astype(x.dtype), (None, None, "channels_in", "channels_out"))
        if self.padding == "VALID" and self.stride == kernel.shape[0]:
            y = _patches(x, self.stride) @ kernel.reshape(-1, kernel.shape[-1])
        else:
            strides = (self.stride, self.stride)
            y = jax.lax.conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return constrain(y + self.bias[...].astype(x.dtype), "batch", None, None, None)


def _patches(x: jax.Array, size: int) -> jax.Array:
    """[b, h, w, c] -> [b, h // size, w // size, size * size * c]; what is left over at the right and at the bottom is left out."""
    b, h, w, c = x.shape
    rows, columns = h // size, w // size
    x = x[:, : rows * size, : columns * size].reshape(b, rows, size, columns, size, c)
    return x.swapaxes(2, 3).reshape(b, rows, columns, size * size * c)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last dimension, statistics in float32 or wider."""

    def __init__(self, features: int, *, rngs: nnx.Rngs, epsilon: float = 1e-5, axis: str | None = None):
        self.epsilon = epsilon
        self.scale = parameter(nnx.initializers.ones_init(), (features,), (axis,), rngs)
        self.bias = parameter(nnx.initializers.zeros_init(), (features,), (axis,), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(wide(x.dtype))
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation of [b, h, w, c] over space and the channels of a group, statistics in float32 or wider."""

    def __init__(self, features: int, *, rngs: nnx.Rngs, groups: int = 32, epsilon: float = 1e-5):
        self.groups = groups
        self.epsilon = epsilon
        self.scale = parameter(nnx.initializers.ones_init(), (features,), (None,), rngs)
        self.bias = parameter(nnx.initializers.zeros_init(), (features,), (None,), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(wide(x.dtype))
        y = y - self._group_mean(y)
        y = y * jax.lax.rsqrt(self._group_mean(jnp.square(y)) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)

    def _group_mean(self, y: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, 1, 1, c]; over space first, since a reduction over the few channels of a group is slow."""
        b, _, _, c = y.shape
        mean = y.mean((1, 2)).reshape(b, self.groups, c // self.groups).mean(-1, keepdims=True)
        return jnp.broadcast_to(mean, (b, self.groups, c // self.groups)).reshape(b, 1, 1, c)


class Embedding(nnx.Module):
    """Lookup table [rows, features]."""

    def __init__(
        self,
        rows: int,
        features: int,
        *,
        axes: tuple[str | None, str | None],
        rngs: nnx.Rngs,
        init: Initializer = nnx.initializers.normal(0.02),
    ):
        self.table = parameter(init, (rows, features), axes, rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        # The features of a row lie on different devices. Rows are looked up where they lie, then exchanged for whole ones of fewer tokens.
        ids = constrain(ids, "lookup_batch", *[None] * (ids.ndim - 1))
        features = constrain(jnp.take(self.table[...], ids, axis=0), "lookup_batch", *[None] * (ids.ndim - 1), "lookup_features")
        return constrain(features, "batch", *[None] * ids.ndim)


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU, computed in float32 or wider. `jax.nn.gelu` asks for erfc, which takes a TPU's compiler twice as long."""
    y = x.astype(wide(x.dtype))
    return (0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


def dropout(x: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
    """Inverted dropout of [..., tokens, features]; the identity where `rng` is None or `rate` is 0.

    16 random bits decide on a value, so `rate` is that of the nearest multiple of 1 / 65536. Every word of the generator, which is what
    dropout costs, serves two tokens.
    """
    if rng is None or rate == 0.0:
        return x
    *batch, tokens, features = x.shape
    words = jax.random.bits(rng, (*batch, -(-tokens // 2), features), jnp.uint32)
    bits = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-2)[..., :tokens, :]
    dropped = round(rate * 2**16)
    return jnp.where(bits >= dropped, x / (1 - dropped / 2**16), 0).astype(x.dtype)


def split_or_none(rng: jax.Array | None, n: int) -> list[jax.Array | None]:
    """`n` independent keys, or `n` times None: the form in which optional randomness is handed down."""
    return [None] * n if rng is None else list(jax.random.split(rng, n))


def stack_layers(make: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs) -> nnx.Module:
    """`n` layers of one form as a single module whose parameters have a leading dimension `n`, to be scanned over."""
    return nnx.vmap(make, in_axes=0, out_axes=0, axis_size=n)(rngs.split(n))


REMAT = ("none", "dots", "full")
# What checkpointing calls the values that are `kept`.
_KEPT = "kept"


def check_remat(remat: str) -> None:
    """Raises ValueError if `remat` is none of REMAT."""
    if remat not in REMAT:
        raise ValueError(f"remat is one of {', '.join(REMAT)}, got {remat!r}")


def rematerialized(layer: Callable[..., Any], remat: str, *, in_scan: bool = True) -> Callable[..., Any]:
    """`layer`, a function of arrays, whose inner values the backward pass computes again instead of finding them in memory.

    Args:
        remat: "none" keeps every value, "dots" those of dense layers (not of attention), "full" only what goes into the layer. Values
            that are `kept` stay in memory in any case.
        in_scan: a scan already keeps XLA from merging the recomputation with the forward pass.
    """
    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(_KEPT)
    if remat == "dots":
        policy = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, policy)
    return jax.checkpoint(layer, prevent_cse=not in_scan, policy=policy)


def kept(x: jax.Array) -> jax.Array:
    """`x`, marked as small and dear: inside a `rematerialized` layer it stays in memory for the backward pass."""
    return checkpoint_name(x, _KEPT)


def scan_periods(
    layers: Sequence[nnx.Module],
    period: int,
    body: Callable[[Any, nnx.Module, int, Any], tuple[Any, Any]],
    carry: Any,
    inputs: Any = None,
    *,
    remat: str = "none",
) -> tuple[Any, Any]:
    """`for i, layer in enumerate(layers): carry, y = body(carry, layer, i % period, input i)`, of which only one period is compiled.

    For layers whose form repeats: layers i and i + period differ in their parameters only. Those are stacked here, not where they are
    kept: a copy that takes next to no time.

    Args:
        inputs: a tree of arrays with a leading dimension of len(layers), or None.
        remat: see `rematerialized`; of a whole period where it is scanned.

    Returns:
        The last carry, and the ys stacked along a new leading dimension.
    """
    scanned = len(layers) // period * period if len(layers) >= 2 * period else 0
    outputs = []
    if scanned:
        split = [nnx.split(layer) for layer in layers[:scanned]]
        states = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *[state for _, state in split[i::period]]) for i in range(period)]
        by_period = jax.tree.map(lambda a: a[:scanned].reshape(-1, period, *a.shape[1:]), inputs)

        def periods(carry: Any, part: tuple[list[nnx.State], Any]) -> tuple[Any, Any]:
            ys = []
            for i, state in enumerate(part[0]):
                carry, y = body(carry, nnx.merge(split[i][0], state), i, jax.tree.map(lambda a, i=i: a[i], part[1]))
                ys.append(y)
            return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)

        carry, ys = jax.lax.scan(rematerialized(periods, remat), carry, (states, by_period))
        outputs.append(jax.tree.map(lambda a: a.reshape(scanned, *a.shape[2:]), ys))
    for i in range(scanned, len(layers)):
        one = rematerialized(lambda carry, given, i=i: body(carry, layers[i], i % period, given), remat, in_scan=False)
        carry, y = one(carry, jax.tree.map(lambda a, i=i: a[i], inputs))
        outputs.append(jax.tree.map(lambda a: a[None], y))
    return carry, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outputs)
