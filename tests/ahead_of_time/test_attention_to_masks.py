"""Masked attention compiled for TPUs at the real sizes: neither its mask nor its scores exist in memory, and devices exchange nothing.

A level of 1024 pixels has 32, 64 or 128 pixels a side; 4 queries are those of a training step, 8 those of a pass of inference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_programs import tpu_mesh

from segearth_r2_jax.ahead_of_time.collectives import collectives
from segearth_r2_jax.ahead_of_time.hlo_text import Program
from segearth_r2_jax.ahead_of_time.memory_traffic import memory_traffic
from segearth_r2_jax.ahead_of_time.program_flops import program_flops
from segearth_r2_jax.kernels.masked_attention import masked_attention
from segearth_r2_jax.placement import placed
from segearth_r2_jax.sharding.rules import placement

KIB = 2**10
HEADS, CHANNELS = 8, 32
WIDTH = HEADS * CHANNELS
SIDES = (32, 64, 128)


def _forward(q, k, v, mask_embed, mask_features):
    """As the mask decoder calls it: queries, keys and values come out of dense layers, as rows of all heads."""
    q, k, v = (x.reshape(*x.shape[:2], HEADS, CHANNELS) for x in (q, k, v))
    return masked_attention(q, k, v, mask_embed, mask_features, scale=CHANNELS**-0.5).reshape(*q.shape[:2], WIDTH)


def _forward_and_backward(q, k, v, mask_embed, mask_features, cotangent):
    out, pull = jax.vjp(lambda *x: _forward(*x, mask_embed, mask_features), q, k, v)
    return out, pull(cotangent)


def _arguments(mesh: Mesh | None, b: int, queries: int, side: int, dtype: str) -> list[jax.ShapeDtypeStruct]:
    """Heads over tensor, images over the other axes of the mesh."""

    def argument(rows: int, heads: str | None) -> jax.ShapeDtypeStruct:
        sharding = None if mesh is None else NamedSharding(mesh, P(("data", "fsdp"), None, heads))
        return jax.ShapeDtypeStruct((b, rows, WIDTH), jnp.dtype(dtype), sharding=sharding)

    s = side * side
    shapes = [(queries, "tensor"), (s, "tensor"), (s, "tensor"), (queries, None), (s, None), (queries, "tensor")]
    return [argument(*shape) for shape in shapes]


def _compiled(function, mesh: Mesh, b: int, queries: int, side: int, dtype: str):
    arguments = _arguments(mesh, b, queries, side, dtype)[: 5 if function is _forward else 6]
    with placed(placement(mesh)):
        # A function of its own: what `jit` has traced it does not trace again, though the mesh is another one.
        return jax.jit(lambda *arrays: function(*arrays)).lower(*arguments).compile()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("topology", "dtype", "queries"),
    [
        ("v5e:2x2", "bfloat16", 4),
        pytest.param("v5e:2x2", "bfloat16", 8, marks=SLOW),
        pytest.param("v5e:2x2", "bfloat16", 32, marks=SLOW),
        pytest.param("v5e:2x2", "float32", 4, marks=SLOW),
        pytest.param("v5e:2x2", "float32", 8, marks=SLOW),
        pytest.param("v5e:2x2", "float32", 32, marks=SLOW),
        *(
            pytest.param(topology, dtype, q, marks=SLOW)
            for topology in ("v5p:2x2x1", "v6e:2x2")
            for dtype in ("bfloat16", "float32")
            for q in (4, 8)
        ),
    ],
)
def test_no_array_of_queries_and_pixels_is_in_memory(topology: str, dtype: str, queries: int):
    mesh = tpu_mesh(1, 1, 1, topology=topology)
    for function in (_forward, _forward_and_backward):
        used = {}
        for side in SIDES:
            compiled = _compiled(function, mesh, 1, queries, side, dtype)
            text = compiled.as_text()
            assert text.count('custom_call_target="tpu_custom_call"') == (1 if function is _forward else 2)
            used[side] = compiled.memory_analysis().temp_size_in_bytes
            moved = memory_traffic(Program(text))
            print(topology, dtype, queries, function.__name__, side, f"{used[side] / KIB:.1f} KiB, {moved / 2**20:.2f} MiB moved")
        # Four times the pixels take not a byte more, so no temporary has that many entries, of whatever size; and all of them together
        # take less than the mask logits of the largest level would.
        assert used[128] <= used[64]
        assert used[128] < queries * 128 * 128 * jnp.dtype(dtype).itemsize


def test_traffic_is_that_of_keys_values_and_mask_features():
    """Each is read once going forward, and once going back, where the gradients of keys and values are written."""
    mesh = tpu_mesh(1, 1, 1, topology="v5e:2x2")
    pixels = 128 * 128 * WIDTH * 2
    for function, arrays in ((_forward, 3), (_forward_and_backward, 8)):
        assert memory_traffic(Program(_compiled(function, mesh, 1, 4, 128, "bfloat16").as_text())) < 1.05 * arrays * pixels


def test_in_a_mesh_every_device_does_its_own_heads_and_images():
    mesh = tpu_mesh(2, 4, 2)
    for function in (_forward, _forward_and_backward):
        compiled = _compiled(function, mesh, 8, 4, 64, "bfloat16")
        assert collectives(Program(compiled.as_text()), mesh) == []
        assert compiled.memory_analysis().temp_size_in_bytes <= 4 * 64 * 64 * 4


def test_the_products_of_the_kernel_are_counted():
    """Forward: every row of a query and a head with the channels of all heads, keys and values; and the mask, once for 8 queries."""
    jaxpr = jax.make_jaxpr(_forward)(*_arguments(None, 2, 4, 64, "bfloat16")[:5])
    rows = 8 * HEADS
    assert program_flops(jaxpr, platform="tpu") == 2 * 2 * 64 * 64 * (2 * rows * WIDTH + 8 * WIDTH)
    assert program_flops(jaxpr, platform="cpu") == 2 * 2 * 64 * 64 * 4 * (2 * HEADS + 1) * WIDTH
    assert program_flops(jaxpr, platform="rocm") == 2 * 2 * 64 * 64 * 4 * 3 * WIDTH


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_it_lowers_for_nvidia_gpus(dtype: str):
    """To two kernels; nothing of the size of a mask is computed around them."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        traced = jax.jit(_forward_and_backward).trace(*_arguments(None, 1, 4, 128, dtype))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert sum("custom_call" in line and "triton" in line for line in text.splitlines()) == 2
    assert "x4x16384x" not in text
    assert "x4x8x16384x" not in text
    assert "x8x4x16384x" not in text
