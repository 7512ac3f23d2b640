"""A Mipha-3B folder: the language model, the SigLIP tower and the projector that a run of the reference starts from.

Its tensors have the reference's own names; what the reference does not take is `lm_head.bias`, since its head has no bias. No real
file of Mipha-3B was at hand: names and configuration are those that the reference's code reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segearth_r2_jax.checkpoints.json_files import read_json
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import AS_STORED, EMBEDDING, LANGUAGE_PARTS, MASK_PARTS, Collection, Origin
from segearth_r2_jax.checkpoints.torch_files.state_dict import read_state_dict
from segearth_r2_jax.errors import UserError

_HEAD_BIAS = "lm_head.bias"

# What the reference writes into config.json once it has mask modules: its constructor builds them where it finds these. Of the tower's
# name it only asks whether there is one.
_SWITCHES = {"mm_vision_tower": "google/siglip-so400m-patch14-384", "swin_type": "base", "use_mm_proj": True}


def is_mipha(names: list[str]) -> bool:
    """Whether these are the names of a language model with a SigLIP tower and without the mask branch."""
    return EMBEDDING in names and not has_mask_branch(names)


def has_mask_branch(names: list[str]) -> bool:
    """Whether a tensor of the mask branch is among `names`."""
    return any(name.startswith(tuple(MASK_PARTS)) for name in names)


def read_mipha(path: Path) -> tuple[Collection, dict[str, Any]]:
    """The tensors of a Mipha folder, and its config.json.

    Raises:
        UserError: it cannot be read, or is no Mipha folder.
    """
    tensors = read_state_dict(path)
    config = read_json((path if path.is_dir() else path.parent) / "config.json")
    if not is_mipha(list(tensors)):
        what = "it has a mask branch already" if has_mask_branch(list(tensors)) else f"it has no {EMBEDDING}"
        raise UserError(f"{path}: no Mipha checkpoint: {what}")
    found = Collection()
    for key, tensor in tensors.items():
        if key == _HEAD_BIAS:
            found.drop(path, key, "the reference's language model head has no bias")
        elif key.startswith((*LANGUAGE_PARTS,)):
            found.add(key, tensor, Origin(str(path), key, AS_STORED))
        else:
            raise UserError(f"{path}: unknown key {key} (shape {list(tensor.shape)}): a Mipha checkpoint has none of this name")
    return found, config


def merged_config(config: Mapping[str, Any], embed_rows: int) -> dict[str, Any]:
    """Mipha's config.json -> that of a SegEarth-R2 checkpoint whose table of token embeddings has `embed_rows` rows."""
    return {**_SWITCHES, **config, "mask_decode_train": True, "architectures": ["SegEarthR2"], "vocab_size": embed_rows}
