"""The operator: what it takes, its gradients, and which form of it runs on which platform.

The platform is decided when a program is lowered, not by the machine that traces it: `segearth-r2 compile` lowers for TPUs on a CPU.
"""

from __future__ import annotations

import functools

import jax

import segearth_r2_jax.kernels.deformable_sampling.reference as reference
import segearth_r2_jax.kernels.deformable_sampling.tpu as tpu

Shapes = tuple[tuple[int, int], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def deformable_sampling(values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sum of bilinear samples of every level, per query and head; a pixel outside its map counts as zero.

    Args:
        values: [b, s, n, d] the pixels of all levels in a row, s = sum of h * w.
        shapes: (h, w) of every level; static.
        locations: [b, q, n, levels, points, 2] as (x, y), where a map spans [0, 1] and (0.5 / w, 0.5 / h) is its first pixel's centre.
            Give float32 or wider: half a pixel of a large map is below the resolution of bfloat16.
        weights: [b, q, n, levels, points]

    Returns:
        [b, q, n * d] in the dtype of `values`, summed in float32 or wider.

    Raises:
        ValueError: `values` do not hold as many pixels as `shapes` have.
    """
    pixels = sum(h * w for h, w in shapes)
    if values.shape[1] != pixels:
        raise ValueError(f"values hold {values.shape[1]} pixels, but levels of shapes {shapes} have {pixels}")
    return jax.lax.platform_dependent(
        values,
        locations,
        weights,
        tpu=lambda v, x, w: tpu.sample(v, shapes, x, w),
        default=lambda v, x, w: reference.sample(v, shapes, x, w),
    )


def _forward(values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array):
    return deformable_sampling(values, shapes, locations, weights), (values, locations, weights)


def _backward(shapes: Shapes, residuals: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jax.lax.platform_dependent(
        *residuals,
        cotangent,
        tpu=lambda v, x, w, c: tpu.gradients(v, shapes, x, w, c),
        default=lambda v, x, w, c: reference.gradients(v, shapes, x, w, c),
    )


deformable_sampling.defvjp(_forward, _backward)
