"""The device mesh: (data, fsdp, tensor), and which part of a batch each process gives to it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from segearth_r2_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
# More parts than this make a parameter's part hardly smaller, and widths (SigLIP's 1152 and 4304) stop dividing.
_LARGEST_FSDP = 16


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices each axis takes; one of them may be -1: all that are left.

    `data` replicates parameters and splits the batch; `fsdp` splits both; `tensor` splits the width of the layers. With -1 for both
    data and fsdp the machine decides: fsdp takes the largest divisor of the devices of a slice up to 16, data the rest.

        one device                                MeshShape()
        the 8 devices of a host                   MeshShape(data=1, fsdp=8)
        a pod, v5e:16x16                          MeshShape(data=-1, fsdp=-1) = 16 x 16
        a model too wide for fsdp alone           MeshShape(data=-1, fsdp=8, tensor=4)
        two slices of v5e:16x16                   MeshShape(data=-1, fsdp=-1) = 32 x 16: slices differ in data only
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (all by default). The slices of a multi-slice run lie along `data`, whose traffic is least.

    Raises:
        UserError: the axes do not multiply to the number of devices, or `data` is no multiple of the number of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    sizes = _sizes(shape, len(devices), slices)
    if slices == 1:
        # Auto axes: with explicit ones every contraction over a sharded dimension needs its output sharding spelled out.
        return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    data, fsdp, tensor = sizes
    if data % slices:
        raise UserError(f"mesh data={data}: expected a multiple of the {slices} slices, which only `data` may span")
    within, across = (data // slices, fsdp, tensor), (slices, 1, 1)
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, across, devices), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _sizes(shape: MeshShape, devices: int, slices: int) -> tuple[int, int, int]:
    sizes = dict(zip(MESH_AXES, dataclasses.astuple(shape), strict=True))
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if open_axes == ["data", "fsdp"] and sizes["tensor"] > 0:
        per_slice = devices // slices // sizes["tensor"]
        sizes["fsdp"] = max((n for n in range(1, min(per_slice, _LARGEST_FSDP) + 1) if per_slice % n == 0), default=1)
        open_axes = ["data"]
    known = math.prod(size for axis, size in sizes.items() if axis not in open_axes)
    if len(open_axes) == 1 and known > 0 and devices % known == 0:
        sizes[open_axes[0]] = devices // known
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != devices:
        raise UserError(f"mesh data={shape.data} fsdp={shape.fsdp} tensor={shape.tensor} does not fit {devices} devices")
    return sizes["data"], sizes["fsdp"], sizes["tensor"]


def data_shard(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """(index, count): which of how many equal parts of every batch process `process` (default: this one) has to load.

    Processes whose devices differ in `tensor` only need the same part.

    Raises:
        UserError: the mesh cuts the devices of a process so that its part of the batch overlaps with another's.
    """
    process = jax.process_index() if process is None else process
    rows: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["tensor"])):
        for device in devices:
            rows.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(part)) for part in rows.values()})
    if len(np.unique(np.concatenate(parts))) != sum(map(len, parts)) or len({len(part) for part in parts}) != 1:
        raise UserError(
            f"mesh {dict(mesh.shape)}: the devices of a process must hold whole parts of the batch that no other process holds in part; "
            "expected tensor to divide the devices of a process, or to be a multiple of them"
        )
    return parts.index(tuple(sorted(rows[process]))), len(parts)
