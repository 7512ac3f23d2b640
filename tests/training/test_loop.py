"""Whole runs of `segearth-r2 train`, in processes of their own."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from micro_run import micro_run
from PIL import Image

from segearth_r2_jax.cli.main import main
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.training.wandb_log import WandbLog

REPOSITORY = Path(__file__).resolve().parents[2]

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from micro_run import micro_run

def get_config():
    return micro_run({shards!r}).to_config_dict()
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    path = tmp_path_factory.mktemp("config") / "micro.py"
    path.write_text(CONFIG.format(tests=str(REPOSITORY / "tests"), shards=str(shards)))
    return path


@pytest.fixture(scope="module")
def start(config_file: Path, tmp_path_factory: pytest.TempPathFactory):
    """Starts `train --config .. --workdir FOLDER OVERRIDES..`; the processes share what they compile."""
    compiled = tmp_path_factory.mktemp("compiled")
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(workdir: Path, *overrides: str, **variables: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "segearth_r2_jax", "train", "--config", str(config_file), "--workdir", str(workdir), *overrides]
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


@pytest.fixture(scope="module")
def whole_run(start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    process = start(workdir)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return workdir, output


# What a step's wall time decides.
TIMINGS = {"samples_per_second", "tokens_per_second", "data_wait", "mfu", "device_memory_gib"}


def entries(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> list[dict[str, float]]:
    """The log without what differs from run to run."""
    return [{name: value for name, value in entry.items() if name not in TIMINGS} for entry in entries(workdir)]


def test_a_run_leaves_checkpoints_logs_and_pictures(whole_run):
    workdir, output = whole_run
    assert [entry["step"] for entry in losses(workdir)] == list(range(1, 13))
    first, second = entries(workdir)[:2]
    assert first.keys() >= {"loss", "loss_llm", "loss_bce", "loss_dice", "loss_attention", "learning_rate", "grad_norm"}
    parts = [value for name, value in first.items() if name.startswith("grad_norm/")]
    assert len(parts) == 7
    assert first["grad_norm"] == pytest.approx(math.hypot(*parts), rel=1e-5)
    # The first step waits for the compiler; words and image tokens of two rows of at most 256.
    assert "samples_per_second" not in first
    assert 2 * 16 < second["tokens_per_second"] / second["samples_per_second"] * 2 <= 2 * 256
    assert 0 <= second["data_wait"] <= 1
    assert "step 12/12  loss " in output
    assert {path.name for path in (workdir / "steps").iterdir()} == {"9", "12"}
    pictures = sorted(path.name for path in (workdir / "samples").iterdir())
    assert pictures == ["step_000006.png", "step_000012.png"]
    assert np.asarray(Image.open(workdir / "samples" / pictures[0])).shape[1] == 3 * 64
    assert list((workdir / "tensorboard").iterdir())
    run = json.loads((workdir / "run.json").read_text())
    assert run["config"] == json.loads(json.dumps(micro_run(run["config"]["data"]["shards"]).to_dict()))
    assert run["versions"].keys() >= {"jax", "flax", "optax"}
    assert (run["mesh"], run["processes"]) == ({"data": 1, "fsdp": 1, "tensor": 1}, 1)
    assert run["model_flop_utilisation"]["flops_per_step"]["256"] > 1e8
    assert "mfu = " in output
    assert (workdir / "tokenizer.json").is_file()


def test_a_finished_run_is_not_done_again(whole_run, start):
    workdir, _ = whole_run
    before = (workdir / "log.jsonl").read_bytes()
    process = start(workdir)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "continuing after step 12" in output
    assert (workdir / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("kills", [(1, 7), pytest.param(tuple(range(1, 13)), marks=pytest.mark.slow)], ids=["twice", "at every step"])
def test_killed_runs_continue_with_the_identical_losses(whole_run, start, tmp_path, kills):
    """SIGKILL once the log reaches each of the steps `kills`, and the same command again."""
    for step in kills:
        process = start(tmp_path)
        log = tmp_path / "log.jsonl"
        deadline = time.monotonic() + 300
        while process.poll() is None and not (log.exists() and len(log.read_bytes().splitlines()) >= step):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # A file that is there under its final name is whole: what the kill cut off is under another.
        assert json.loads((tmp_path / "config.json").read_text())["template"] == "train_phi_v0"
    process = start(tmp_path)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert losses(tmp_path) == losses(whole_run[0])


@pytest.fixture(scope="module")
def watched_run(start, tmp_path_factory):
    """The folder, the output and the calls of wandb of a run with everything that watches it, in two parts."""
    workdir, calls = tmp_path_factory.mktemp("watched"), tmp_path_factory.mktemp("wandb") / "calls.jsonl"
    overrides = ["--config.validation.split=train", "--config.validation.every=3", "--config.validation.batches=2"]
    overrides += ["--config.validation.pictures=1", "--config.keep_best=1", "--config.wandb_project=mine", "--profile=2"]
    variables = {"WANDB_CALLS": str(calls), "PYTHONPATH": str(Path(__file__).parent / "fake_wandb")}
    process = start(workdir, *overrides, **variables)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    start(workdir, *overrides, **variables).communicate(timeout=600)
    return workdir, output, [json.loads(line) for line in calls.read_text().splitlines()]


def test_validation_does_not_change_the_training(watched_run, whole_run):
    trained = [{name: value for name, value in entry.items() if not name.startswith("validation/")} for entry in losses(watched_run[0])]
    assert trained == losses(whole_run[0])


def test_validation_is_logged_drawn_and_decides_what_is_kept(watched_run):
    workdir, output, _ = watched_run
    judged = {entry["step"]: entry["validation/gIoU"] for entry in entries(workdir) if "validation/gIoU" in entry}
    assert list(judged) == [3, 6, 9, 12]
    assert output.count("  validation: loss ") == 4
    assert {path.name for path in (workdir / "samples").glob("validation_*")} == {f"validation_1_{step:06d}.png" for step in judged}
    best = max(judged, key=lambda step: (judged[step], step))
    assert {int(path.name) for path in (workdir / "steps").iterdir()} == {9, 12, best}


def test_wandb_gets_what_the_log_gets_under_one_id(watched_run):
    workdir, _, calls = watched_run
    first, again = [call for call in calls if call["call"] == "init"]
    assert first == again
    assert (first["project"], first["resume"], first["name"]) == ("mine", "allow", workdir.name)
    assert json.loads((workdir / "wandb.json").read_text())["id"] == first["id"]
    logged = [call for call in calls if call["call"] == "log"]
    assert [{"step": call["step"], **call["values"]} for call in logged if "loss" in call["values"]] == entries(workdir)
    assert [call["step"] for call in logged if "validation_1" in call["values"]] == [3, 6, 9, 12]
    assert [call["call"] for call in calls].count("finish") == 2


def test_a_profile_is_written_and_its_place_is_told(watched_run):
    workdir, output, _ = watched_run
    (trace,) = (workdir / "profile").rglob("perfetto_trace.json.gz")
    assert f"open {trace} at https://ui.perfetto.dev" in output
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert "train" in names
    assert list((workdir / "profile").rglob("*.xplane.pb"))


def test_a_missing_or_closed_wandb_is_one_line(config_file, tmp_path, capsys, monkeypatch):
    arguments = ["train", "--config", str(config_file), "--workdir", str(tmp_path / "work")]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    with pytest.raises(SystemExit) as exit:
        main([*arguments, "--config.wandb_project=mine"])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install wandb" in line
    assert not (tmp_path / "work").exists()
    monkeypatch.undo()
    monkeypatch.syspath_prepend(Path(__file__).parent / "fake_wandb")
    with pytest.raises(UserError, match=r"wandb says: api_key not configured \(no-tty\)"):
        WandbLog("closed", epath.Path(tmp_path), tmp_path, {})
    assert not (tmp_path / "wandb.json").exists()


def test_a_run_whose_loss_is_lost_ends_and_names_the_records(start, tmp_path):
    process = start(tmp_path, "--config.optimizer.learning_rate=1e30", "--config.optimizer.warmup_ratio=0.0")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 2, output
    (line,) = [line for line in output.splitlines() if "error" in line]
    (file,) = tmp_path.glob("not_finite_step_*_process_0.json")
    assert str(file) in line
    content = json.loads(file.read_text())
    assert line.startswith(f"segearth-r2: error: step {content['step']}: loss ")
    assert len(content["records"]) == 2
    # What was saved before is from a whole step; the log ends before the lost one.
    assert losses(tmp_path)[-1]["step"] == content["step"] - 1
    assert all(int(path.name) < content["step"] for path in (tmp_path / "steps").iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.num_stepz=3", "num_stepz"),
        ("--config.num_steps=many", "num_steps"),
        ("--config.data.shards=/nowhere", "/nowhere"),
        ("--config.tokenizer=/nowhere/tokenizer.json", "/nowhere/tokenizer.json"),
        ("--config.trainable=('nothing_like_it',)", "nothing_like_it"),
        ("--config.mesh.tensor=7", "does not fit"),
        ("--config.model.phi.remat=maybe", "remat"),
        ("--config.step.dtype=float99", "config.step.dtype is 'float99'; expected one of float32, bfloat16"),
        ("--config.checkpoint_every=0", "config.checkpoint_every is 0; expected at least 1"),
    ],
)
def test_a_wrong_override_is_one_line(config_file, tmp_path, capsys, override, message):
    with pytest.raises(SystemExit) as exit:
        main(["train", "--config", str(config_file), "--workdir", str(tmp_path / "work"), override])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("segearth-r2: error: ")
    assert message in line
