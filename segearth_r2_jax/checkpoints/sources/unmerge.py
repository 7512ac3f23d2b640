"""Merged weights and the adapters that were merged into them -> the weights without, and the adapters beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from segearth_r2_jax.checkpoints.lora import arithmetic, unmerge
from segearth_r2_jax.checkpoints.sources.adapters import is_adapter_folder, lora_config, read_adapters
from segearth_r2_jax.checkpoints.sources.peft_names import is_adapter
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import Origin, ReferenceCheckpoint
from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.layers import LoraConfig


def unmerged(merged: ReferenceCheckpoint, adapters: Path, *, lora_alpha: float | None = None) -> ReferenceCheckpoint:
    """`merged` with the low-rank updates of the folder `adapters` taken out of its q_proj and v_proj, and put beside them.

    It computes what `merged` computes. Each weight is W' - B A alpha / r in float32 (float64 if one of them is), rounded once to the
    dtype of W'; how exactly the W before merging comes back is said in `lora`. What was trained in full beside the adapters is in
    `merged` already and is not read here.

    Raises:
        UserError: `merged` has adapters; `adapters` is no PEFT folder, or does not fit.
    """
    if merged.lora is not None:
        raise UserError(f"{merged.folder}: has its adapters beside its weights; there is nothing to take out")
    if not is_adapter_folder(adapters):
        raise UserError(f"{adapters}: no adapter_config.json; expected the folder of the adapters that were merged")
    found = read_adapters(adapters)
    names = [name for name in found.tensors if is_adapter(name)]
    tensors = {**merged.tensors, **{name: found.tensors[name] for name in names}}
    origins = {**merged.origins, **{name: found.origins[name] for name in names}}
    lora = lora_config(tensors, adapters, adapters, alpha=lora_alpha)
    for name in names:
        if not name.endswith(".lora_A.weight"):
            continue
        weight = f"{name.removesuffix('.lora_A.weight')}.weight"
        tensors[weight] = _without(tensors[weight], tensors[name], tensors[name.replace("lora_A", "lora_B")], lora)
        origin = origins[weight]
        origins[weight] = Origin(origin.file, origin.key, f"{origin.transform}, less its adapter (times {lora.alpha / lora.rank:g})")
    kind = f"{merged.kind}, its adapters taken out"
    return dataclasses.replace(merged, kind=kind, tensors=tensors, origins=origins, lora=lora)


def _without(weight: LazyTensor, a: LazyTensor, b: LazyTensor, lora: LoraConfig) -> LazyTensor:
    """weight [out, in], a [r, in], b [out, r]"""

    def load() -> np.ndarray:
        arrays = [tensor.load() for tensor in (weight, a, b)]
        return unmerge(*(array.T for array in arrays), lora, dtype=arithmetic(*arrays)).T.astype(weight.dtype)

    return LazyTensor(weight.name, weight.shape, weight.dtype, load, (*weight.files, *a.files, *b.files))
