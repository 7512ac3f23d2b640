"""Checkpoint folders: parameters whole and exact, the newest whole step, a run that continues where it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from segearth_r2_jax.checkpoints import manager
from segearth_r2_jax.checkpoints.training_checkpoints import TrainingCheckpoints
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config

REPOSITORY = Path(__file__).resolve().parents[2]


def base_params() -> dict:
    return {
        "phi": {"layers": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)}},
        "norms": {"0": {"scale": np.array([1.0, 2.0**-1074, np.pi])}},  # float64, with a denormal
    }


def trainable_params(value: float = 1.0) -> dict:
    return {"head": {"kernel": jnp.full((2, 3), value), "bias": jnp.zeros(3)}}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.fixture
def optimizer() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1.0, 0.0, 10)))


def test_base_keeps_every_dtype_and_bit(tmp_path):
    manager.save_base(tmp_path, base_params())
    loaded = manager.load_parameters(tmp_path)
    for ours, stored in zip(jax.tree.leaves(base_params()), jax.tree.leaves(loaded), strict=True):
        assert isinstance(stored, np.ndarray)
        assert (stored.dtype, stored.tobytes()) == (ours.dtype, ours.tobytes())


def test_base_is_written_once(tmp_path):
    assert not manager.has_base(tmp_path)
    manager.save_base(tmp_path, base_params())
    assert manager.has_base(tmp_path)
    with pytest.raises(UserError, match="base: is there already"):
        manager.save_base(tmp_path, base_params())


def test_a_base_that_was_cut_off_is_no_base_and_is_replaced(tmp_path):
    other = {"phi": {"layers": {"kernel": np.zeros((7, 7), np.float32)}}, "gone": np.ones(2)}
    manager.save_base(tmp_path, other)
    (tmp_path / "base" / "commit_success.txt").unlink()
    shutil.copytree(tmp_path / "base", tmp_path / "base.orbax-checkpoint-tmp")
    with pytest.raises(UserError, match="no parameters there"):
        manager.load_parameters(tmp_path)
    manager.save_base(tmp_path, base_params())
    assert jax.tree.structure(manager.load_parameters(tmp_path)) == jax.tree.structure(base_params())


def test_unused_tensors_keep_integers(tmp_path):
    assert manager.load_unused(tmp_path) == {}
    manager.save_unused(tmp_path, {"a.b:0": np.array([[2**62, -1]]), "a": np.array([1.5], np.float16)})
    loaded = manager.load_unused(tmp_path)
    assert {name: (array.dtype.name, array.tolist()) for name, array in loaded.items()} == {
        "a.b:0": ("int64", [[2**62, -1]]),
        "a": ("float16", [1.5]),
    }


def test_parameters_are_base_overlaid_with_the_newest_step(tmp_path, optimizer):
    manager.save_base(tmp_path, {**base_params(), "head": {"bias": np.full(3, 9.0, np.float32)}})
    with TrainingCheckpoints(tmp_path, save_every=10) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, trainable_params(step), optimizer.init(trainable_params()))
    loaded = manager.load_parameters(tmp_path)
    assert loaded["head"]["kernel"].tolist() == [[20.0] * 3] * 2
    assert loaded["head"]["bias"].tolist() == [0.0] * 3
    assert loaded["phi"]["layers"]["kernel"].dtype == ml_dtypes.bfloat16
    assert manager.latest_step(tmp_path) == 20


def test_parameters_must_be_those_of_the_model(tmp_path):
    manager.save_base(tmp_path, base_params())
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    model = abstract(base_params())
    with pytest.raises(UserError, match=r"missing parameter head/bias \(shape \[3\]\)"):
        manager.load_parameters(tmp_path, {**model, "head": {"bias": shape}})
    with pytest.raises(UserError, match="unknown parameter norms/0/scale"):
        manager.load_parameters(tmp_path, {"phi": model["phi"]})
    with pytest.raises(UserError, match=r"phi/layers/kernel has shape \[3, 4\], the model expects \[3, 5\]"):
        manager.load_parameters(tmp_path, {**model, "phi": {"layers": {"kernel": jax.ShapeDtypeStruct((3, 5), jnp.float32)}}})


def test_parameters_take_the_dtype_and_the_sharding_asked_for(tmp_path):
    manager.save_base(tmp_path, base_params())
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=sharding), base_params())
    kernel = manager.load_parameters(tmp_path, model)["phi"]["layers"]["kernel"]
    assert isinstance(kernel, jax.Array)
    assert kernel.sharding == sharding
    assert kernel.dtype == jnp.float32
    assert kernel.tolist() == np.arange(12).reshape(3, 4).tolist()
    assert {x.dtype.name for x in jax.tree.leaves(manager.load_parameters(tmp_path, dtype="float16"))} == {"float16"}


def test_an_empty_folder_is_refused_by_name(tmp_path):
    assert manager.latest_step(tmp_path) is None
    with pytest.raises(UserError, match=f"{tmp_path}: no parameters there"):
        manager.load_parameters(tmp_path)


def test_a_run_continues_with_its_state_and_metadata(tmp_path, optimizer):
    params = trainable_params(3.0)
    state = optimizer.update(params, optimizer.init(params), params)[1]
    position = {"seed": 4, "data": {"position": 40}}
    with TrainingCheckpoints(tmp_path, save_every=10) as checkpoints:
        assert checkpoints.restore(abstract(params), abstract(state)) is None
        assert not checkpoints.save(7, params, state)
        assert checkpoints.save(9, params, state, metadata=position, force=True)
        position["data"]["position"] = 48  # At once: what goes on in the background may not see it.
        assert not checkpoints.save(9, params, state, force=True), "a step is saved once"

    with TrainingCheckpoints(tmp_path, save_every=10) as checkpoints:
        restored = checkpoints.restore(abstract(params), abstract(state))
    assert restored.step == 9
    assert restored.metadata == {"seed": 4, "data": {"position": 40}}
    assert jax.tree.structure(restored.optimizer) == jax.tree.structure(state)
    for ours, stored in zip(jax.tree.leaves((params, state)), jax.tree.leaves((restored.trainable, restored.optimizer)), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(stored).tobytes()


def test_a_state_of_another_configuration_is_refused(tmp_path, optimizer):
    params, state = trainable_params(), optimizer.init(trainable_params())
    with TrainingCheckpoints(tmp_path, save_every=1) as checkpoints:
        checkpoints.save(1, params, state)
        checkpoints.wait()
        wider = {"head": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(3)}}
        with pytest.raises(UserError, match=r"head/kernel has shape \[2, 3\], the model expects \[2, 4\]"):
            checkpoints.restore(abstract(wider), abstract(state))
        with pytest.raises(UserError, match="was not saved by this configuration"):
            checkpoints.restore(abstract(params), abstract(optax.sgd(1.0, momentum=0.9).init(params)))


def test_the_last_k_steps_are_kept(tmp_path, optimizer):
    with TrainingCheckpoints(tmp_path, keep=2, save_every=10) as checkpoints:
        for step in range(10, 41):
            checkpoints.save(step, trainable_params(step), optimizer.init(trainable_params()))
    assert sorted(os.listdir(tmp_path / "steps")) == ["30", "40"]


def test_a_step_that_is_not_whole_is_ignored_and_costs_no_whole_one(tmp_path, optimizer):
    state = optimizer.init(trainable_params())
    with TrainingCheckpoints(tmp_path, keep=2, save_every=1) as checkpoints:
        checkpoints.save(1, trainable_params(1), state)
        checkpoints.save(2, trainable_params(2), state)
    steps = tmp_path / "steps"
    shutil.copytree(steps / "2", steps / "3")
    (steps / "3" / "commit_success.txt").unlink()
    shutil.rmtree(steps / "3" / "optimizer")
    shutil.copytree(steps / "3", steps / "4.orbax-checkpoint-tmp")
    assert manager.latest_step(tmp_path) == 2
    assert manager.load_parameters(tmp_path)["head"]["kernel"][0, 0] == 2.0
    with TrainingCheckpoints(tmp_path, keep=2, save_every=1) as checkpoints:
        assert checkpoints.latest_step() == 2
        checkpoints.save(3, trainable_params(3), state)
    # What was whole once is kept under another name.
    assert sorted(os.listdir(steps)) == ["2", "3", "3.damaged"]
    assert manager.load_parameters(tmp_path)["head"]["kernel"][0, 0] == 3.0


def test_killed_while_saving_continues_from_the_step_before(tmp_path, optimizer):
    """The process dies between the arrays' arrival on disk and the renaming of the step's folder."""
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {str(REPOSITORY)!r})
        import jax, jax.numpy as jnp, optax
        from segearth_r2_jax.checkpoints.training_checkpoints import TrainingCheckpoints
        params = {{"head": {{"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}}}
        state = optax.adam(1.0).init(params)
        checkpoints = TrainingCheckpoints({str(tmp_path)!r}, save_every=1)
        checkpoints.save(1, params, state)
        checkpoints.wait()
        kill = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        os.rename = os.replace = kill
        checkpoints.save(2, params, state)
        checkpoints.wait()
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(os.listdir(tmp_path / "steps")) == ["1", "2.orbax-checkpoint-tmp"]
    state = optax.adam(1.0).init(trainable_params())
    with TrainingCheckpoints(tmp_path, save_every=1) as checkpoints:
        assert checkpoints.restore(abstract(trainable_params()), abstract(state)).step == 1
        assert checkpoints.save(2, trainable_params(5), state)
    assert manager.load_parameters(tmp_path)["head"]["kernel"][0, 0] == 5.0


def test_predicting_needs_no_data_pipeline():
    """Loading parameters imports neither Grain nor torch."""
    script = "import sys; import segearth_r2_jax.checkpoints.manager; print([m for m in ('grain', 'torch') if m in sys.modules])"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_configurations_round_trip_and_bad_ones_are_named(tmp_path):
    config = SegEarthR2Config.tiny(vocab_size=300)
    manager.write_config(tmp_path, {"model": config.to_dict(), "template": "train_phi_v0"})
    assert manager.read_config(tmp_path)["template"] == "train_phi_v0"
    assert manager.read_model_config(tmp_path) == config
    assert os.listdir(tmp_path) == ["config.json"]
    with pytest.raises(UserError, match=r"absent/config.json: no such file"):
        manager.read_config(tmp_path / "absent")
    for content, message in (
        ("{", "not a JSON file"),
        ("[]", "expected an object"),
        ("{}", 'no "model"'),
        (json.dumps({"model": {**config.to_dict(), "bogus": 1}}), "not a network of this version"),
        (json.dumps({"model": {}}), "not a network of this version"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=message):
            manager.read_model_config(tmp_path)
