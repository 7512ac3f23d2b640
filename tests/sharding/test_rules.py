import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from segearth_r2_jax.models.layers import LOGICAL_AXES
from segearth_r2_jax.placement import ACTIVATION_AXES, constrain, gathered, placed
from segearth_r2_jax.sharding.mesh import MeshShape, make_mesh
from segearth_r2_jax.sharding.rules import ACTIVATION_RULES, PARAMETER_RULES, parameter_spec, partition_spec, placement, shardings


@pytest.fixture
def mesh():
    return jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))


def test_every_logical_axis_has_a_rule():
    assert set(LOGICAL_AXES) == set(PARAMETER_RULES)
    assert set(ACTIVATION_AXES) == set(ACTIVATION_RULES)


def test_a_dense_kernel_is_split_both_ways(mesh):
    assert partition_spec((64, 128), ("embed", "mlp"), mesh) == PartitionSpec(("fsdp",), ("tensor",))


def test_a_stacked_kernel_keeps_its_layers_together(mesh):
    assert partition_spec((3, 64, 128), ("layers", "embed", "mlp"), mesh) == PartitionSpec(None, ("fsdp",), ("tensor",))


def test_a_dimension_that_does_not_divide_stays_whole(mesh):
    assert partition_spec((66, 128), ("embed", "mlp"), mesh) == PartitionSpec(None, ("tensor",))


def test_a_mesh_axis_is_used_once(mesh):
    assert partition_spec((64, 64), ("embed", "embed"), mesh) == PartitionSpec(("fsdp",), None)


def test_shardings_follow_the_structure():
    mesh = make_mesh(MeshShape(data=1, fsdp=-1, tensor=1))
    params = {"a": {"kernel": jnp.zeros((8, 4))}}
    result = shardings(params, {"a": {"kernel": ("embed", "mlp")}}, mesh)
    assert result["a"]["kernel"].spec == PartitionSpec(("fsdp",), ("tensor",))


def test_a_vector_is_not_split_by_fsdp(mesh):
    assert parameter_spec((64,), ("embed",), mesh) == PartitionSpec(None)
    assert parameter_spec((3, 64), ("layers", "mlp"), mesh) == PartitionSpec(None, ("tensor",))


def test_activations_are_split_by_the_batch_and_kernels_are_whole_for_their_use_only():
    mesh = make_mesh(MeshShape(data=1, fsdp=-1, tensor=1))

    def layer(kernel, x):
        with placed(placement(mesh)):
            return constrain(x @ gathered(kernel, ("embed", "mlp")), "batch", None)

    text = str(jax.make_jaxpr(jax.grad(lambda kernel, x: layer(kernel, x).sum()))(jnp.zeros((8, 4)), jnp.zeros((2, 8))))
    assert text.count("sharding_constraint") == 4  # The kernel and the output, and the gradient of each.
    assert "spec=P('fsdp', 'tensor')" in text  # The kernel's gradient, in parts.
    assert "spec=P(('data', 'fsdp'), None)" in text


def test_without_a_mesh_nothing_is_placed():
    x = jnp.zeros((2, 3))
    assert constrain(x, "batch", None) is x
    assert gathered(x, ("embed", "mlp")) is x
