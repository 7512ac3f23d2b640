"""A Mask2Former checkpoint of detectron2 (`model_final_54b88a.pkl`) -> the tensors of the mask branch, as the reference loads it.

`LP:initial_mask_module` and `swin_trans.py:init_weights` of the reference take three parts of the file and rename the two convolutions of
the feature pyramid, which detectron2 stores with their norm inside. What they leave out (the classifier) is left out here, too. The
published file was not at hand: the names are those that the reference's code asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segearth_r2_jax.checkpoints.sources.derived_tensor import first_rows
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import RENAMED, Collection, Origin
from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
from segearth_r2_jax.checkpoints.torch_files.numpy_pickle import read_numpy_pickle
from segearth_r2_jax.checkpoints.torch_files.state_dict import read_state_dict
from segearth_r2_jax.checkpoints.torch_files.torch_file import read_torch_file
from segearth_r2_jax.errors import UserError

_PARTS = {
    "backbone.": "model.vision_tower_mask.",
    "sem_seg_head.pixel_decoder.": "pixel_decoder.",
    "sem_seg_head.predictor.": "predictor.",
}
# detectron2's convolution with a norm in it -> the reference's sequence of both. Every file must have all of them.
_RENAMED = {
    f"pixel_decoder.{block}.{old}": f"pixel_decoder.{block}.{new}"
    for block in ("adapter_1", "layer_1")
    for old, new in {"weight": "0.weight", "norm.weight": "1.weight", "norm.bias": "1.bias"}.items()
}
_QUERIES = "predictor.query_feat.weight"
_QUERY_POSITIONS = "predictor.query_embed.weight"
_OLD_QUERIES = "predictor.static_query.weight"
_CLASSIFIER = "predictor.class_embed."


def is_mask2former(names: list[str]) -> bool:
    """Whether these are the names of a Mask2Former checkpoint."""
    return any(name.startswith("sem_seg_head.predictor.") for name in names)


def read_mask2former(path: Path) -> Collection:
    """The mask branch of the file at `path` (`.pkl` of numpy arrays, or torch's `.pth`), under the reference's names.

    Raises:
        UserError: it cannot be read or asks for more than arrays, is no Mask2Former checkpoint, or lacks what the reference needs of it.
    """
    tensors = _read(path)
    if not is_mask2former(list(tensors)):
        raise UserError(
            f"{path}: no Mask2Former checkpoint (it has no sem_seg_head.predictor); its first key is {min(tensors, default='none')}"
        )
    found = Collection()
    for key, tensor in tensors.items():
        prefix = next((prefix for prefix in _PARTS if key.startswith(prefix)), None)
        if prefix is None:
            found.drop(path, key, "of no part that the reference has")
            continue
        name = _PARTS[prefix] + key.removeprefix(prefix)
        if name.startswith(_CLASSIFIER):
            found.drop(path, key, "the reference has no classifier")
        elif name in ("pixel_decoder.adapter_1.bias", "pixel_decoder.layer_1.bias"):
            found.drop(path, key, "the reference loads no bias for this convolution")
        else:
            name = _QUERIES if name == _OLD_QUERIES else _RENAMED.get(name, name)
            found.add(name, tensor, Origin(str(path), key, RENAMED))
    for old, new in _RENAMED.items():
        if new not in found.tensors:
            raise UserError(f"{path}: no key sem_seg_head.{old}; a Mask2Former checkpoint has it")
    _cut_queries(path, found)
    return found


def _read(path: Path) -> dict[str, LazyTensor]:
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected the .pkl or .pth file of a Mask2Former checkpoint")
    if path.suffix == ".safetensors":
        return read_state_dict(path)
    content = read_numpy_pickle(path) if path.suffix == ".pkl" else read_torch_file(path)
    for name in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    return _check_tensors(path, content)


def _check_tensors(path: Path, content: Any) -> dict[str, LazyTensor]:
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected a dict whose 'model' has the arrays by name")
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, LazyTensor):
            raise UserError(f"{path}: {key!r:.80} is a {type(tensor).__name__}; expected arrays by name")
    return dict(content)


def _cut_queries(path: Path, found: Collection) -> None:
    """Of 200 query positions the reference takes the first 100; of the query features it takes all, or fails."""
    for name in (_QUERIES, _QUERY_POSITIONS):
        if name not in found.tensors or len(found.tensors[name].shape) != 2:
            raise UserError(f"{path}: no table sem_seg_head.{name} [queries, channels]; a Mask2Former checkpoint has it")
    positions = found.tensors[_QUERY_POSITIONS]
    if positions.shape[0] == 200:
        origin = found.origins[_QUERY_POSITIONS]
        found.tensors[_QUERY_POSITIONS] = first_rows(positions, 100)
        found.origins[_QUERY_POSITIONS] = Origin(origin.file, origin.key, "first 100 of 200 rows")
    rows = found.tensors[_QUERY_POSITIONS].shape[0]
    if found.tensors[_QUERIES].shape[0] != rows:
        raise UserError(
            f"{path}: {found.tensors[_QUERIES].shape[0]} query features, but {rows} query positions are taken; "
            "the reference loads files with 100 queries (Swin-B), not with 200"
        )
