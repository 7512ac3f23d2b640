"""Memory for one array after another. What a process never had before the system must find and clear first, which for gigabytes takes
longer than to copy them."""

from __future__ import annotations

import math

import numpy as np


class ReusedMemory:
    """Holds one array at a time."""

    def __init__(self):
        self._bytes = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array whose values are what was there before; it is no longer valid when the next is asked for."""
        needed = math.prod(shape) * dtype.itemsize
        if self._bytes.nbytes < needed:
            self._bytes = np.empty(needed, np.uint8)
        return self._bytes[:needed].view(dtype).reshape(shape)
