"""The names that PEFT, DeepSpeed and data parallelism give to a network's tensors -> those of the network itself.

PEFT before 0.7 keeps an adapted layer's own weight beside the adapters (`q_proj.weight`), later releases under `q_proj.base_layer.weight`;
in a training run adapters carry their adapter's name (`lora_A.default.weight`), in a saved adapter they do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from segearth_r2_jax.checkpoints.sources.reference_checkpoint import AS_STORED, RENAMED, Collection, Origin
from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
from segearth_r2_jax.errors import UserError

_WRAPPERS = ("module.", "base_model.model.")
_TRAINED_COPY = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")
_ADAPTER_NAME = re.compile(r"(\.lora_[AB])\.[^.]+\.weight$")
_FROZEN_COPY = ".original_module."
# What PEFT stores beside or in place of A and B for variants that this network does not compute.
_VARIANTS = ("lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B")

ADAPTER = re.compile(r"^model\.layers\.(\d+)\.self_attn\.([qv]_proj)\.lora_([AB])\.weight$")


def plain_name(key: str) -> str:
    """The network's own name of the tensor that a wrapped network calls `key`."""
    name = key
    while wrapper := next((wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)), None):
        name = name.removeprefix(wrapper)
    name = _TRAINED_COPY.sub("", name).replace(".base_layer.", ".")
    return _ADAPTER_NAME.sub(r"\1.weight", name)


def is_adapter(name: str) -> bool:
    """Whether a plain name is one of an adapter's A and B."""
    return ".lora_A." in name or ".lora_B." in name


def add_plain(found: Collection, tensors: Mapping[str, LazyTensor], origins: Mapping[str, Origin]) -> None:
    """Enter `tensors` under their plain names.

    Raises:
        UserError: two tensors have one plain name, or a tensor belongs to a variant of adapters that this network does not compute.
    """
    for key, tensor in tensors.items():
        origin = origins[key]
        if any(variant in key for variant in _VARIANTS):
            raise UserError(f"{origin.file}: key {key}: this network adapts q_proj and v_proj by plain LoRA only; merge it with peft first")
        if _FROZEN_COPY in key:
            found.drop(origin.file, key, "the copy that was trained is taken")
            continue
        name = plain_name(key)
        transform = RENAMED if origin.transform == AS_STORED and name != key else origin.transform
        found.add(name, tensor, Origin(origin.file, origin.key, transform))
