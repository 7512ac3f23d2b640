"""The operator: what it takes, its gradients, and which form of it runs on which platform (decided when a program is lowered)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import segearth_r2_jax.kernels.masked_attention.cpu as cpu
import segearth_r2_jax.kernels.masked_attention.gpu as gpu
import segearth_r2_jax.kernels.masked_attention.reference as reference
import segearth_r2_jax.kernels.masked_attention.tpu as tpu
from segearth_r2_jax.placement import per_device

_QUERIES = _PIXELS = _OUT = ("batch", None, "heads", None)
_INPUTS = (_QUERIES, _PIXELS, _PIXELS, ("batch", None, None), ("batch", None, None))
_SAVED = (_OUT, ("batch", "heads", None), ("batch", None))


def masked_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask_embed: jax.Array, mask_features: jax.Array, *, scale: float
) -> jax.Array:
    """Attention of every query to the pixels where its mask is predicted, or to all pixels where it is predicted nowhere.

    The mask logits of a query are the dot products of its mask embedding with the mask features of the pixels, in the dtype of these; where
    they are below zero (see `reference.lowest_open_logit`), all heads are blocked. On TPUs and NVIDIA GPUs neither the mask nor the scores
    exist in memory, only a block of pixels at a time of both.

    Args:
        q: [b, q, n, d] queries.
        k: [b, s, n, d] keys of the s pixels of one level.
        v: [b, s, n, d] values.
        mask_embed: [b, q, c] mask embeddings of the queries.
        mask_features: [b, s, c] mask features at the resolution of the level. No gradient flows into it or into `mask_embed`.
        scale: factor of the dot products.

    Returns:
        [b, q, n, d] in the dtype of `q`, which is that of all arguments; the softmax is computed in float32 or wider.
    """
    return _masked_attention(q * scale, k, v, mask_embed, mask_features)


@jax.custom_vjp
def _masked_attention(*inputs: jax.Array) -> jax.Array:
    return _attend(*inputs)[0]


def _attend(*inputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return per_device(_form("attend", *inputs), _INPUTS, _SAVED)(*inputs)


def _forward(*inputs: jax.Array):
    out, logsumexp, masked = _attend(*inputs)
    return out, (*inputs, out, logsumexp, masked)


def _backward(residuals: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
    function = _form("gradients", *residuals[:5])
    gradients = per_device(function, (*_INPUTS, *_SAVED, _OUT), (_QUERIES, _PIXELS, _PIXELS))(*residuals, cotangent)
    return *gradients, None, None


_masked_attention.defvjp(_forward, _backward)


def _form(name: str, q: jax.Array, k: jax.Array, v: jax.Array, mask_embed: jax.Array, mask_features: jax.Array) -> Callable[..., Any]:
    """`attend` or `gradients`, in the form of the platform that the program is lowered for."""
    forms = {"cpu": cpu.attend} if name == "attend" else {}
    if q.dtype != jnp.float64:
        forms["tpu"] = getattr(tpu, name)
        if gpu.takes(q, mask_features):
            forms["cuda"] = getattr(gpu, name)
    return lambda *arrays: jax.lax.platform_dependent(*arrays, default=getattr(reference, name), **forms)
