"""The steps of a run: which are kept, what damage does, a full disk, another mesh, another dtype, a request to leave."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segearth_r2_jax.checkpoints import manager, sealed_folder
from segearth_r2_jax.checkpoints.training_checkpoints import TrainingCheckpoints, steps_to_keep
from segearth_r2_jax.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIMIZER = optax.adam(1.0)


def params(value: float = 1.0) -> dict:
    return {"phi": {"lora_a": jnp.full((2, 3), value), "lora_b": jnp.zeros((3, 2))}, "head": {"kernel": jnp.full((4, 4), -value)}}


def abstract(tree, dtype=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype if dtype is not None and jnp.issubdtype(x.dtype, jnp.floating) else x.dtype), tree
    )


def restore(checkpoints: TrainingCheckpoints):
    return checkpoints.restore(abstract(params()), abstract(OPTIMIZER.init(params())))


def save(folder: Path, *steps: int, **options) -> None:
    with TrainingCheckpoints(folder, keep=None, save_every=1, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, params(step), OPTIMIZER.init(params()), metadata={"data": {"position": step}})


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("three")
    save(folder, 1, 2, 3)
    return folder


@pytest.fixture
def folder(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "run"))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "steps"))


@pytest.mark.parametrize(
    ("saved", "keep", "keep_best", "kept"),
    [
        ({1: 0.5, 2: 0.9, 3: 0.1}, 1, 0, {3}),
        ({1: 0.5, 2: 0.9, 3: 0.1}, 1, 1, {2, 3}),
        ({1: 0.5, 2: 0.9, 3: 0.1}, 1, 2, {1, 2, 3}),
        ({1: 0.5, 2: 0.9, 3: 0.95}, 1, 1, {3}),  # The best is the newest.
        ({1: 0.5, 2: None, 3: float("nan"), 4: None}, 2, 2, {1, 3, 4}),  # Not judged: never among the best.
        ({1: 0.5, 2: 0.5, 3: None}, 1, 1, {2, 3}),
        ({1: 0.5, 2: 0.9}, 0, 0, {2}),  # The newest always.
        ({1: None, 2: None}, None, 0, {1, 2}),
        ({}, 3, 3, set()),
    ],
)
def test_the_last_and_the_best_are_kept(saved, keep, keep_best, kept):
    assert steps_to_keep(saved, keep, keep_best) == kept


def test_the_best_steps_outlive_the_last_ones_and_a_restart(tmp_path):
    state = OPTIMIZER.init(params())
    options = {"keep": 1, "save_every": 1, "keep_best": 1, "best_metric": "validation/gIoU"}
    with TrainingCheckpoints(tmp_path, **options) as checkpoints:
        for step, value in ((1, 0.2), (2, 0.7), (3, 0.4)):
            checkpoints.save(step, params(step), state, metrics={"validation/gIoU": value, "loss": 1.0})
    assert names(tmp_path) == ["2", "3"]
    with TrainingCheckpoints(tmp_path, **options) as checkpoints:
        checkpoints.save(4, params(4), state, metrics={"validation/gIoU": 0.6})
        checkpoints.save(5, params(5), state)
    assert names(tmp_path) == ["2", "5"]
    with TrainingCheckpoints(tmp_path, **options) as checkpoints:
        checkpoints.save(6, params(6), state, metrics={"validation/gIoU": 0.8})
    assert names(tmp_path) == ["6"]


def test_every_damaged_file_is_found(three, tmp_path):
    step = three / "steps" / "3"
    assert sealed_folder.find_damage(step) is None
    files = sorted(path.relative_to(step) for path in step.rglob("*") if path.is_file())
    ours = [name for name in files if name.name not in ("_CHECKPOINT_METADATA", "commit_success.txt") or len(name.parts) > 1]
    assert len(ours) == len(files) - 2
    for name in ours:
        for damage in ("removed", "truncated", "flipped"):
            if damage == "truncated" and not (step / name).stat().st_size:
                continue
            copy = Path(shutil.copytree(step, tmp_path / "copy"))
            hurt(copy / name, damage)
            found = sealed_folder.find_damage(copy)
            assert found is not None, f"{name} {damage}"
            assert found.startswith(str(name))
            shutil.rmtree(copy)


def hurt(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "removed" or not content:
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped"])
def test_what_is_written_after_the_seal_costs_a_step_or_nothing(folder, name, damage):
    hurt(folder / "steps" / "3" / name, damage)
    with TrainingCheckpoints(folder) as checkpoints:
        restored = restore(checkpoints)
    lost = (name, damage) == ("commit_success.txt", "removed")
    assert restored.step == (2 if lost else 3)
    assert names(folder) == (["1", "2", "3.damaged"] if lost else ["1", "2", "3"])


@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped"])
def test_a_run_goes_on_from_the_newest_undamaged_step(folder, capfd, damage):
    largest = max((folder / "steps" / "3").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    hurt(largest, damage)
    hurt(folder / "steps" / "2" / "metadata" / "metadata", damage)
    with TrainingCheckpoints(folder, save_every=1) as checkpoints:
        restored = restore(checkpoints)
        assert checkpoints.save(2, params(2), OPTIMIZER.init(params())), "a damaged step is saved again"
    assert restored.step == 1
    assert restored.metadata == {"data": {"position": 1}}
    assert restored.trainable["head"]["kernel"][0, 0] == -1.0
    assert names(folder) == ["1", "2", "2.damaged", "3.damaged"]
    lines = [line for line in capfd.readouterr().err.splitlines() if "is damaged" in line]
    assert [line.partition(" is damaged: ")[0] for line in lines] == [str(folder / "steps" / "3"), str(folder / "steps" / "2")]
    assert str(largest.relative_to(folder / "steps" / "3")) in lines[0]
    assert lines[1].endswith("it is now 2.damaged")


def test_a_run_of_which_nothing_is_left_begins_again_and_deletes_nothing(folder, capfd):
    for step in (1, 2, 3):
        hurt(folder / "steps" / str(step) / "files.json", "truncated")
    (folder / "steps" / "3.damaged").mkdir()
    with TrainingCheckpoints(folder) as checkpoints:
        assert restore(checkpoints) is None
    assert names(folder) == ["1.damaged", "2.damaged", "3.damaged", "3.damaged-2"]
    assert "no undamaged step is left; the run begins again" in capfd.readouterr().err


def test_a_step_that_was_asked_for_by_number_is_not_replaced_by_another(folder):
    hurt(folder / "steps" / "3" / "files.json", "removed")
    with TrainingCheckpoints(folder) as checkpoints:
        with pytest.raises(UserError, match=r"steps/3 is damaged: files\.json is missing"):
            checkpoints.restore(abstract(params()), abstract(OPTIMIZER.init(params())), step=3)
        assert checkpoints.restore(abstract(params()), abstract(OPTIMIZER.init(params())), step=2).step == 2


def test_damaged_parameters_are_not_used(folder):
    base = {"norm": {"scale": np.ones(5, np.float32)}}
    manager.save_base(folder, base)
    hurt(next((folder / "steps" / "3" / "optimizer").rglob("manifest.ocdbt")), "truncated")
    assert manager.load_parameters(folder)["head"]["kernel"][0, 0] == -3.0, "who reads parameters does not need the optimizer"
    hurt(folder / "steps" / "3" / "trainable" / "manifest.ocdbt", "flipped")
    with pytest.raises(UserError, match=r"steps/3 is damaged: trainable/manifest.ocdbt has other bytes than were written; renamed"):
        manager.load_parameters(folder)
    (folder / "steps" / "3").rename(folder / "steps" / "3.bad")
    assert manager.load_parameters(folder)["head"]["kernel"][0, 0] == -2.0
    hurt(folder / "base" / "manifest.ocdbt", "truncated")
    with pytest.raises(UserError, match=r"base is damaged: manifest.ocdbt has \d+ bytes instead of \d+; `train` with"):
        manager.load_parameters(folder)


def test_a_damaged_base_is_renamed_and_written_anew(folder, capfd):
    base = {"norm": {"scale": np.ones(5, np.float32)}}
    manager.keep_base(folder, base)
    manager.keep_base(folder, {"norm": {"scale": np.zeros(5, np.float32)}})
    assert manager.load_parameters(folder)["norm"]["scale"].tolist() == [1.0] * 5, "what is whole is kept"
    hurt(folder / "base" / "manifest.ocdbt", "truncated")
    manager.keep_base(folder, base)
    assert manager.load_parameters(folder)["norm"]["scale"].tolist() == [1.0] * 5
    assert (folder / "base.damaged").is_dir()
    assert "base is damaged: manifest.ocdbt has " in capfd.readouterr().err


def test_what_was_cut_off_is_deleted_with_a_line(folder, capfd):
    shutil.copytree(folder / "steps" / "3", folder / "steps" / "4.orbax-checkpoint-tmp")
    (folder / "steps" / "5").mkdir()
    with TrainingCheckpoints(folder):
        pass
    assert names(folder) == ["1", "2", "3"]
    assert capfd.readouterr().err.splitlines()[-2:] == [
        f"{folder}/steps/4.orbax-checkpoint-tmp was not written to its end; deleted",
        f"{folder}/steps/5 was not written to its end; deleted",
    ]


def test_low_rank_adapters_are_loaded_without_the_rest(folder):
    """The adapters of a run, in bfloat16, for a model whose other parameters come from elsewhere."""
    model = {"phi": abstract(params()["phi"]), "other": {"kernel": jax.ShapeDtypeStruct((7,), jnp.float32)}}
    loaded = manager.load_parameters(folder, model, "bfloat16", select="/lora_")
    assert jax.tree.map(lambda x: (x.dtype.name, x.shape), loaded) == {
        "phi": {"lora_a": ("bfloat16", (2, 3)), "lora_b": ("bfloat16", (3, 2))}
    }
    assert float(loaded["phi"]["lora_a"][0, 0]) == 3.0
    with pytest.raises(UserError, match="no parameter with '/adapter_' in its path"):
        manager.load_parameters(folder, select="/adapter_")
    wider = {"phi": {**model["phi"], "lora_a": jax.ShapeDtypeStruct((2, 9), jnp.float32)}}
    with pytest.raises(UserError, match=r"phi/lora_a has shape \[2, 3\], the model expects \[2, 9\]"):
        manager.load_parameters(folder, wider, select="/lora_")
    assert manager.has_adapters(folder)


def test_a_run_goes_on_in_another_dtype(folder):
    with TrainingCheckpoints(folder) as checkpoints:
        restored = checkpoints.restore(abstract(params(), jnp.bfloat16), abstract(OPTIMIZER.init(params()), jnp.bfloat16))
    leaves = jax.tree.leaves((restored.trainable, restored.optimizer))
    assert {leaf.dtype.name for leaf in leaves} == {"bfloat16", "int32"}
    assert float(restored.trainable["phi"]["lora_a"][0, 0]) == 3.0


def test_saving_goes_on_in_the_background(tmp_path, monkeypatch):
    """The step loop has its turn while a save is held up before its end."""
    held, go_on = threading.Event(), threading.Event()

    def seal(folder):
        held.set()
        assert go_on.wait(60)
        sealed(folder)

    sealed = sealed_folder.seal
    monkeypatch.setattr(sealed_folder, "seal", seal)
    with TrainingCheckpoints(tmp_path, save_every=1) as checkpoints:
        assert checkpoints.save(1, params(1), OPTIMIZER.init(params()))
        assert held.wait(60)
        assert not checkpoints.reached_preemption(2)
        assert checkpoints.latest_step() is None
        assert names(tmp_path) == ["1.orbax-checkpoint-tmp"]
        go_on.set()
        checkpoints.wait()
        assert checkpoints.latest_step() == 1


def test_a_write_that_fails_ends_the_run_with_one_line_and_costs_no_whole_step(folder):
    large = {**params(), "large": jnp.asarray(np.random.default_rng(0).normal(size=(300, 300)), jnp.float32)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def steps_until_the_failure_is_seen() -> None:
        checkpoints.save(4, large, OPTIMIZER.init(params()))
        for step in range(5, 5000):
            checkpoints.reached_preemption(step)
            time.sleep(0.01)

    with TrainingCheckpoints(folder, keep=1, save_every=1) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(UserError) as error:
                steps_until_the_failure_is_seen()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = str(error.value)
    assert message == f"{folder}/steps/4 could not be saved: File too large; whole steps: 1, 2, 3; the same command continues"
    with TrainingCheckpoints(folder, keep=1, save_every=1) as checkpoints:
        assert restore(checkpoints).step == 3
        assert checkpoints.save(4, params(4), OPTIMIZER.init(params()))
    assert names(folder) == ["4"]


def test_a_request_to_leave_is_noted_while_the_folder_is_open(tmp_path, capfd):
    before = signal.getsignal(signal.SIGTERM)
    with TrainingCheckpoints(tmp_path) as checkpoints:
        assert not checkpoints.reached_preemption(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert checkpoints.reached_preemption(2)
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().err.count("SIGTERM: ") == 1


def test_a_run_goes_on_on_another_mesh(tmp_path):
    """Saved on 2 x 4 devices, read on 8 x 1 and on one device, with the optimizer's moments sharded like their parameters."""
    script = f"""
        import sys
        sys.path.insert(0, {str(REPOSITORY)!r})
        import jax, jax.numpy as jnp, numpy as np, optax
        from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
        from segearth_r2_jax.checkpoints.manager import load_parameters
        from segearth_r2_jax.checkpoints.training_checkpoints import TrainingCheckpoints

        values = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
        optimizer = optax.adam(1.0)

        def placed(shape, spec):
            devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
            sharding = NamedSharding(Mesh(devices, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2), spec)
            params = {{"kernel": jax.device_put(values, sharding)}}
            return params, jax.tree.map(lambda x: x, optimizer.init(params))

        def wanted(tree):
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)

        params, state = placed((2, 4), P("fsdp", "tensor"))
        with TrainingCheckpoints({str(tmp_path)!r}, save_every=1) as checkpoints:
            checkpoints.save(1, params, state)
        for shape, spec in (((8, 1), P("fsdp")), ((1, 1), P()), ((1, 8), P(None, "tensor"))):
            params, state = wanted(placed(shape, spec))
            with TrainingCheckpoints({str(tmp_path)!r}) as checkpoints:
                restored = checkpoints.restore(params, state)
            for leaf, want in zip(jax.tree.leaves((restored.trainable, restored.optimizer)), jax.tree.leaves((params, state)), strict=True):
                assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim), (leaf.sharding, want.sharding)
            assert np.array_equal(np.asarray(restored.trainable["kernel"]), values)
            assert np.array_equal(np.asarray(load_parameters({str(tmp_path)!r}, params)["kernel"]), values)
        print("read")
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "read"
