"""Dot-product attention: what it takes, its gradients, and which form of it runs on which platform.

The platform is decided when a program is lowered, not by the machine that traces it: `segearth-r2 compile` lowers for TPUs on a CPU.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

import segearth_r2_jax.kernels.attention.gpu as gpu
import segearth_r2_jax.kernels.attention.reference as reference
import segearth_r2_jax.kernels.attention.tpu as tpu
from segearth_r2_jax.placement import per_device

_FORMS = {"tpu": tpu.attend, "cuda": gpu.attend, "default": reference.attend}
# With fewer queries or keys the scores are small, and a fused form fills most of its blocks with padding.
_SHORTEST = 512
# Head widths are multiples of this.
_WIDTH_STEP = 8
# Of q, k, v and the result.
_AXES = ("batch", None, "heads", None)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    key_mask: jax.Array | None = None,
    scale: float,
) -> jax.Array:
    """softmax(scale * q k^T) v, scores and softmax in float32 or wider.

    From 512 tokens on, bfloat16 and float32 run fused on TPU and GPU, every device computing its own batch rows and heads. Products of
    bfloat16 are summed in float32; those of float32 are then full float32 products, whatever JAX's default is.

    Args:
        q: [b, t, n, h].
        k: [b, s, n, h].
        v: [b, s, n, h].
        causal: query i sees the keys 0..i only (queries and keys then stand at the same positions, t == s).
        key_mask: bool [b, s], False where a key is padding; None if there is none.
        scale: factor of the scores, usually h ** -0.5.

    Returns:
        [b, t, n, h] in the dtype of v. A query that sees no key gets the mean of all values.

    Raises:
        ValueError: causal with t != s.
    """
    t, s = q.shape[1], k.shape[1]
    if causal and t != s:
        raise ValueError(f"causal attention needs as many queries as keys, got {t} and {s}")
    if not _fused(q, k, v):
        return reference.attend(q, k, v, key_mask, causal=causal, scale=scale)
    arrays = (q, k, v) if key_mask is None else (q, k, v, key_mask)
    axes = (_AXES, _AXES, _AXES, ("batch", None))[: len(arrays)]
    forward = per_device(functools.partial(_forward, causal=causal, scale=scale), axes, _AXES)
    backward = per_device(functools.partial(_backward, causal=causal, scale=scale), (_AXES, *axes), (_AXES, _AXES, _AXES))

    # Both ways are bound here, so that the backward pass, traced later, is divided among the devices as the forward pass was.
    @jax.custom_vjp
    def attend(*arrays: jax.Array) -> jax.Array:
        return forward(*arrays)

    attend.defvjp(
        lambda *arrays: (forward(*arrays), arrays),
        lambda arrays, cotangent: (*backward(cotangent, *arrays), *(None for _ in arrays[3:])),
    )
    return attend(*arrays)


def _fused(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
    """Whether another form than the definition can run and is worth its while, by dtypes and shapes."""
    if jax.config.jax_enable_x64 or not q.dtype == k.dtype == v.dtype:  # The TPU's kernels index with 32 bits.
        return False
    return q.dtype in (jnp.bfloat16, jnp.float32) and q.shape[-1] % _WIDTH_STEP == 0 and min(q.shape[1], k.shape[1]) >= _SHORTEST


def _forward(*arrays: jax.Array, causal: bool, scale: float) -> jax.Array:
    forms = {platform: functools.partial(form, causal=causal, scale=scale) for platform, form in _FORMS.items()}
    with _products_of(arrays[0].dtype):
        return jax.lax.platform_dependent(*arrays, **forms)


def _backward(cotangent: jax.Array, *arrays: jax.Array, causal: bool, scale: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v. The forward pass runs once more in it: what of it would have to be kept differs by form, and recomputed
    layers would compute it once more in any case.
    """

    def gradients(form: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
        def run(cotangent: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, *key_mask: jax.Array):
            _, pull = jax.vjp(lambda q, k, v: form(q, k, v, *key_mask, causal=causal, scale=scale), q, k, v)
            return pull(cotangent)

        return run

    with _products_of(cotangent.dtype):
        return jax.lax.platform_dependent(cotangent, *arrays, **{platform: gradients(form) for platform, form in _FORMS.items()})


def _products_of(dtype: jnp.dtype) -> contextlib.AbstractContextManager[None]:
    """Without it TPUs would round float32 to bfloat16, and GPUs to TF32, before they multiply."""
    return jax.default_matmul_precision("highest") if dtype == jnp.float32 else contextlib.nullcontext()
