"""A SigLIP checkpoint of transformers (SiglipModel or SiglipVisionModel) -> the tensors of the reference's SigLIP tower.

The reference's tower is transformers' vision transformer under `model.vision_tower.vision_model`. transformers 4 stores both models'
vision tensors under `vision_model.`, transformers 5 those of a SiglipVisionModel without a prefix. Tried on files that transformers
wrote from random weights, not on the published one.
"""

from __future__ import annotations

from pathlib import Path

from segearth_r2_jax.checkpoints.sources.reference_checkpoint import RENAMED, Collection, Origin
from segearth_r2_jax.checkpoints.torch_files.state_dict import read_state_dict
from segearth_r2_jax.errors import UserError

_OURS = "model.vision_tower.vision_model."
_PREFIX = "vision_model."
_BARE = ("embeddings.", "encoder.", "post_layernorm.", "head.")
_TEXT = ("text_model.", "logit_scale", "logit_bias")
_POSITIONS = "embeddings.position_ids"


def is_siglip(names: list[str]) -> bool:
    """Whether these are the names of a SigLIP checkpoint."""
    return any(name.removeprefix(_PREFIX).startswith("embeddings.patch_embedding.") for name in names)


def read_siglip(path: Path) -> Collection:
    """The vision tensors of the folder or file at `path`, under the reference's names.

    Raises:
        UserError: it cannot be read, or is no SigLIP checkpoint.
    """
    tensors = read_state_dict(path)
    if not is_siglip(list(tensors)):
        raise UserError(
            f"{path}: no SigLIP checkpoint (it has no vision_model.embeddings.patch_embedding); its first key is {min(tensors, default='')}"
        )
    found = Collection()
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        if key.startswith(_TEXT):
            found.drop(path, key, "of the text model")
        elif name == _POSITIONS:
            found.drop(path, key, "counts 0, 1, 2, ...")
        elif key.startswith(_PREFIX) or key.startswith(_BARE):
            found.add(_OURS + name, tensor, Origin(str(path), key, RENAMED))
        else:
            raise UserError(f"{path}: unknown key {key}: a SigLIP checkpoint has none of this name")
    return found
