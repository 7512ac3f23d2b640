"""What attention needs on TPUs at the real sizes, by the compiler: no scores in memory, and no exchange between devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_programs import tpu_mesh

from segearth_r2_jax.ahead_of_time.collectives import collectives
from segearth_r2_jax.ahead_of_time.hlo_text import Program
from segearth_r2_jax.ahead_of_time.memory_traffic import memory_traffic
from segearth_r2_jax.kernels.attention import attention
from segearth_r2_jax.placement import placed
from segearth_r2_jax.sharding.rules import placement

MIB = 2**20
PHI_HEADS, PHI_WIDTH = 32, 80
SIGLIP_HEADS, SIGLIP_WIDTH, SIGLIP_TOKENS = 16, 72, 729


def _compiled(function, batch: int, t: int, n: int, h: int, dtype: str, mesh) -> tuple[int, int, str]:
    """Bytes of temporaries and of traffic per device, and the program; `function` of (q, k, v, mask, cotangent) on the mesh."""

    def argument(shape: tuple[int, ...], dtype: str, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=NamedSharding(mesh, spec))

    rows = argument((batch, t, n, h), dtype, P(("data", "fsdp"), None, "tensor"))
    mask = argument((batch, t), "bool", P(("data", "fsdp")))

    def divided(*arguments):
        with placed(placement(mesh)):
            return function(*arguments)

    compiled = jax.jit(divided).lower(rows, rows, rows, mask, rows).compile()
    text = compiled.as_text()
    program = Program(text)
    assert collectives(program, mesh) == []
    used, moved = compiled.memory_analysis().temp_size_in_bytes, memory_traffic(program)
    print(f"{used / MIB:.1f} MiB, {moved / MIB:.0f} MiB moved, {text.count('tpu_custom_call')} kernels")
    return used, moved, text


def _phi(q, k, v, mask, cotangent):
    out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, causal=True, key_mask=mask, scale=PHI_WIDTH**-0.5), q, k, v)
    return out, pull(cotangent)


def _siglip(q, k, v, mask, cotangent):
    return attention(q, k, v, causal=False, scale=SIGLIP_WIDTH**-0.5)


@pytest.mark.parametrize(
    ("topology", "tokens", "dtype", "temporaries"),
    [
        ("v5e:2x2", 1024, "bfloat16", 2 * MIB),
        pytest.param("v5e:2x2", 896, "bfloat16", 2 * MIB, marks=pytest.mark.slow),
        pytest.param("v5e:2x2", 1280, "bfloat16", 2 * MIB, marks=pytest.mark.slow),
        # The gradient of the queries, once per block of keys.
        pytest.param("v5e:2x2", 2048, "bfloat16", 64 * MIB, marks=pytest.mark.slow),
        pytest.param("v5e:2x2", 896, "float32", 2 * MIB, marks=pytest.mark.slow),
        pytest.param("v5e:2x2", 1280, "float32", 112 * MIB, marks=pytest.mark.slow),
        pytest.param("v6e:2x2", 1280, "bfloat16", 2 * MIB, marks=pytest.mark.slow),
        # Here the compiler keeps less in vector memory.
        pytest.param("v5p:2x2x1", 1280, "bfloat16", 80 * MIB, marks=pytest.mark.slow),
    ],
)
def test_phi_forward_and_backward_keeps_no_scores(topology: str, tokens: int, dtype: str, temporaries: int):
    """Causal, with padding, one image per device."""
    used, _, text = _compiled(_phi, 4, tokens, PHI_HEADS, PHI_WIDTH, dtype, tpu_mesh(4, 1, 1, topology=topology))
    assert "tpu_custom_call" in text
    assert used <= temporaries < PHI_HEADS * tokens * tokens * jnp.dtype(dtype).itemsize


@pytest.mark.parametrize(
    ("topology", "temporaries"),
    [
        ("v5e:2x2", 6 * MIB),
        pytest.param("v6e:2x2", 6 * MIB, marks=pytest.mark.slow),
        pytest.param("v5p:2x2x1", 52 * MIB, marks=pytest.mark.slow),
    ],
)
def test_siglip_keeps_no_scores(topology: str, temporaries: int):
    """A number of tokens that fills no block; four images per device, whose scores would not fit the chip's vector memory."""
    used, _, text = _compiled(_siglip, 16, SIGLIP_TOKENS, SIGLIP_HEADS, SIGLIP_WIDTH, "bfloat16", tpu_mesh(4, 1, 1, topology=topology))
    assert "tpu_custom_call" in text
    assert used <= temporaries < 4 * SIGLIP_HEADS * SIGLIP_TOKENS**2 * 2


def test_scanned_recomputed_layers_on_a_mesh_of_data_fsdp_and_tensor():
    """As Phi uses it in a training step; every device computes its own rows and heads."""

    def gradient(q, k, v, mask, cotangent):
        def loss(q, k, v):
            def layer(x, _):
                return x + attention(x, k, v, causal=True, key_mask=mask, scale=PHI_WIDTH**-0.5), None

            return (jax.lax.scan(jax.checkpoint(layer), q, None, length=2)[0] * cotangent).sum((1, 2, 3))

        return jax.vjp(loss, q, k, v)[1](jnp.ones(q.shape[0], q.dtype))

    used, _, text = _compiled(gradient, 8, 1024, PHI_HEADS, PHI_WIDTH, "bfloat16", tpu_mesh(2, 4, 2))
    assert "tpu_custom_call" in text
    assert used <= 2 * MIB < PHI_HEADS // 2 * 1024**2 * 2
