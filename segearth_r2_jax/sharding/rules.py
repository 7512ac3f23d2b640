"""One table: the logical name of a dimension -> the mesh axes that split it."""

from __future__ import annotations

import math
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segearth_r2_jax.models.layers import LOGICAL_AXES

RULES: dict[str, tuple[str, ...]] = {
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
    "channels_in": (),
    "channels_out": ("fsdp",),
    "lora_rank": (),
    "layers": (),
    "batch": ("data", "fsdp"),
}
if missing := set(LOGICAL_AXES) - RULES.keys():
    raise ValueError(f"logical axes without a rule: {sorted(missing)}")


def partition_spec(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh) -> PartitionSpec:
    """How an array of `shape` with logical `axes` lies on `mesh`; a dimension that the mesh axes do not divide stays whole."""
    entries: list[tuple[str, ...] | None] = []
    taken: set[str] = set()
    for size, name in zip(shape, axes, strict=True):
        mesh_axes = () if name is None else tuple(a for a in RULES[name] if a not in taken)
        if mesh_axes and size % math.prod(mesh.shape[a] for a in mesh_axes) == 0:
            taken.update(mesh_axes)
            entries.append(mesh_axes)
        else:
            entries.append(None)
    return PartitionSpec(*entries)


def shardings(params: Any, axes: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of the nested dict `params` (arrays or shapes), given the nested dict of its logical axes."""
    if isinstance(params, dict):
        return {key: shardings(value, axes[key], mesh) for key, value in params.items()}
    return NamedSharding(mesh, partition_spec(params.shape, axes, mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension of every array of a batch is split over all devices that hold different data."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
