"""What the kernels need on TPUs at the real sizes, by the compiler: memory for temporaries, traffic, and no exchange between devices.

The sizes are those of a training step at 1024 pixels with 4 masks per image; the bounds are what was measured and some headroom. For v5p
the compiler keeps less of a loop's arrays in vector memory, hence more traffic there.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_programs import tpu_mesh

from segearth_r2_jax.ahead_of_time.collectives import Collective, collectives
from segearth_r2_jax.ahead_of_time.hlo_text import Program
from segearth_r2_jax.ahead_of_time.memory_traffic import memory_traffic
from segearth_r2_jax.kernels.deformable_sampling import deformable_sampling
from segearth_r2_jax.objectives.mask_losses import PointSampling, draw_points, mask_losses, select_points

MIB = 2**20
DEVICES = 4
# The deformable attention of the pixel decoder.
SHAPES = ((32, 32), (64, 64), (128, 128))
QUERIES = sum(h * w for h, w in SHAPES)
HEADS, CHANNELS, POINTS = 8, 32, 4
# The mask losses.
PREDICTIONS, MASKS = 10, 4


def _compiled(function: Callable, *arguments: tuple[tuple[int, ...], str, int | None], topology: str) -> tuple[int, int, list[Collective]]:
    """Bytes of temporaries and of traffic per device, and the exchanges. An argument is (shape, dtype, axis spread over the devices)."""
    mesh = tpu_mesh(DEVICES, 1, 1, topology=topology)

    def argument(shape: tuple[int, ...], dtype: str, axis: int | None) -> jax.ShapeDtypeStruct:
        spec = P() if axis is None else P(*[None] * axis, "data")
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=NamedSharding(mesh, spec))

    compiled = jax.jit(function).lower(*[argument(*a) for a in arguments]).compile()
    program = Program(compiled.as_text())
    return compiled.memory_analysis().temp_size_in_bytes, memory_traffic(program), collectives(program, mesh)


def _deformable_sampling(dtype: str, per_device: int, topology: str) -> tuple[int, int, list[Collective]]:
    def forward_and_backward(values, locations, weights, cotangent):
        out, pull = jax.vjp(lambda *a: deformable_sampling(a[0], SHAPES, *a[1:]), values, locations, weights)
        return out, pull(cotangent)

    b = DEVICES * per_device
    points = (b, QUERIES, HEADS, len(SHAPES), POINTS)
    return _compiled(
        forward_and_backward,
        ((b, QUERIES, HEADS, CHANNELS), dtype, 0),
        ((*points, 2), "float32", 0),
        (points, "float32", 0),
        ((b, QUERIES, HEADS * CHANNELS), dtype, 0),
        topology=topology,
    )


def _mask_losses(topology: str) -> tuple[int, int, list[Collective]]:
    def gradient(logits, masks, frames, valid, seed):
        def loss(logits):
            draws = draw_points(jax.random.key(seed), *logits.shape[:2], PointSampling())
            bce, dice = mask_losses(logits, masks, frames, valid, select_points(logits, draws, PointSampling()))
            return bce.sum() + dice.sum()

        return jax.grad(loss)(logits)

    n = DEVICES * MASKS
    return _compiled(
        gradient,
        ((PREDICTIONS, n, 256, 256), "bfloat16", 1),
        ((n, 1024, 1024), "uint8", 0),
        ((n, 2), "int32", 0),
        ((n,), "bool", 0),
        ((), "uint32", None),
        topology=topology,
    )


@pytest.mark.parametrize(
    ("topology", "dtype", "per_device", "temporaries", "traffic"),
    [
        ("v5e:2x2", "bfloat16", 1, 16 * MIB, 256 * MIB),
        pytest.param("v5e:2x2", "float32", 1, 16 * MIB, 384 * MIB, marks=pytest.mark.slow),
        pytest.param("v5e:2x2", "bfloat16", 4, 64 * MIB, 1024 * MIB, marks=pytest.mark.slow),
        pytest.param("v6e:2x2", "bfloat16", 1, 16 * MIB, 256 * MIB, marks=pytest.mark.slow),
        pytest.param("v5p:2x2x1", "bfloat16", 1, 64 * MIB, 12288 * MIB, marks=pytest.mark.slow),
    ],
)
def test_deformable_sampling_forward_and_backward(topology: str, dtype: str, per_device: int, temporaries: int, traffic: int):
    used, moved, exchanged = _deformable_sampling(dtype, per_device, topology)
    print(topology, dtype, per_device, f"{used / MIB:.1f} MiB, {moved / MIB:.0f} MiB moved")
    assert used <= temporaries
    assert moved <= traffic
    assert exchanged == []


@pytest.mark.parametrize(
    ("topology", "temporaries", "traffic"),
    [
        ("v5e:2x2", 32 * MIB, 256 * MIB),
        pytest.param("v6e:2x2", 32 * MIB, 256 * MIB, marks=pytest.mark.slow),
        pytest.param("v5p:2x2x1", 96 * MIB, 16384 * MIB, marks=pytest.mark.slow),
    ],
)
def test_mask_losses_and_the_choice_of_their_points(topology: str, temporaries: int, traffic: int):
    used, moved, exchanged = _mask_losses(topology)
    print(topology, f"{used / MIB:.1f} MiB, {moved / MIB:.0f} MiB moved", exchanged)
    assert used <= temporaries
    assert moved <= traffic
    # Nothing but sums of a few numbers: how many masks of the whole batch are valid.
    assert sum(item.times * item.bytes for item in exchanged) <= 1024
    assert {item.kind for item in exchanged} <= {"all-reduce"}
