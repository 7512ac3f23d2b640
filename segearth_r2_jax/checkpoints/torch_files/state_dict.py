"""The tensors of a weights file, or of a folder as transformers writes it, by name."""

from __future__ import annotations

from pathlib import Path

from segearth_r2_jax.checkpoints.json_files import read_json
from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor
from segearth_r2_jax.checkpoints.torch_files.safetensors_file import read_safetensors_file
from segearth_r2_jax.checkpoints.torch_files.torch_file import read_torch_file
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.restricted_pickle import shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"

_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def stored_names(folder: Path) -> tuple[str, ...]:
    """Which of the names that transformers gives to weights are in `folder`: `SINGLE`, `INDEX`, `BIN`, `BIN_INDEX`."""
    return tuple(name for name in (SINGLE, INDEX, BIN, BIN_INDEX) if (folder / name).is_file())


def read_state_dict(path: str | Path) -> dict[str, LazyTensor]:
    """The tensors at `path`, by name, unread: of a weights file, of an index and its shards, or of a folder that holds one of these.

    In a folder that holds weights in both formats safetensors are read, as transformers does.

    Raises:
        UserError: nothing to read at `path`, or a single file and shards of one format; a file is damaged, cut off, asks for something
            else than tensors, or holds something else; an index names a file outside its folder, a tensor that is not where it says,
            or leaves one out; a tensor is stored twice.
    """
    path = Path(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if not path.is_dir():
        return _read_file(path)
    names = stored_names(path)
    for single, index in ((SINGLE, INDEX), (BIN, BIN_INDEX)):
        if single in names and index in names:
            raise UserError(f"{path}: holds {single} and {index}; expected one of them, or give one as the path")
        if single in names:
            return _read_file(path / single)
        if index in names:
            return _read_shards(path / index)
    raise UserError(f"{path}: no {SINGLE} and no {INDEX} there, and no {BIN} and no {BIN_INDEX}")


def _read_shards(index: Path) -> dict[str, LazyTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: no weight_map; expected one that gives the file of every tensor")
    names = sorted(set(weight_map.values()))
    for file_name in names:
        # A plain name only: an index is data from elsewhere and must not make us open any other file of this machine.
        if file_name in ("", ".", "..") or "/" in file_name or "\\" in file_name or "\0" in file_name:
            raise UserError(f"{index}: names '{shown(file_name)}'; expected the name of a file in the same folder")
    tensors: dict[str, LazyTensor] = {}
    for file_name in names:
        file = index.parent / file_name
        for name, tensor in _read_file(file).items():
            if name in tensors:
                raise UserError(f"{file}: duplicate key {shown(name)}: another shard has it too")
            if weight_map.get(name) != file_name:
                raise UserError(f"{file}: has key {shown(name)}, which {index.name} places in {shown(weight_map.get(name, 'no file'))}")
            tensors[name] = tensor
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise UserError(f"{index}: places key {shown(missing[0])} in {weight_map[missing[0]]}, which does not have it")
    return tensors


def _read_file(path: Path) -> dict[str, LazyTensor]:
    if path.suffix not in _TORCH_SUFFIXES:
        return read_safetensors_file(path)
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected a dict of tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, LazyTensor):
            raise UserError(f"{path}: key {shown(name)} holds a {type(value).__name__}; expected tensors by name only")
    return {name: tensor.renamed(name) for name, tensor in content.items()}
