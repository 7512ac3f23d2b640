"""The device mesh: (data, fsdp, tensor)."""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import AxisType, Mesh

from segearth_r2_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices each axis takes; one of them may be -1: all that are left.

    `data` replicates parameters and splits the batch; `fsdp` splits both; `tensor` splits the width of the layers.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(shape: MeshShape, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (all by default).

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = list(dataclasses.astuple(shape))
    known = 1
    for size in sizes:
        known *= size if size != -1 else 1
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
        known = len(devices)
    if known != len(devices) or -1 in sizes:
        raise UserError(f"mesh data={shape.data} fsdp={shape.fsdp} tensor={shape.tensor} does not fit {len(devices)} devices")
    # Auto axes: with explicit ones every contraction over a sharded dimension needs its output sharding spelled out.
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
