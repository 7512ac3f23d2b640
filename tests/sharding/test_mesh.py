"""Meshes for the devices of one host, of a pod and of several slices, and each process's part of a batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from jax.sharding import Mesh

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.sharding.mesh import MESH_AXES, MeshShape, _sizes, data_shard, make_mesh


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def mesh_of(shape: tuple[int, int, int], per_process: int) -> Mesh:
    devices = np.empty(shape, object)
    devices.reshape(-1)[:] = [Device(i, i // per_process) for i in range(devices.size)]
    return Mesh(devices, MESH_AXES)


@pytest.mark.parametrize(
    ("shape", "devices", "slices", "sizes"),
    [
        (MeshShape(), 1, 1, (1, 1, 1)),
        (MeshShape(data=1, fsdp=8), 8, 1, (1, 8, 1)),
        (MeshShape(data=-1, fsdp=4), 8, 1, (2, 4, 1)),
        (MeshShape(data=-1, fsdp=-1), 1, 1, (1, 1, 1)),
        (MeshShape(data=-1, fsdp=-1), 8, 1, (1, 8, 1)),
        (MeshShape(data=-1, fsdp=-1), 24, 1, (2, 12, 1)),
        (MeshShape(data=-1, fsdp=-1), 256, 1, (16, 16, 1)),
        (MeshShape(data=-1, fsdp=-1, tensor=4), 256, 1, (4, 16, 4)),
        (MeshShape(data=-1, fsdp=-1), 512, 2, (32, 16, 1)),
        (MeshShape(data=-1, fsdp=-1), 16, 2, (2, 8, 1)),
    ],
)
def test_sizes(shape, devices, slices, sizes):
    assert _sizes(shape, devices, slices) == sizes


@pytest.mark.parametrize(
    "shape",
    [MeshShape(data=3, fsdp=5, tensor=7), MeshShape(data=-1, fsdp=1, tensor=-1), MeshShape(data=0), MeshShape(data=-1, fsdp=-1, tensor=3)],
)
def test_a_mesh_that_does_not_fit_is_refused(shape):
    with pytest.raises(UserError, match="does not fit 8 devices"):
        _sizes(shape, 8, 1)


def test_slices_differ_in_data_only():
    devices = [Device(i, i // 4, slice_index=i // 8) for i in range(16)]
    mesh = make_mesh(MeshShape(data=-1, fsdp=-1), devices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 8, "tensor": 1}
    for number, part in enumerate(mesh.devices):
        assert {device.slice_index for device in part.flat} == {number}
    with pytest.raises(UserError, match="multiple of the 2 slices"):
        make_mesh(MeshShape(data=1, fsdp=16), devices)


@pytest.mark.parametrize(
    ("shape", "per_process", "shards"),
    [
        ((8, 1, 1), 8, [(0, 1)]),
        ((8, 1, 1), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((1, 2, 4), 4, [(0, 2), (1, 2)]),
        # Two processes hold a part together, and load the same rows.
        ((1, 2, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 8), 4, [(0, 1), (0, 1)]),
    ],
)
def test_processes_that_differ_in_tensor_only_load_the_same_rows(shape, per_process, shards):
    mesh = mesh_of(shape, per_process)
    assert [data_shard(mesh, process) for process in range(len(shards))] == shards


def test_a_part_that_is_shared_in_part_is_refused():
    with pytest.raises(UserError, match="whole parts of the batch"):
        data_shard(mesh_of((1, 4, 3), 4), 0)
