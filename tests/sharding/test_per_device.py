"""A kernel runs on every device's own part of its arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from segearth_r2_jax.kernels.deformable_sampling import deformable_sampling
from segearth_r2_jax.placement import placed
from segearth_r2_jax.sharding.rules import placement

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


def test_on_gpus_each_device_samples_its_own_images_and_heads():
    """Eight images and four heads on eight GPUs that need not be there: the kernel's arrays are those of one device."""
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, abstract_device=device)

    def forward_and_backward(values, locations, weights):
        with placed(placement(mesh)):
            out, pull = jax.vjp(lambda v, x, w: deformable_sampling(v, ((2, 4),), x, w), values, locations, weights)
            return out, pull(out)

    rows = NamedSharding(mesh, P(("data", "fsdp")))
    arrays = [jax.ShapeDtypeStruct((8, 8, 4, *rest), jnp.float32, sharding=rows) for rest in ((16,), (1, 2, 2), (1, 2))]
    with jax.sharding.use_abstract_mesh(mesh):
        text = jax.jit(forward_and_backward).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "xla.gpu.triton" in line]
    assert len(calls) == 2
    for call in calls:
        assert "tensor<2x8x2x16xf32>" in call
        assert "tensor<8x" not in call
