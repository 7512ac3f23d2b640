import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import flatten
from segearth_r2_jax.sharding.mesh import MeshShape, make_mesh
from segearth_r2_jax.training.schedules import OptimizerConfig, learning_rate_schedule, make_optimizer
from segearth_r2_jax.training.state import initial_state, join_params, split_params, state_shardings

PARAMS = {"phi": {"layers": {"lora_a": jnp.ones(2), "kernel": jnp.ones((2, 4))}, "lm_head": {"kernel": jnp.ones((4, 2))}}}


def test_patterns_choose_what_is_trained():
    trainable, frozen = split_params(PARAMS, ("lora_", "^phi/lm_head"))
    assert flatten(trainable).keys() == {"phi/layers/lora_a", "phi/lm_head/kernel"}
    assert flatten(frozen).keys() == {"phi/layers/kernel"}
    assert flatten(join_params(trainable, frozen)).keys() == flatten(PARAMS).keys()


def test_the_empty_pattern_trains_everything():
    trainable, frozen = split_params(PARAMS, ("",))
    assert flatten(trainable).keys() == flatten(PARAMS).keys()
    assert frozen == {}


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(UserError, match="'swin' matches no parameter"):
        split_params(PARAMS, ("lora_", "swin"))


def test_the_optimizers_moments_are_sharded_like_their_parameters():
    mesh = make_mesh(MeshShape(data=1, fsdp=-1))
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0), 10)
    trainable, frozen = split_params(PARAMS, ("kernel",))
    axes = {"phi": {"layers": {"lora_a": (None,), "kernel": ("embed", "mlp")}, "lm_head": {"kernel": ("embed", "vocab")}}}
    abstract = jax.eval_shape(lambda: initial_state(trainable, frozen, optimizer))
    sharded = state_shardings(abstract, optimizer, axes, mesh)
    assert jax.tree.structure(sharded.opt_state) == jax.tree.structure(abstract.opt_state)
    adam = optax.tree_utils.tree_get(sharded.opt_state, "mu")
    assert adam["phi"]["layers"]["kernel"].spec == PartitionSpec(("fsdp",), ("tensor",))
    assert optax.tree_utils.tree_get(sharded.opt_state, "nu")["phi"]["lm_head"]["kernel"].spec == PartitionSpec(("fsdp",), ("tensor",))
    assert sharded.frozen["phi"]["layers"]["lora_a"].spec == PartitionSpec(None)


def test_the_schedule_is_that_of_the_reference():
    """transformers' cosine schedule: linear from 0 over ceil(3 %) steps, then half a cosine to 0."""
    rate = learning_rate_schedule(OptimizerConfig(learning_rate=2.0), 100)
    assert rate(0) == 0
    np.testing.assert_allclose([rate(1), rate(2), rate(3)], [2 / 3, 4 / 3, 2], rtol=1e-6)
    for step in (10, 50, 99):
        assert rate(step) == pytest.approx(1 + np.cos(np.pi * (step - 3) / 97), abs=1e-6)
    assert rate(100) == pytest.approx(0, abs=1e-6)
