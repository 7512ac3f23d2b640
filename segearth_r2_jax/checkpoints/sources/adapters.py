"""LoRA adapters as PEFT saves them, and the tensors that were trained in full beside them (`non_lora_trainables.bin`).

A folder of adapters is `adapter_config.json`, `adapter_model.safetensors` (or `.bin`) and, from training scripts of LLaVA's kind,
`non_lora_trainables.bin` (or `.safetensors`). PEFT itself was not at hand: names and attributes are those of its documentation and of
the reference's scripts, which pin peft 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segearth_r2_jax.checkpoints.json_files import read_json
from segearth_r2_jax.checkpoints.sources.peft_names import ADAPTER, add_plain, is_adapter
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import AS_STORED, Collection, Origin
from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
from segearth_r2_jax.checkpoints.torch_files.state_dict import read_state_dict
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.layers import LoraConfig

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_TRAINED = ("non_lora_trainables.bin", "non_lora_trainables.safetensors")
# Attributes that change what adapters compute, and the values that this network computes; absent means the first.
_PLAIN = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "megatron_config": (None,),
}


def is_adapter_folder(folder: Path) -> bool:
    """Whether `folder` holds what PEFT saves."""
    return (folder / CONFIG).is_file()


def read_adapters(folder: Path) -> Collection:
    """The adapters of a folder and what was trained in full, under plain names.

    Raises:
        UserError: a file is missing, damaged or holds a tensor twice.
    """
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(f"{folder}: has {CONFIG}, but no {' and no '.join(_WEIGHTS)}")
    trained = [folder / name for name in _TRAINED if (folder / name).is_file()]
    if len(trained) > 1:
        raise UserError(f"{folder}: holds {' and '.join(_TRAINED)}; expected one of them")
    found = Collection()
    for file in (weights, *trained):
        tensors = read_state_dict(file)
        add_plain(found, tensors, {key: Origin(str(file), key, AS_STORED) for key in tensors})
    if not any(is_adapter(name) for name in found.tensors):
        raise UserError(f"{weights}: holds no lora_A and lora_B; expected the adapters that {CONFIG} describes")
    return found


def lora_config(
    tensors: Mapping[str, LazyTensor], where: Path, folder: Path | None, *, alpha: float | None = None, rank: int | None = None
) -> LoraConfig | None:
    """The configuration of the adapters among `tensors` (plain names, with those of the base), None if there are none.

    The rank is that of the tensors. Alpha, which no tensor tells, is that of `folder`'s adapter_config.json, or the one given.

    Raises:
        UserError: alpha is not known, or what is known does not agree; an adapter is missing, adapts another layer than q_proj and v_proj
            of the language model, or does not fit its layer; adapter_config.json asks for what this network does not compute.
    """
    names = {name for name in tensors if is_adapter(name)}
    if not names:
        return None
    found_rank = _check_shapes(tensors, names, where)
    settings = read_json(folder / CONFIG) if folder is not None and is_adapter_folder(folder) else {}
    for attribute, allowed in _PLAIN.items():
        if settings.get(attribute, allowed[0]) not in allowed:
            raise UserError(f"{folder / CONFIG}: {attribute} is {settings[attribute]!r:.80}; this network computes {allowed[0]!r} only")
    stored_rank, stored_alpha = (_number(settings, name, folder) for name in ("r", "lora_alpha"))
    for name, stated in (("r", stored_rank), ("--lora-rank", rank)):
        if stated is not None and stated != found_rank:
            raise UserError(f"{where}: {name} is {stated:g}, but its adapters have rank {found_rank}")
    if stored_alpha is not None and alpha is not None and alpha != stored_alpha:
        raise UserError(f"{folder / CONFIG}: lora_alpha is {stored_alpha:g}, but --lora-alpha {alpha:g} was given")
    alpha = stored_alpha if stored_alpha is not None else alpha
    if alpha is None:
        raise UserError(f"{where}: has adapters, but no {CONFIG} that says their alpha; give --lora-alpha (the reference trains with 16)")
    if settings.get("use_rslora"):
        alpha = alpha * math.sqrt(found_rank)  # its scale is alpha / sqrt(rank)
    dropout = _number(settings, "lora_dropout", folder)
    return LoraConfig(rank=found_rank, alpha=float(alpha), **({} if dropout is None else {"dropout": float(dropout)}))


def _check_shapes(tensors: Mapping[str, LazyTensor], names: set[str], where: Path) -> int:
    """The rank of all adapters, which must be there for q_proj and v_proj of every layer and fit them."""
    for name in sorted(names):
        if not ADAPTER.match(name):
            raise UserError(
                f"{where}: key {name}: this network adapts q_proj and v_proj of the language model only; merge it with peft first"
            )
    rank = None
    for weight in sorted(
        name for name in tensors if name.startswith("model.layers.") and name.endswith(("q_proj.weight", "v_proj.weight"))
    ):
        layer, (outputs, inputs) = weight.removesuffix(".weight"), tensors[weight].shape
        for half in ("lora_A", "lora_B"):
            name = f"{layer}.{half}.weight"
            if name not in names:
                raise UserError(f"{where}: no {name}; expected adapters of q_proj and v_proj in every layer")
            shape = tensors[name].shape
            rank = shape[0] if rank is None and half == "lora_A" and shape else rank
            expected = (rank, inputs) if half == "lora_A" else (outputs, rank)
            if shape != expected or not rank:
                raise UserError(f"{where}: key {name} has shape {list(shape)}, expected {list(expected)}")
            names = names - {name}
    if names:
        raise UserError(f"{where}: key {min(names)}: the base has no such layer")
    return rank


def _number(settings: Mapping[str, Any], name: str, folder: Path | None) -> float | int | None:
    value = settings.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e6):
        raise UserError(f"{folder / CONFIG}: {name} is {value!r:.80}; expected a number from 0 to a million")
    return value
