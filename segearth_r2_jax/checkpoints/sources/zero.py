"""A DeepSpeed ZeRO checkpoint of stage 1, 2 or 3: the float32 master weights of its ranks, joined parameter by parameter.

`latest` names the folder of the last step. In it `*_model_states.pt` state which parameters there are and hold buffers and frozen
parameters; `*_optim_states.pt`, one for every rank, hold the parameters that are trained, flat and in float32, beside the moments of
Adam, which are not read.

* Stage 1 and 2 cut one vector per parameter group (all its parameters, one behind the other) into one part for every rank; the last part
  may be padded.
* Stage 3 cuts every parameter into as many equal parts as there are ranks, the last one padded; a rank has its parts of all parameters
  one behind the other, divided anywhere into sub-groups. Frozen parameters are cut in the same way.

The layout is that of DeepSpeed's own `zero_to_fp32.py`. It was tried on files written by torch in this layout; DeepSpeed itself was not
at hand. Checkpoints of model or expert parallelism are refused.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segearth_r2_jax.checkpoints.sources.derived_tensor import FlatTensors, Span, joined
from segearth_r2_jax.checkpoints.sources.peft_names import add_plain
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import AS_STORED, Collection, Origin
from segearth_r2_jax.checkpoints.torch_files.lazy_tensor import LazyTensor, is_shape
from segearth_r2_jax.checkpoints.torch_files.torch_file import read_torch_file
from segearth_r2_jax.errors import UserError

LATEST = "latest"
_OPTIMIZER = "_optim_states.pt"
_MODEL = "_model_states.pt"
_OPTIMIZER_NAME = re.compile(r"^(?:bf16_)?zero_pp_rank_(\d{1,9})_mp_rank_(\d{1,9})_optim_states\.pt$")
_MODEL_NAME = re.compile(r"^(?:zero_pp_rank_(\d{1,9})_)?mp_rank_(\d{1,9})_model_states\.pt$")
# Stage 3 and the others name the flat float32 vectors differently.
_GROUPS_3 = "fp32_flat_groups"
_GROUPS_12 = "single_partition_of_fp32_groups"
# What these files hold besides tensors and containers, and what is not needed: settings, loss scalers, addresses of slices.
_INERT = ("deepspeed", "argparse", "transformers", "accelerate", "torch.optim", "torch.distributed")

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class _Rank:
    """One rank's file of optimizer states: its flat vectors, one for every group, and the step it was written in."""

    file: Path
    groups: list[LazyTensor]
    partitions: int
    stage3: bool
    step: int | None


def is_zero_folder(folder: Path) -> bool:
    """Whether `folder` is a DeepSpeed checkpoint, or the folder of one of its steps."""
    return (folder / LATEST).is_file() or any(folder.glob(f"*{_OPTIMIZER}"))


def read_zero(folder: Path) -> tuple[Collection, int]:
    """The tensors of a ZeRO checkpoint under plain names, and its stage (2 also for stage 1, whose files are alike).

    Raises:
        UserError: `latest` is damaged or names no folder beside it; a rank's file is missing, damaged, of another step or of another
            kind; what the ranks have and what the parameters need does not agree.
    """
    step = _step_folder(folder)
    ranks = [_read_rank(file) for file in _rank_files(step, _OPTIMIZER, _OPTIMIZER_NAME)]
    _check_ranks(step, ranks)
    models = [(file, _read_dict(file)) for file in _rank_files(step, _MODEL, _MODEL_NAME)]
    _check_same_step([(file, content.get("global_steps")) for file, content in models])
    stage3 = ranks[0].stage3
    if len(models) != (len(ranks) if stage3 else 1):
        raise UserError(f"{step}: {len(models)} files *{_MODEL}; expected {len(ranks) if stage3 else 1} for {len(ranks)} ranks")
    model_file, model = models[0]
    found = Collection()
    tensors, origins = _stored(model_file, model, stage3)
    parts = _parts_3(step, model_file, model, models, ranks) if stage3 else _parts_12(step, model_file, model, ranks)
    for name, (shape, spans, origin) in parts.items():
        dtype = spans[0][0].dtype if spans else np.dtype(np.float32)
        tensors[name], origins[name] = joined(name, spans, shape, dtype), origin
    for name, source in _mapping(model_file, model, "shared_params", {}).items():
        if isinstance(source, str) and source in tensors and name not in tensors:
            tensors[name], origins[name] = tensors[source], dataclasses.replace(origins[source], transform=f"shared with {source}")
    add_plain(found, tensors, origins)
    return found, 3 if stage3 else 2


def _step_folder(folder: Path) -> Path:
    if not (folder / LATEST).is_file():
        return folder
    with open(folder / LATEST, "rb") as file:
        content = file.read(257)
    try:
        tag = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        tag = ""
    # It is data from elsewhere and must not lead out of its folder.
    if not tag or len(content) > 256 or tag in (".", "..") or any(c in "/\\" or not c.isprintable() for c in tag):
        raise UserError(f"{folder / LATEST}: holds {content[:64]!r}; expected the name of a folder beside it, such as global_step1000")
    if not (folder / tag).is_dir():
        raise UserError(f"{folder / LATEST}: names {tag}, but there is no such folder beside it")
    return folder / tag


def _rank_files(step: Path, ending: str, pattern: re.Pattern[str]) -> list[Path]:
    """The files of all ranks, in order."""
    files: dict[int, Path] = {}
    for path in sorted(step.glob(f"*{ending}")):
        match = pattern.match(path.name)
        if match is None or int(match[2]) != 0:
            raise UserError(f"{path}: a file of model or expert parallelism; expected a checkpoint of data parallelism only")
        rank = int(match[1] or 0)
        if rank in files:
            raise UserError(f"{path}: rank {rank} has another file, {files[rank].name}; expected one")
        files[rank] = path
    if not files:
        raise UserError(f"{step}: no files *{ending}; a ZeRO checkpoint has them")
    if (missing := next(rank for rank in range(len(files) + 1) if rank not in files)) < len(files):
        raise UserError(f"{step}: no file *{ending} of rank {missing}; the highest rank is {max(files)}")
    return [files[rank] for rank in sorted(files)]


def _read_dict(file: Path) -> dict[str, Any]:
    content = read_torch_file(file, inert=_INERT)
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}; expected a dict")
    return content


def _mapping(file: Path, content: Mapping[str, Any], name: str, default: Any = None) -> Mapping[str, Any]:
    value = content.get(name)
    value = default if value is None else value
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{file}: has no dict {name}; a ZeRO checkpoint has it")
    return value


def _read_rank(file: Path) -> _Rank:
    state = _mapping(file, _read_dict(file), "optimizer_state_dict")
    if (_GROUPS_3 in state) == (_GROUPS_12 in state):
        raise UserError(f"{file}: has no {_GROUPS_12} and no {_GROUPS_3}; expected the float32 weights of ZeRO stage 1, 2 or 3")
    groups = state.get(_GROUPS_3, state.get(_GROUPS_12))
    groups = [groups] if isinstance(groups, LazyTensor) else groups
    if not isinstance(groups, list | tuple) or not all(isinstance(group, LazyTensor) and len(group.shape) == 1 for group in groups):
        raise UserError(f"{file}: its float32 weights are no list of flat tensors")
    count = state.get("partition_count")
    counts = count if isinstance(count, list | tuple) else [count]
    if not counts or not all(isinstance(n, int) for n in counts):
        raise UserError(f"{file}: partition_count is {count!r:.80}; expected the number of ranks")
    return _Rank(file, list(groups), max(counts), _GROUPS_3 in state, _optimizer_step(state))


def _optimizer_step(state: Mapping[str, Any]) -> int | None:
    """The step that the optimizer counts, where it says one: in the state of a parameter, or of a group of them."""
    for name in ("base_optimizer_state", "optimizer_state_dict"):
        inner = state.get(name)
        if not isinstance(inner, Mapping):
            continue
        states, groups = inner.get("state"), inner.get("param_groups")
        for entry in [*(states.values() if isinstance(states, Mapping) else []), *(groups if isinstance(groups, list) else [])]:
            step = entry.get("step") if isinstance(entry, Mapping) else None
            if isinstance(step, LazyTensor) and math.prod(step.shape) == 1:
                step = np.asarray(step).item()
            if isinstance(step, int | float) and math.isfinite(step):
                return int(step)
    return None


def _check_ranks(step: Path, ranks: Sequence[_Rank]) -> None:
    first = ranks[0]
    for rank in ranks:
        if rank.partitions != len(ranks):
            raise UserError(f"{rank.file}: was written by {rank.partitions} ranks, but {step} has the files of {len(ranks)}")
        if rank.stage3 != first.stage3 or len(rank.groups) != len(first.groups):
            raise UserError(f"{rank.file}: is of another run than {first.file.name}: their parameter groups differ")
        for group, other in zip(rank.groups, first.groups, strict=True):
            if group.dtype != other.dtype or not np.issubdtype(group.dtype, np.floating):
                raise UserError(f"{rank.file}: holds weights in {group.dtype}, {first.file.name} in {other.dtype}; expected float32")
            if rank.stage3 and group.shape != other.shape:
                raise UserError(f"{rank.file}: has {group.shape[0]} values of a group of which {first.file.name} has {other.shape[0]}")
    _check_same_step([(rank.file, rank.step) for rank in ranks])


def _check_same_step(steps: Sequence[tuple[Path, Any]]) -> None:
    known = [(file, step) for file, step in steps if isinstance(step, int)]
    for file, step in known:
        if step != known[0][1]:
            raise UserError(f"{file}: is of step {step}, but {known[0][0].name} of step {known[0][1]}; expected all ranks of one step")


def _shapes(file: Path, groups: Any, name: str) -> list[Shapes]:
    """What `param_shapes` states: for every parameter group the parameters' shapes, in order."""
    groups = [groups] if isinstance(groups, Mapping) else groups
    if not isinstance(groups, list | tuple):
        raise UserError(f"{file}: has no list {name}; a ZeRO checkpoint has it")
    for group in groups:
        for key, shape in group.items() if isinstance(group, Mapping) else [(None, None)]:
            if not isinstance(key, str) or not isinstance(shape, tuple | list) or not is_shape(shape):
                raise UserError(f"{file}: {name} has {key!r:.80} with {shape!r:.80}; expected shapes by name")
    return [{key: tuple(shape) for key, shape in group.items()} for group in groups]


def _stored(file: Path, model: Mapping[str, Any], stage3: bool) -> tuple[dict[str, LazyTensor], dict[str, Origin]]:
    """What lies whole in the file of model states: buffers and, but for stage 3, all parameters, in the precision of the forward pass."""
    module = _mapping(file, model, "module", {})
    shared = _mapping(file, model, "shared_params", {})
    tensors = dict(module)
    if stage3:  # a parameter is an empty tensor there
        buffers = model.get("buffer_names")
        buffers = buffers if isinstance(buffers, list | tuple | set) else []
        tensors = {name: tensor for name, tensor in module.items() if name in buffers}
    else:
        frozen = _mapping(file, model, "frozen_param_fragments", {})
        tensors |= {name: _fitting(file, name, frozen.get(name), shape) for name, shape in _frozen_shapes(file, model).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in shared}
    for name, tensor in tensors.items():
        if not isinstance(tensor, LazyTensor):
            raise UserError(f"{file}: {name} is a {type(tensor).__name__}; expected a tensor")
    return tensors, {name: Origin(str(file), name, AS_STORED) for name in tensors}


def _frozen_shapes(file: Path, model: Mapping[str, Any]) -> Shapes:
    return _shapes(file, model.get("frozen_param_shapes") or {}, "frozen_param_shapes")[0]


def _fitting(file: Path, name: str, tensor: Any, shape: tuple[int, ...]) -> LazyTensor:
    if not isinstance(tensor, LazyTensor):
        raise UserError(f"{file}: has no frozen parameter {name}, whose shape it states")
    if tensor.shape != shape:
        raise UserError(f"{file}: frozen parameter {name} has shape {list(tensor.shape)}, expected {list(shape)}")
    return tensor


Parts = dict[str, tuple[tuple[int, ...], list[Span], Origin]]


def _parts_12(step: Path, file: Path, model: Mapping[str, Any], ranks: Sequence[_Rank]) -> Parts:
    """Where the parameters are, stage 1 and 2: ranges of a vector whose parts the ranks have."""
    groups = _shapes(file, model.get("param_shapes"), "param_shapes")
    if len(groups) != len(ranks[0].groups):
        raise UserError(f"{file}: has {len(groups)} parameter groups, but {ranks[0].file.name} has {len(ranks[0].groups)}")
    parts: Parts = {}
    for number, shapes in enumerate(groups):
        vector = FlatTensors([rank.groups[number] for rank in ranks])
        needed = sum(map(math.prod, shapes.values()))
        # The vector is padded to a multiple of twice the number of ranks; some releases store it without its padding.
        unit = 2 * len(ranks)
        if not needed <= vector.size <= -(-needed // unit) * unit:
            raise UserError(f"{step}: the ranks have {vector.size} values of parameter group {number}, but its parameters need {needed}")
        start = 0
        for name, shape in shapes.items():
            stop = start + math.prod(shape)
            spans = vector.spans(start, stop)
            _add_part(parts, step, ranks, name, shape, spans)
            start = stop
    return parts


def _parts_3(step: Path, file: Path, model: Mapping[str, Any], models: Sequence[tuple[Path, Any]], ranks: Sequence[_Rank]) -> Parts:
    """Where the parameters are, stage 3: an equal part with every rank; the same of frozen ones, in the files of model states."""
    shapes = {name: shape for group in _shapes(file, model.get("param_shapes"), "param_shapes") for name, shape in group.items()}
    vectors = [FlatTensors(rank.groups) for rank in ranks]
    needed = sum(-(-math.prod(shape) // len(ranks)) for shape in shapes.values())
    for rank, vector in zip(ranks, vectors, strict=True):
        if vector.size != needed:
            raise UserError(f"{rank.file}: has {vector.size} values, but its parts of all parameters are {needed}")
    parts: Parts = {}
    start = 0
    for name, shape in shapes.items():
        size = -(-math.prod(shape) // len(ranks))
        spans = []
        for rank, vector in enumerate(vectors):
            spans += vector.spans(start, start + _unpadded(shape, size, rank))
        _add_part(parts, step, ranks, name, shape, spans)
        start += size
    for name, shape in _frozen_shapes(file, model).items():
        size = -(-math.prod(shape) // len(models))
        spans = []
        for rank, (path, content) in enumerate(models):
            fragment = _fitting(path, name, _mapping(path, content, "frozen_param_fragments", {}).get(name), (size,))
            if used := _unpadded(shape, size, rank):
                spans.append((fragment, 0, used))
        _add_part(parts, step, [_Rank(path, [], 0, True, None) for path, _ in models], name, shape, spans)
    return parts


def _unpadded(shape: tuple[int, ...], size: int, rank: int) -> int:
    """How many of the `size` values that a rank has of a parameter are its own and not padding."""
    return max(0, min(size, math.prod(shape) - rank * size))


def _add_part(parts: Parts, step: Path, ranks: Sequence[_Rank], name: str, shape: tuple[int, ...], spans: list[Span]) -> None:
    if name in parts:
        raise UserError(f"{step}: parameter {name} is stated twice")
    if len(dtypes := {tensor.dtype for tensor, _, _ in spans}) > 1:
        raise UserError(f"{step}: the ranks store {name} as {' and '.join(sorted(dtype.name for dtype in dtypes))}; expected one dtype")
    file = step / ranks[0].file.name.replace("rank_0_", "rank_*_", 1) if len(ranks) > 1 else ranks[0].file
    parts[name] = shape, spans, Origin(str(file), name, AS_STORED if len(spans) <= 1 else f"joined from {len(spans)} partitions")
