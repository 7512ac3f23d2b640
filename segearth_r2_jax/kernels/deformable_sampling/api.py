"""The operator: what it takes, its gradients, and which form of it runs on which platform.

The platform is decided when a program is lowered, not by the machine that traces it: `segearth-r2 compile` lowers for TPUs on a CPU.
"""

from __future__ import annotations

import functools

import jax

import segearth_r2_jax.kernels.deformable_sampling.gpu as gpu
import segearth_r2_jax.kernels.deformable_sampling.reference as reference
import segearth_r2_jax.kernels.deformable_sampling.tpu as tpu
from segearth_r2_jax.placement import per_device

Shapes = tuple[tuple[int, int], ...]
# What the dimensions of values, locations, weights and the result [b, q, n, d] are called where devices share the work.
_VALUES, _LOCATIONS, _WEIGHTS = (("batch", None, "heads", *[None] * more) for more in (1, 3, 2))


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
        cuda=lambda v, x, w: _gpu_sample(v, shapes, x, w),
        default=lambda v, x, w: reference.sample(v, shapes, x, w),
    )


def _forward(values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array):
    return deformable_sampling(values, shapes, locations, weights), (values, locations, weights)


def _backward(shapes: Shapes, residuals: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jax.lax.platform_dependent(
        *residuals,
        cotangent,
        tpu=lambda v, x, w, c: tpu.gradients(v, shapes, x, w, c),
        cuda=lambda v, x, w, c: _gpu_gradients(v, shapes, x, w, c),
        default=lambda v, x, w, c: reference.gradients(v, shapes, x, w, c),
    )


deformable_sampling.defvjp(_forward, _backward)


def _gpu_sample(values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array) -> jax.Array:
    """By the kernel where it takes the arrays; XLA cannot divide it, so that every device runs it on its own images and heads."""
    if not gpu.fits(values, locations):
        return reference.sample(values, shapes, locations, weights)
    sample = per_device(lambda v, x, w: gpu.sample(v, shapes, x, w), (_VALUES, _LOCATIONS, _WEIGHTS), _VALUES)
    return sample(values, locations, weights).reshape(*locations.shape[:2], -1)


def _gpu_gradients(
    values: jax.Array, shapes: Shapes, locations: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    if not gpu.fits(values, locations):
        return reference.gradients(values, shapes, locations, weights, cotangent)
    names = _VALUES, _LOCATIONS, _WEIGHTS
    gradients = per_device(lambda v, x, w, c: gpu.gradients(v, shapes, x, w, c), (*names, _VALUES), names)
    return gradients(values, locations, weights, cotangent.reshape(*locations.shape[:3], -1))
