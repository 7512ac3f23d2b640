"""Programs whose exchanges are known, compiled for a TPU: their bytes have to be found to the last one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_programs import compiled_text, tpu_mesh

from segearth_r2_jax.ahead_of_time.collectives import Exchange, collectives, exchanges, replica_groups
from segearth_r2_jax.ahead_of_time.hlo_text import Program

ROWS, WIDTH = 1024, 256
BYTES = ROWS * WIDTH * 4


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("{}", [[0, 1, 2, 3]]),
        ("", [[0, 1, 2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
    ],
)
def test_every_way_to_write_replica_groups(text, groups):
    assert replica_groups(text, 4).tolist() == groups


@pytest.mark.parametrize("text", ["mesh['a'=4] {'a':(1)2}", "mesh['a'=4] {'b'}", "[2,2]<=", "{{0,1},{2}}"])
def test_a_form_that_is_not_known_is_not_guessed(text):
    assert replica_groups(text, 4) is None


def _all_kinds(x):
    """Each kind once, on arrays of BYTES bytes; between them work that the compiler cannot move."""
    x = lax.psum(jnp.sin(x), ("data", "fsdp"))
    x = lax.all_gather(jnp.sin(x[: ROWS // 4]), "fsdp", tiled=True)
    x = jnp.tile(lax.psum_scatter(jnp.sin(x), "fsdp", tiled=True), (4, 1))
    x = lax.all_to_all(jnp.sin(x), "tensor", 0, 0, tiled=True)
    return lax.ppermute(jnp.sin(x), "data", [(0, 1), (1, 0)])


def test_bytes_kinds_and_axes_of_collectives_in_nested_scans():
    mesh = tpu_mesh()

    @partial(jax.shard_map, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    def program(x):
        def outer(x, _):
            x, _ = lax.scan(lambda x, _: (_all_kinds(x), None), x, None, length=3)
            return lax.psum(jnp.cos(x), "tensor"), None

        return lax.scan(outer, x, None, length=5)[0]

    found = collectives(Program(compiled_text(program, jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32))), mesh)
    expected = {
        Exchange("all-reduce", "data+fsdp", 8, 15, 15 * BYTES, 15 * 2 * BYTES * 7 / 8),
        Exchange("all-reduce", "tensor", 2, 5, 5 * BYTES, 5 * 2 * BYTES / 2),
        Exchange("all-gather", "fsdp", 4, 15, 15 * BYTES, 15 * BYTES * 3 / 4),
        Exchange("reduce-scatter", "fsdp", 4, 15, 15 * BYTES, 15 * BYTES * 3 / 4),
        Exchange("all-to-all", "tensor", 2, 15, 15 * BYTES, 15 * BYTES / 2),
        Exchange("collective-permute", "data", 2, 15, 15 * BYTES, 15 * BYTES),
    }
    assert set(exchanges(found)) == expected


def test_what_the_partitioner_adds_to_a_sharded_gradient():
    """A weight split over fsdp and tensor: gathered for its use; its gradient is summed over fsdp in parts, then over data."""
    mesh = tpu_mesh()
    batch, size = 4096, 2048

    def loss(weight, x):
        return jnp.sum(jnp.tanh(x @ weight) ** 2)

    weight = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp", "tensor")))
    x = jax.ShapeDtypeStruct((batch, size), jnp.bfloat16, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
    text = compiled_text(jax.grad(loss), weight, x, out_shardings=weight.sharding)
    totals = {(exchange.kind, exchange.axes): exchange.bytes for exchange in exchanges(collectives(Program(text), mesh))}
    half = size * size // 2 * 2  # bytes of the half that a device works with: tensor=2, bfloat16
    assert totals == {("all-gather", "fsdp"): half, ("reduce-scatter", "fsdp"): half, ("all-reduce", "data"): half // 4}


def test_bytes_of_the_data_axis_do_not_depend_on_its_size():
    """The gradient of one layer, reduced over data: each device exchanges as much with 2 as with 4 groups."""

    def bytes_with(data: int) -> dict[str, int]:
        mesh = tpu_mesh(data, 2, 1)
        rows = 512 * data * 2
        weight = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
        x = jax.ShapeDtypeStruct((rows, 1024), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
        text = compiled_text(jax.grad(lambda w, x: jnp.sum(jnp.tanh(x @ w))), weight, x, out_shardings=weight.sharding)
        found = exchanges(collectives(Program(text), mesh))
        return {f"{exchange.kind} {exchange.axes}": exchange.bytes for exchange in found}

    two = bytes_with(2)
    assert two == bytes_with(4)
    assert two["all-reduce data"] == 1024 * 1024 * 4 // 2


def test_one_device_exchanges_nothing():
    mesh = tpu_mesh(1, 1, 1)
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=NamedSharding(mesh, P()))
    assert collectives(Program(compiled_text(lambda x: x @ x.T, x)), mesh) == []
    assert np.prod(mesh.devices.shape) == 1
