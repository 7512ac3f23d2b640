"""Small programs compiled for TPUs that are not there."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import Mesh

from segearth_r2_jax.sharding.mesh import MeshShape, make_mesh

CHIPS = "v5e:4x4"


def tpu_mesh(data: int = 2, fsdp: int = 4, tensor: int = 2, *, topology: str = CHIPS) -> Mesh:
    """A mesh of chips that libtpu describes; skips the test where it is absent."""
    pytest.importorskip("libtpu", reason="libtpu is absent: nothing can be compiled for a TPU")
    from segearth_r2_jax.ahead_of_time.topology import tpu_devices

    devices = tpu_devices(topology)
    return make_mesh(MeshShape(data, fsdp, tensor), devices[: data * fsdp * tensor])


def compiled_text(function, *arguments: jax.ShapeDtypeStruct, **options) -> str:
    return jax.jit(function, **options).lower(*arguments).compile().as_text()
