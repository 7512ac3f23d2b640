"""The devices of a TPU topology that need not exist: libtpu describes them, and compiles for them, on any machine."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segearth_r2_jax.errors import UserError

EXAMPLES = "v5e:16x16, v6e:16x16 or v5p:4x4x4"
_GPU = re.compile(r"(gpu|cuda|rocm|nvidia|[abhl]\d{2,3}\b|gb?\d{3})", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def tpu_devices(topology: str) -> list[jax.Device]:
    """The devices of `topology`, VERSION:CHIPS in every direction ("v5e:16x16"). No TPU and no network are needed.

    Raises:
        UserError: libtpu is not installed, or knows no such topology.
    """
    if _GPU.match(topology):
        raise UserError(f"{topology}: only TPU topologies can be compiled for, such as {EXAMPLES}; a GPU's compiler needs the GPU")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError('compiling for a TPU needs libtpu: pip install libtpu, or pip install -e ".[tpu]"')
    # Do not ask a metadata server which TPU this machine has, and leave other programs that use libtpu alone.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # A v4 chip is one device only where its two cores are asked to be.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        with quiet_stderr():
            return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"{topology}: no topology that libtpu knows ({reason}); expected one such as {EXAMPLES}") from error


def usable_memory(device: jax.Device) -> int:
    """Bytes of the device's memory that the compiler lets a program use: somewhat less than the chip has.

    The compiler says it only when a program does not fit, so it is given one that cannot.
    """
    placed = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    huge = jax.ShapeDtypeStruct((2**20, 2**20), jnp.uint8, sharding=placed)
    try:
        with quiet_stderr():
            jax.jit(lambda x: x.sum()).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        needs = out_of_memory(str(error))
        if needs is None:
            raise
        return needs[1]
    raise AssertionError("a program with an argument of 1 TiB fits")


def out_of_memory(message: str) -> tuple[int, int] | None:
    """(bytes needed, bytes usable) of the compiler's message that a program does not fit; None if it is about something else."""
    for pattern in (
        r"total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
        r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
    ):
        if found := re.search(pattern, message):
            needed, unit, usable, other = found.groups()
            return round(float(needed) * _UNITS[unit]), round(float(usable) * _UNITS[other])
    return None


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keeps back what native libraries write to stderr; libtpu complains that this machine has no TPU."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
