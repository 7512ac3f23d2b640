"""A kernel runs on every device's own part of its arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Batch rows over data and fsdp where these divide them, heads over tensor; `y` is the same for all heads.
CODE = """
import jax, numpy as np
from segearth_r2_jax.placement import per_device, placed
from segearth_r2_jax.sharding.mesh import MeshShape, make_mesh
from segearth_r2_jax.sharding.rules import placement

mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
for rows, own in ((8, 2), (3, 3)):
    seen = set()

    def kernel(x, y):
        seen.add((x.shape, y.shape))
        return x * y[:, None], x.sum((1, 2))

    def loss(x, y):
        with placed(placement(mesh)):
            product, _ = per_device(kernel, [("batch", "heads", None), ("batch", None)], (("batch", "heads", None), ("batch",)))(x, y)
        return (product**2).sum()

    x = np.arange(rows * 4 * 3, dtype=np.float32).reshape(rows, 4, 3)
    y = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) / 7
    gradients = jax.jit(jax.grad(loss, (0, 1)))(x, y)
    assert ((own, 2, 3), (own, 3)) in seen, seen
    np.testing.assert_allclose(gradients[0], 2 * x * y[:, None] ** 2, rtol=1e-6)
    np.testing.assert_allclose(gradients[1], (2 * x**2 * y[:, None]).sum(1), rtol=1e-5)
"""


def test_each_device_runs_a_kernel_on_its_own_part():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
