"""Linear interpolation along an axis as a row of weights, so that a matrix product can sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def interpolation_weights(position: jax.Array, size: int) -> jax.Array:
    """Weight of each of an axis' `size` pixels in a linear sample at `position` [...], in pixels, 0 at the first one's centre.

    One minus the distance where that is positive: zero but for two pixels, and everywhere if the position is a pixel or more outside.
    At a pixel's centre, where the slope jumps, it is that of the interval after it.

    Returns:
        [..., size] in the dtype of `position`.
    """
    position = position[..., None]
    first = jnp.floor(position)
    pixel = jax.lax.broadcasted_iota(position.dtype, (*position.shape[:-1], size), position.ndim - 1)
    return jnp.where(pixel == first, 1 - (position - first), jnp.where(pixel == first + 1, position - first, 0))
