import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_programs import compiled_text, tpu_mesh

from segearth_r2_jax.ahead_of_time.hlo_text import Program
from segearth_r2_jax.ahead_of_time.memory_traffic import memory_traffic


def _traffic(function, *shapes, dtype=jnp.bfloat16) -> int:
    place = NamedSharding(tpu_mesh(1, 1, 1), P())
    return memory_traffic(Program(compiled_text(function, *[jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape in shapes])))


def test_an_elementwise_program_reads_its_input_and_writes_its_output():
    size = 256 * 2**20  # too large for VMEM
    assert _traffic(jnp.tanh, (size // 1024, 1024)) == pytest.approx(2 * size * 2, rel=1e-3)


def test_scanned_layers_read_their_own_slice_of_the_stacked_parameters():
    layers, width = 12, 4096

    def program(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    weights = layers * width * width * 2
    moved = _traffic(program, (layers, width, width), (256, width))
    # Every layer's own weights once, and the small activations at most a few times per layer.
    assert weights <= moved <= weights + 6 * layers * 256 * width * 2
