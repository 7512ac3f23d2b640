"""A mesh changes where numbers are computed, not the numbers: 8 simulated devices train as one does."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).with_name("mesh_run.py")


@functools.cache
def run(mesh: str, steps: int, preset: str) -> dict:
    devices = math.prod(map(int, mesh.split("x")))
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS / "training", TESTS.parent))),
    }
    result = subprocess.run(
        [sys.executable, str(SCRIPT), mesh, str(steps), preset], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert result.returncode == 0, result.stderr
    # What the partitioner cannot move between two layouts piece by piece it copies whole to every device.
    assert "Involuntary full rematerialization" not in result.stderr
    return json.loads(result.stdout.splitlines()[-1])


MICRO = [pytest.param("2x2x2", 3, "micro", id="2x2x2 micro")]
TINY = [pytest.param(mesh, 20, "tiny", marks=pytest.mark.slow, id=f"{mesh} tiny") for mesh in ("8x1x1", "1x8x1", "2x2x2", "1x4x2")]


@pytest.mark.parametrize(("mesh", "steps", "preset"), MICRO + TINY)
def test_losses_are_those_of_one_device(mesh: str, steps: int, preset: str):
    alone, together = run("1x1x1", steps, preset)["losses"], run(mesh, steps, preset)["losses"]
    assert len(alone) == steps
    for a, b in zip(alone, together, strict=True):
        assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize(("mesh", "steps", "preset"), MICRO + TINY)
def test_no_parameter_or_moment_is_copied_where_the_table_splits_it(mesh: str, steps: int, preset: str):
    leaves = run(mesh, steps, preset)["leaves"]
    assert {leaf["path"]: leaf for leaf in leaves if leaf["parts"] != leaf["asked"]} == {}
    assert mesh == "8x1x1" or max(leaf["parts"] for leaf in leaves) == {"1x8x1": 8, "2x2x2": 4, "1x4x2": 8}[mesh]
