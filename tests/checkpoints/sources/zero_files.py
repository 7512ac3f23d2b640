"""Writes DeepSpeed's ZeRO checkpoints by hand, in the layout that its `zero_to_fp32.py` reads: what DeepSpeed does in memory, on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import itertools
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

PEFT = "base_model.model."


@contextlib.contextmanager
def deepspeed_classes() -> Iterator[types.SimpleNamespace]:
    """Stand-ins for DeepSpeed's classes whose objects its files hold; they can be imported only while the files are written."""

    class LossScaler:
        def __init__(self, scale: float):
            self.cur_scale = scale

    class ZeroStageEnum(int, enum.Enum):
        gradients = 2
        weights = 3

    @dataclasses.dataclass
    class fragment_address:
        numel: int
        start: int

    places = {
        "deepspeed.runtime.fp16.loss_scaler": LossScaler,
        "deepspeed.runtime.zero.config": ZeroStageEnum,
        "deepspeed.utils.tensor_fragment": fragment_address,
    }
    modules = {}
    for name, cls in places.items():
        for depth in range(1, len(name.split(".")) + 1):
            parent = ".".join(name.split(".")[:depth])
            modules.setdefault(parent, types.ModuleType(parent))
        cls.__module__, cls.__qualname__ = name, cls.__name__
        setattr(modules[name], cls.__name__, cls)
    sys.modules.update(modules)
    try:
        yield types.SimpleNamespace(LossScaler=LossScaler, ZeroStageEnum=ZeroStageEnum, fragment_address=fragment_address)
    finally:
        for name in modules:
            del sys.modules[name]


@dataclasses.dataclass
class Run:
    """A run's state: what is trained, in parameter groups, in float32; what is frozen and the buffers, as the network has them."""

    groups: list[dict[str, np.ndarray]]
    frozen: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]
    shared: dict[str, str] = dataclasses.field(default_factory=dict)
    step: int = 1000


def write_zero(
    folder: Path,
    run: Run,
    *,
    stage: int,
    ranks: int,
    padded: bool = True,
    sub_groups: int = 1,
    bf16: bool = True,
    legacy: bool = False,
    edit: Mapping[str, Callable[[dict[str, Any]], Any]] | None = None,
) -> Path:
    """A checkpoint folder as DeepSpeed leaves it; returns the folder of its step.

    padded: whether stage 1 and 2 store the padding of the last rank. sub_groups: into how many pieces stage 3 cuts a rank's vector.
    legacy: in the file format of PyTorch before 1.6. edit: what to change in a file, by its name, before it is written.
    """

    step = folder / f"global_step{run.step}"
    step.mkdir(parents=True)
    (folder / "latest").write_text(step.name)

    def save(name: str, content: dict[str, Any]) -> None:
        (edit or {}).get(name, id)(content)
        torch.save(content, step / name, _use_new_zipfile_serialization=not legacy)

    with deepspeed_classes() as classes:
        vectors = _parts_3(run, ranks, sub_groups) if stage == 3 else _parts_12(run, ranks, padded)
        for rank, groups in enumerate(vectors):
            name = f"{'bf16_' if bf16 else ''}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            state = _optimizer_state(groups, stage, ranks, run.step, classes)
            save(name, {"optimizer_state_dict": state, "ds_config": {"bf16": {"enabled": bf16}}, "ds_version": "0.10.0"})
        for rank in range(ranks if stage == 3 else 1):
            name = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
            save(name, _model_state(run, rank, ranks, stage, classes))
    return step


def _flat(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(-1)


def _parts_12(run: Run, ranks: int, padded: bool) -> list[list[torch.Tensor]]:
    parts: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    for group in run.groups:
        vector = torch.cat([_flat(array) for array in group.values()])
        padding = -len(vector) % (2 * ranks)
        size = (len(vector) + padding) // ranks
        vector = torch.cat([vector, torch.full((padding,), torch.nan)])
        for rank in range(ranks):
            part = vector[rank * size : (rank + 1) * size]
            if rank == ranks - 1 and not padded:
                part = part[: size - padding]
            parts[rank].append(part.clone())
    return parts


def _equal_parts(array: np.ndarray, ranks: int) -> list[torch.Tensor]:
    flat = _flat(array)
    size = -(-len(flat) // ranks)
    return list(torch.cat([flat, torch.full((size * ranks - len(flat),), 7, dtype=flat.dtype)]).split(size)) if size else [flat] * ranks


def _parts_3(run: Run, ranks: int, sub_groups: int) -> list[list[torch.Tensor]]:
    arrays = [array for group in run.groups for array in group.values()]
    parts = []
    for rank in range(ranks):
        vector = torch.cat([_equal_parts(array, ranks)[rank] for array in arrays])
        cuts = np.linspace(0, len(vector), sub_groups + 1).astype(int)
        parts.append([vector[a:b].clone() for a, b in itertools.pairwise(cuts)])
    return parts


def _optimizer_state(groups: list[torch.Tensor], stage: int, ranks: int, step: int, classes: Any) -> dict[str, Any]:
    moments = {i: {"step": torch.tensor(float(step)), "exp_avg": torch.zeros_like(group)} for i, group in enumerate(groups)}
    adam = {"state": moments, "param_groups": [{"lr": 5e-5, "params": [0]}]}
    state = {"loss_scaler": classes.LossScaler(1.0), "overflow": False, "partition_count": ranks if stage == 3 else [ranks] * len(groups)}
    if stage == 3:
        zero_stage = classes.ZeroStageEnum.weights
        return {**state, "zero_stage": zero_stage, "optimizer_state_dict": adam, "fp32_flat_groups": groups}
    slices = [OrderedDict(weight=classes.fragment_address(numel=3, start=0))]
    rest = {"zero_stage": classes.ZeroStageEnum.gradients, "param_slice_mappings": slices, "group_paddings": [0]}
    return {**state, **rest, "base_optimizer_state": adam, "single_partition_of_fp32_groups": groups}


def _model_state(run: Run, rank: int, ranks: int, stage: int, classes: Any) -> dict[str, Any]:
    trained = {name: array for group in run.groups for name, array in group.items()}
    module = OrderedDict((name, torch.from_numpy(array)) for name, array in {**run.frozen, **run.buffers}.items())
    for name, array in trained.items():
        module[name] = torch.from_numpy(array).to(torch.bfloat16)
    for name, source in run.shared.items():
        module[name] = module[source]
    fragments = {name: torch.from_numpy(array) for name, array in run.frozen.items()}
    if stage == 3:
        module = OrderedDict((name, tensor if name in run.buffers else torch.empty(0)) for name, tensor in module.items())
        fragments = {name: _equal_parts(array, ranks)[rank] for name, array in run.frozen.items()}
    return {
        "module": module,
        "buffer_names": list(run.buffers),
        "optimizer": None,
        "param_shapes": [_shapes(group) for group in run.groups],
        "frozen_param_shapes": _shapes(run.frozen) if run.frozen else None,
        "frozen_param_fragments": OrderedDict(fragments) if run.frozen else None,
        "shared_params": dict(run.shared),
        "lr_scheduler": {"last_epoch": run.step},
        "sparse_tensor_module_names": set(),
        "global_steps": run.step,
        "dp_world_size": ranks,
        "mp_world_size": 1,
        "loss_scaler": classes.LossScaler(2.0),
        "ds_version": "0.10.0",
    }


def _shapes(arrays: Mapping[str, np.ndarray]) -> OrderedDict[str, torch.Size]:
    return OrderedDict((name, torch.Size(array.shape)) for name, array in arrays.items())
