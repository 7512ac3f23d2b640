"""A run of several processes is the run of one: the same losses, and checkpoints that either reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from micro_run import micro_run
from segearth_r2_jax.training.run_config import ValidationConfig

def get_config():
    return micro_run({shards!r}, validation=ValidationConfig(every=6, split="train", batches=2)).to_config_dict()
"""


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, shards: Path):
    """Trains in a folder with N processes, each with its part of the data; what is compiled is kept."""
    folder = tmp_path_factory.mktemp("processes")
    config = folder / "micro.py"
    config.write_text(CONFIG.format(tests=str(REPOSITORY / "tests"), shards=str(shards)))
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(REPOSITORY),
    }

    def train(workdir: Path, processes: int, *overrides: str, leave_at: int | None = None) -> str:
        """leave_at: SIGTERM comes once this step is in the log."""
        command = [sys.executable, str(REPOSITORY / "launch" / "local_processes.py"), "-n", str(processes)]
        command += ["train", "--config", str(config), "--workdir", str(workdir), *overrides]
        with subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            if leave_at is not None:
                while process.poll() is None and not ((workdir / "log.jsonl").exists() and len(entries(workdir)) >= leave_at):
                    time.sleep(0.005)
                process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=900)
        assert process.returncode == (0 if leave_at is None else 75), output
        return output

    return train


def entries(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]


def losses(workdir: Path) -> list[float]:
    return [entry["loss"] for entry in entries(workdir)]


def validations(workdir: Path) -> list[dict[str, float]]:
    judged = ({name: value for name, value in entry.items() if name.startswith("validation/")} for entry in entries(workdir))
    return [metrics for metrics in judged if metrics]


def test_two_processes_train_as_one_and_one_reads_what_they_saved(train, tmp_path):
    train(tmp_path / "one", 1)
    output = train(tmp_path / "two", 2)
    assert next(line for line in output.splitlines() if "step 12/12" in line).startswith("[0] ")
    assert "[1] step" not in output
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-5)
    alone, together = validations(tmp_path / "one"), validations(tmp_path / "two")
    assert len(alone) == len(together) == 2
    assert all(a == pytest.approx(b, rel=1e-5) for a, b in zip(alone, together, strict=True))
    # One process goes on from what two have saved, and finds the run finished.
    assert "continuing after step 12" in train(tmp_path / "two", 1)


# What four processes need: a batch that they can divide.
FOUR_ROWS = "--config.data.batch_size=4"


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    train(workdir, 1, FOUR_ROWS)
    return losses(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(4, 1, 1), (1, 4, 1), (1, 1, 4), (2, 1, 2), (1, 2, 2)])
def test_four_processes_train_as_one_on_meshes_that_span_them(train, alone, tmp_path, data, fsdp, tensor):
    """Processes that share the rows of a tensor axis read the same part of the data."""
    mesh = [f"--config.mesh.data={data}", f"--config.mesh.fsdp={fsdp}", f"--config.mesh.tensor={tensor}"]
    train(tmp_path, 4, FOUR_ROWS, *mesh)
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (4, 2)])
def test_a_run_goes_on_with_another_number_of_processes(train, alone, tmp_path, before, after):
    """Saved by one number of processes in the middle of the run, continued by another, on another mesh."""
    train(tmp_path, before, FOUR_ROWS, leave_at=5)
    saved = max(int(path.name) for path in (tmp_path / "steps").iterdir())
    assert 5 <= saved < 12
    assert f"continuing after step {saved}" in train(tmp_path, after, FOUR_ROWS, "--config.mesh.data=1", f"--config.mesh.fsdp={after}")
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-4)
