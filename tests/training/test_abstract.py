"""What is compiled without data and devices has to be what a run has on them."""

import jax
import pytest
from etils import epath
from micro_run import micro_run

from segearth_r2_jax.checkpoints.training_checkpoints import TrainingCheckpoints
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs.tokenizer import load_tokenizer
from segearth_r2_jax.sharding.mesh import make_mesh
from segearth_r2_jax.sharding.rules import batch_sharding
from segearth_r2_jax.training.abstract import abstract_batch, abstract_run
from segearth_r2_jax.training.batches import loader_config, open_loader, to_devices
from segearth_r2_jax.training.start import start


def _described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)


def test_the_abstract_batch_is_what_the_loader_puts_on_the_devices(shards):
    config = micro_run(shards)
    mesh = make_mesh(config.mesh)
    with open_loader(config.data.shards, load_tokenizer(config.tokenizer), loader_config(config), mesh) as loader:
        real = to_devices(next(loader), batch_sharding(mesh))
    (tokens,) = config.data.token_buckets
    abstract = abstract_batch(loader_config(config), mesh, rows=config.data.batch_size, tokens=tokens)
    assert _described(abstract) == _described(real)


def test_the_abstract_state_is_what_a_run_begins_with(shards, tmp_path):
    config = micro_run(shards, trainable=("^mask_decoder",), frozen_dtype="bfloat16")
    mesh = make_mesh(config.mesh)
    with TrainingCheckpoints(tmp_path, keep=1, save_every=1) as checkpoints:
        real = start(config, epath.Path(tmp_path), mesh, checkpoints).state
    assert _described(abstract_run(config, mesh).state) == _described(real)


def test_a_pattern_that_trains_nothing_is_refused(shards):
    config = micro_run(shards, trainable=("^mask_decoderr",))
    with pytest.raises(UserError, match="mask_decoderr"):
        abstract_run(config, make_mesh(config.mesh))
