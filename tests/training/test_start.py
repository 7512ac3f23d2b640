"""The state a run begins with: fresh, from a checkpoint, or where it was interrupted."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from micro_run import TOKENIZER, micro_model, micro_run

from segearth_r2_jax.checkpoints.export import Export
from segearth_r2_jax.checkpoints.manager import write_config
from segearth_r2_jax.checkpoints.reference_import import Import
from segearth_r2_jax.checkpoints.sources.open import open_source
from segearth_r2_jax.checkpoints.training_checkpoints import TrainingCheckpoints
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.binding import flatten
from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.sharding.mesh import MeshShape, make_mesh
from segearth_r2_jax.training.start import Started, check, start
from segearth_r2_jax.training.step import StepConfig

MESH = make_mesh(MeshShape())


def begin(config, folder, *, save: int | None = None) -> Started:
    with TrainingCheckpoints(folder, keep=1) as checkpoints:
        started = start(config, epath.Path(folder), MESH, checkpoints)
        if save is not None:
            state = started.state
            checkpoints.save(save, state.trainable, state.opt_state, metadata={"data": {"position": 6}}, force=True)
    return started


def same(a: Started, b: Started) -> bool:
    trees = [dataclasses.asdict(started.state) for started in (a, b)]
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y)), *trees))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint to start from."""
    folder = tmp_path_factory.mktemp("source")
    return folder, begin(micro_run("", seed=7), folder, save=0)


def test_a_run_starts_from_a_checkpoint_and_continues_without_it(source, tmp_path):
    initial, made = tmp_path / "initial", source[1]
    shutil.copytree(source[0], initial)
    config = micro_run("", initial_checkpoint=str(initial), trainable=("^mask_decoder",), frozen_dtype="bfloat16")
    first = begin(config, tmp_path / "run", save=3)
    assert (int(first.state.step), first.loader_state) == (0, None)
    given = flatten(made.state.trainable)
    for path, leaf in flatten(first.state.trainable).items():
        np.testing.assert_array_equal(leaf, given[path])
    for path, leaf in flatten(first.state.frozen).items():
        np.testing.assert_array_equal(leaf, given[path].astype("bfloat16"))

    shutil.rmtree(initial)
    again = begin(config, tmp_path / "run")
    assert (int(again.state.step), again.loader_state) == (3, {"position": 6})
    again.state.step = first.state.step
    assert same(first, again)


def test_a_run_starts_from_pytorch_weights_as_from_a_checkpoint(source, tmp_path):
    """In float16 on disk; what the mesh gets is the same."""
    write_config(source[0], {"model": micro_run("").model.to_dict()})
    shutil.copyfile(TOKENIZER, source[0] / "tokenizer.json")
    Export(source[0], dtype="float16").write(tmp_path / "torch")
    Import(open_source(tmp_path / "torch")).write(tmp_path / "converted")

    def begun(weights: str, name: str, **changes: object) -> dict:
        config = micro_run("", initial_checkpoint=str(tmp_path / weights), **changes)
        return flatten(begin(config, tmp_path / name).state.trainable)

    direct, converted = begun("torch", "one"), begun("converted", "two")
    assert direct.keys() == converted.keys()
    for path, leaf in direct.items():
        stored = np.asarray(flatten(source[1].state.trainable)[path])
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, converted[path])
        np.testing.assert_array_equal(leaf, stored.astype(np.float16).astype(np.float32))
    assert any("/lora_" in path for path in begun("torch", "adapted", model=micro_model(lora=LoraConfig(rank=2))))
    with pytest.raises(UserError, match=r"torch: parameter .* has shape .*, the model expects"):
        begun("torch", "other", model=micro_model(hidden_size=80))


def test_lost_frozen_parameters_are_made_again_from_where_they_came(source, tmp_path):
    config = micro_run("", initial_checkpoint=str(source[0]), trainable=("^mask_decoder",))
    first = begin(config, tmp_path, save=3)
    shutil.rmtree(tmp_path / "base")
    again = begin(config, tmp_path)
    again.state.step = first.state.step
    assert same(first, again)
    assert (tmp_path / "base").is_dir()


def test_low_rank_adapters_come_from_the_checkpoint_from_another_run_or_are_fresh(source, tmp_path):
    with_lora = {"model": micro_model(lora=LoraConfig(rank=2)), "trainable": ("lora_",)}
    tuned = begin(micro_run("", seed=3, **with_lora), tmp_path / "tuned", save=0)

    def begun(name: str, **initial: str) -> dict:
        state = begin(micro_run("", seed=5, **with_lora, **initial), tmp_path / name).state
        return flatten(state.trainable) | flatten(state.frozen)

    theirs = flatten(tuned.state.trainable)
    others = flatten(source[1].state.trainable)
    assert theirs.keys().isdisjoint(others)
    fresh = begun("fresh", initial_checkpoint=str(source[0]))
    adapted = begun("adapted", initial_checkpoint=str(source[0]), initial_adapter=str(tmp_path / "tuned"))
    continued = begun("continued", initial_checkpoint=str(tmp_path / "tuned"))
    for path, leaf in others.items():
        np.testing.assert_array_equal(fresh[path], leaf)
        np.testing.assert_array_equal(adapted[path], leaf)
        np.testing.assert_array_equal(continued[path], flatten(tuned.state.frozen)[path])
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(adapted[path], leaf)
        np.testing.assert_array_equal(continued[path], leaf)
    assert any(not np.array_equal(fresh[path], leaf) for path, leaf in theirs.items())
    with pytest.raises(UserError, match=r"initial_adapter: the model has no low-rank adapters"):
        begin(micro_run("", initial_adapter=str(tmp_path / "tuned")), tmp_path / "without")


@pytest.mark.parametrize(("changes", "message"), [({"accumulate": 4}, "not a multiple of 4"), ({}, "shards is empty")])
def test_what_cannot_work_is_said_before_anything_is_done(changes, message):
    with pytest.raises(UserError, match=message):
        check(micro_run("shards" if changes else "", step=StepConfig(**changes)), 512, MESH)
