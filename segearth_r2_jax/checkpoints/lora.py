"""Low-rank adapters (Hu et al. 2021) folded into the kernels that they adapt, and taken out again.

W' = W + s A B with s = alpha / rank, which is what PEFT's `merge_and_unload` computes (there transposed: W + s B A). Everything is
computed in float32, or in float64 if that is asked for, one layer of a stack at a time; whoever stores the result in a narrower dtype
rounds it once more.

How exact that is, with ulp(x) the distance from x to the next float32:

* `merge` differs from PEFT's float32 merge only if the matrix product sums the `rank` products in another order than PyTorch's: by at
  most `rank` roundings of the update, and one of the sum. PEFT 0.21.2 with torch 2.13 gave the same bits wherever it was measured.
* `unmerge(merge(W))` is within (ulp(W') + ulp(W)) / 2 of W, if both ran in the same process or the product's bits are the same.
* float16 kernels therefore come back bit for bit (after rounding to float16) as long as |W'| < 0.5: the error is below 2^-25, half the
  distance of the closest float16 numbers. Beyond it numbers W with |W| >= 2^-11 |W'| come back too. Merged in float64 all do.
"""

from __future__ import annotations

import numpy as np

from segearth_r2_jax.models.binding import Params, flatten, unflatten
from segearth_r2_jax.models.layers import LoraConfig


def merge(kernel: np.ndarray, a: np.ndarray, b: np.ndarray, lora: LoraConfig, *, dtype: np.typing.DTypeLike = np.float32) -> np.ndarray:
    """The kernel that computes alone what `kernel` and its adapter compute together.

    kernel [.., in, out], a [.., in, r], b [.., r, out] -> [.., in, out], all with the same leading dimensions; `dtype` is float32 or
    float64, that of the arithmetic and of the result.
    """
    return _add(kernel, a, b, lora.alpha / lora.rank, np.dtype(dtype))


def unmerge(merged: np.ndarray, a: np.ndarray, b: np.ndarray, lora: LoraConfig, *, dtype: np.typing.DTypeLike = np.float32) -> np.ndarray:
    """The inverse of `merge`: shapes and dtype are the same; see above how exact it is."""
    return _add(merged, a, b, -lora.alpha / lora.rank, np.dtype(dtype))


def merge_lora(params: Params, lora: LoraConfig) -> Params:
    """`params` without adapters: every kernel [.., in, out] beside `lora_a` and `lora_b` is merged with them in float32 (float64 if one
    of the three is float64) and keeps its dtype."""
    flat = flatten(params)
    merged = {path: leaf for path, leaf in flat.items() if path.split("/")[-1] not in ("lora_a", "lora_b")}
    for path in flat:
        parent, _, name = path.rpartition("/")
        if name != "lora_a":
            continue
        kernel, a, b = (np.asarray(flat[f"{parent}/{leaf}"]) for leaf in ("kernel", "lora_a", "lora_b"))
        merged[f"{parent}/kernel"] = merge(kernel, a, b, lora, dtype=arithmetic(kernel, a, b)).astype(kernel.dtype)
    return unflatten(merged)


def arithmetic(*arrays: np.ndarray) -> np.dtype:
    """The dtype to merge these in: float32, or float64 if one of them is float64."""
    return np.dtype(np.float64 if any(array.dtype == np.float64 for array in arrays) else np.float32)


def _add(kernel: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float, dtype: np.dtype) -> np.ndarray:
    if kernel.ndim > 2:
        layers = np.empty(kernel.shape, dtype)
        for i in range(len(kernel)):
            layers[i] = _add(kernel[i], a[i], b[i], scale, dtype)
        return layers
    update = (a.astype(dtype) @ b.astype(dtype)) * dtype.type(scale)
    return kernel.astype(dtype) + update
