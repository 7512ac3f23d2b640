"""Sine position of a pixel, used by the pixel decoder and by the mask decoder.

Carion et al. 2020 (DETR), appendix A.4. Mirrors `PositionEmbeddingSine(normalize=True)` of the reference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def sine_position(height: int, width: int, features: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Position of every pixel: [height, width, features], the first half of the features from y, the second from x."""
    # The barrier keeps the compiler from storing the whole map in the program.
    y, x = jax.lax.optimization_barrier([jnp.asarray(_sine_axis(length, features // 2), dtype) for length in (height, width)])
    shape = (height, width, features // 2)
    return jnp.concatenate([jnp.broadcast_to(y[:, None], shape), jnp.broadcast_to(x[None, :], shape)], axis=-1)


def _sine_axis(length: int, features: int) -> np.ndarray:
    """[length, features]: sine and cosine in turn, wavelengths from 2 pi to 10000 * 2 pi of the axis scaled to 2 pi."""
    coordinate = (np.arange(length) + 1) / (length + 1e-6) * 2 * np.pi
    wavelength = 10000.0 ** (2 * (np.arange(features) // 2) / features)
    angle = coordinate[:, None] / wavelength
    return np.where(np.arange(features) % 2 == 0, np.sin(angle), np.cos(angle))
