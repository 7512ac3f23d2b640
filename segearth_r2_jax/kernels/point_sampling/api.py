"""The operator: what it takes, its gradients, and which form of it runs on which platform (decided when a program is lowered)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import segearth_r2_jax.kernels.point_sampling.reference as reference
import segearth_r2_jax.kernels.point_sampling.tpu as tpu


def sample_points(maps: jax.Array, points: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
    """Bilinear samples of every map at its own points; everything outside the map counts as zero.

    Args:
        maps: [..., h, w], of any numeric dtype.
        points: [..., k, 2] as (x, y), where a map spans [0, 1] and (0.5 / w, 0.5 / h) is the centre of its first pixel. The axes before
            are those of `maps`, and stay apart: the last of them may be spread over devices, others are loops.
        sizes: int [..., 2], (height, width) of the valid region at the top left of each map: [0, 1] spans that region, and
            everything outside it counts as zero. Without it the whole map is valid.

    Returns:
        [..., k] in the wider dtype of `maps` and `points`.
    """
    *batch, h, w = maps.shape
    sizes = jnp.broadcast_to(jnp.array([h, w]), (*batch, 2)) if sizes is None else sizes
    return _sample_points(maps, points, sizes)


@jax.custom_vjp
def _sample_points(maps: jax.Array, points: jax.Array, sizes: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(maps, points, sizes, tpu=tpu.sample, default=reference.sample)


def _forward(maps: jax.Array, points: jax.Array, sizes: jax.Array):
    return _sample_points(maps, points, sizes), (maps, points, sizes)


def _backward(residuals: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[jax.Array | None, jax.Array, None]:
    return *jax.lax.platform_dependent(*residuals, cotangent, tpu=tpu.gradients, default=reference.gradients), None


_sample_points.defvjp(_forward, _backward)
