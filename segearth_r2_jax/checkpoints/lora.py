"""Low-rank adapters (Hu et al. 2021) folded into the kernels that they adapt."""

from __future__ import annotations

import numpy as np

from segearth_r2_jax.models.binding import Params, flatten, unflatten
from segearth_r2_jax.models.layers import LoraConfig


def merge_lora(params: Params, lora: LoraConfig) -> Params:
    """`params` without adapters: every kernel [.., in, out] beside `lora_a` [.., in, r] and `lora_b` [.., r, out] becomes
    kernel + A B alpha / r, computed in float32 (float64 if one of them is) and stored in the kernel's dtype.
    """
    flat = flatten(params)
    merged = {path: leaf for path, leaf in flat.items() if path.split("/")[-1] not in ("lora_a", "lora_b")}
    for path in flat:
        parent, _, name = path.rpartition("/")
        if name != "lora_a":
            continue
        kernel, a, b = (np.asarray(flat[f"{parent}/{leaf}"]) for leaf in ("kernel", "lora_a", "lora_b"))
        dtype = np.result_type(np.float32, *(np.float64 for x in (kernel, a, b) if x.dtype == np.float64))
        update = (a.astype(dtype) @ b.astype(dtype)) * dtype.type(lora.alpha / lora.rank)
        merged[f"{parent}/kernel"] = (kernel.astype(dtype) + update).astype(kernel.dtype)
    return unflatten(merged)
