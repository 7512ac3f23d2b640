"""Tensors to store, and stored bytes to damage."""

from __future__ import annotations

import ml_dtypes
import numpy as np


def tensors() -> dict[str, np.ndarray]:
    """Of many dtypes, with and without dimensions and elements."""
    return {
        "flag": np.array([True, False, True]),
        "byte": np.arange(5, dtype=np.uint8),
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "brain": np.array([1.5, -0.0, np.inf], ml_dtypes.bfloat16),
        "single": np.float32([[np.pi]]),
        "double": np.array([np.pi, 5e-324]),
        "index": np.array([[2**62, -1]]),
        "number": np.array(7.0),
        "nothing": np.zeros((0, 4), np.float32),
    }


def damaged(data: bytes, *, every: int, changed: int) -> list[bytes]:
    """`data` cut off at each `every`-th byte, and with each of its first `changed` bytes made another."""
    rng = np.random.default_rng(0)
    contents = [data[:end] for end in range(0, len(data), every)]
    for position in range(changed):
        content = bytearray(data)
        content[position] ^= int(rng.integers(1, 256))
        contents.append(bytes(content))
    return contents
