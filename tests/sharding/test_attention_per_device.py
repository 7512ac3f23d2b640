"""Long attention on a mesh: every device computes its own batch rows and heads, forward and backward."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The form of the platform is replaced by one that notes what it is given. 3 rows are no multiple of data and fsdp: they stay whole.
CODE = """
import jax, jax.numpy as jnp, numpy as np
from segearth_r2_jax.kernels.attention import api, reference
from segearth_r2_jax.placement import placed
from segearth_r2_jax.sharding.mesh import MeshShape, make_mesh
from segearth_r2_jax.sharding.rules import placement

mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
seen = set()

def form(q, k, v, *key_mask, **options):
    seen.add(q.shape)
    return reference.attend(q, k, v, *key_mask, **options)

api._FORMS["default"] = form
for rows, own in ((4, 1), (3, 3)):
    seen.clear()
    x = np.random.default_rng(0).normal(size=(4, rows, 512, 2, 8)).astype(np.float32)
    key_mask = np.arange(512) < np.arange(300, 300 + rows)[:, None]

    def loss(attend, q, k, v):
        return (attend(q, k, v) * x[3]).sum()

    def on_mesh(q, k, v):
        with placed(placement(mesh)):
            return api.attention(q, k, v, causal=True, key_mask=key_mask, scale=0.3)

    def alone(q, k, v):
        return reference.attend(q, k, v, key_mask, causal=True, scale=0.3)

    ours, expected = (jax.jit(jax.grad(lambda *a: loss(f, *a), (0, 1, 2)))(*x[:3]) for f in (on_mesh, alone))
    assert (own, 512, 1, 8) in seen, seen
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * abs(b).max())
"""


def test_each_device_attends_with_its_own_rows_and_heads():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
