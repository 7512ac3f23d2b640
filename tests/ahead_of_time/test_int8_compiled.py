"""What a generated word reads of the language model's weights on a TPU, by the compiler: with 8 bits half of what bfloat16 takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tpu_programs import tpu_mesh

from segearth_r2_jax.ahead_of_time.hlo_text import Program
from segearth_r2_jax.ahead_of_time.memory_traffic import memory_traffic
from segearth_r2_jax.models.binding import abstract_module, bind, flatten, module_params, unflatten
from segearth_r2_jax.models.int8 import Int8Kernel
from segearth_r2_jax.models.phi import KVCache, Phi, PhiConfig

# More layers than fit into the on-chip memory, which a compiler would fill first.
LAYERS, SLOTS = 8, 128


def _moved(topology: str, int8: bool) -> tuple[int, int]:
    """Bytes that one word of Phi-2's layers (some of them) moves, and bytes of their kernels."""
    config = PhiConfig(vocab_size=256, embed_rows=256, hidden_size=2560, intermediate_size=10240, num_layers=LAYERS, num_heads=32)
    place = NamedSharding(tpu_mesh(1, 1, 1, topology=topology), PartitionSpec())

    def array(shape: tuple[int, ...], dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=place)

    def make(rngs: nnx.Rngs) -> Phi:
        return Phi(config, rngs=rngs)

    abstract = abstract_module(make)
    params, kernels = {}, 0
    for path, leaf in flatten(module_params(abstract)).items():
        stored = path.startswith("layers") and path.endswith("kernel")
        kernels += stored * leaf.size * (1 if int8 else 2)
        quantized = Int8Kernel(array(leaf.shape, "int8"), array((*leaf.shape[:-2], leaf.shape[-1]), "float32"))
        params[path] = quantized if stored and int8 else array(leaf.shape)

    def word(params, embeds, keys, values, positions):
        return bind(abstract, unflatten(params)).decode(embeds, KVCache(keys, values), positions)

    cache = array((LAYERS, 1, 32, SLOTS, 80))
    traced = jax.jit(word, donate_argnums=(2, 3)).lower(params, array((1, 1, 2560)), cache, cache, array((1,), "int32"))
    return memory_traffic(Program(traced.compile().as_text())), kernels


@pytest.mark.parametrize("topology", ["v5e:2x2", pytest.param("v6e:2x2", marks=pytest.mark.slow)])
def test_a_word_reads_each_kernel_once_and_in_8_bits(topology):
    (moved, kernels), (moved_int8, kernels_int8) = _moved(topology, False), _moved(topology, True)
    print(f"{moved / 2**20:.1f} MiB of {kernels / 2**20:.1f}, int8 {moved_int8 / 2**20:.1f} of {kernels_int8 / 2**20:.1f}")
    assert kernels_int8 == kernels / 2
    assert moved_int8 < 1.15 * kernels_int8
    assert moved < 1.15 * kernels
