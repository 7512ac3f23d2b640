import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.layers import LOGICAL_AXES
from segearth_r2_jax.sharding.mesh import MeshShape, make_mesh
from segearth_r2_jax.sharding.rules import RULES, partition_spec, shardings


@pytest.fixture
def mesh():
    return jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))


def test_every_logical_axis_has_a_rule():
    assert set(LOGICAL_AXES) < set(RULES)


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


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="does not fit"):
        make_mesh(MeshShape(data=3, fsdp=5, tensor=7))
    with pytest.raises(UserError, match="does not fit"):
        make_mesh(MeshShape(data=-1, fsdp=-1))
