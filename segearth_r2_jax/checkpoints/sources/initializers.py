"""Parameters that no file has, drawn as PyTorch's modules initialise themselves.

Each is a function of the seed and of its own name only, so that it does not change with what else is drawn; the numbers are numpy's,
not those that a seed of torch gives.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np

from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _lazy(name: str, shape: tuple[int, ...], seed: int, draw: Draw, dtype: np.typing.DTypeLike = np.float32) -> LazyTensor:
    def load() -> np.ndarray:
        return draw(np.random.default_rng([seed, zlib.crc32(name.encode())]), shape).astype(dtype)

    return LazyTensor(name, shape, np.dtype(dtype), load)


def zeros(name: str, shape: tuple[int, ...]) -> LazyTensor:
    """Zeros [*shape], float32."""
    return _lazy(name, shape, 0, lambda rng, shape: np.zeros(shape, np.float32))


def normal(name: str, shape: tuple[int, ...], seed: int, std: float, dtype: np.typing.DTypeLike = np.float32) -> LazyTensor:
    """Normal numbers [*shape] with standard deviation `std`; with 1, as `torch.nn.Embedding` begins."""
    return _lazy(name, shape, seed, lambda rng, shape: rng.standard_normal(shape, np.float32) * np.float32(std), dtype)


def linear(name: str, outputs: int, inputs: int, seed: int) -> dict[str, LazyTensor]:
    """`weight` [out, in] and `bias` [out] of `torch.nn.Linear`: uniform within 1 / sqrt(in), float32."""
    bound = 1 / math.sqrt(inputs)

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.uniform(-bound, bound, shape)

    return {
        f"{name}.weight": _lazy(f"{name}.weight", (outputs, inputs), seed, draw),
        f"{name}.bias": _lazy(f"{name}.bias", (outputs,), seed, draw),
    }
