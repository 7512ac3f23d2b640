"""The choice of the points at which a map is least certain, in the form that suits the platform a program is lowered for."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def smallest_points(points: jax.Array, scores: jax.Array, count: int) -> jax.Array:
    """The `count` points with the smallest scores, those with the smallest one first; of equal scores, the earlier point first.

    Args:
        points: [..., k, 2]
        scores: [..., k]

    Returns:
        [..., count, 2]; no gradient flows through the choice or the points.
    """
    points, scores = jax.lax.stop_gradient((points, scores))
    return jax.lax.platform_dependent(
        points,
        scores,
        cpu=lambda p, s: by_index(p, s, count),
        default=lambda p, s: by_sorting_points(p, s, count),
    )


def by_index(points: jax.Array, scores: jax.Array, count: int) -> jax.Array:
    """Indices first, then the points they name: fastest on a CPU."""
    _, chosen = jax.lax.top_k(-scores, count)
    return jnp.take_along_axis(points, chosen[..., None], axis=-2)


def by_sorting_points(points: jax.Array, scores: jax.Array, count: int) -> jax.Array:
    """The coordinates are carried along by the sort. To look them up would move a hundred times the memory on a TPU, and XLA splits a
    sort over devices by its other axes, but not `top_k`.
    """
    _, x, y = jax.lax.sort((scores, points[..., 0], points[..., 1]), num_keys=1, is_stable=True)
    return jnp.stack([x[..., :count], y[..., :count]], -1)
