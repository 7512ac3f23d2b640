"""A run of several processes is the run of one: the same losses, and checkpoints that either reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def train(workdir: Path, processes: int) -> str:
        command = [sys.executable, str(REPOSITORY / "launch" / "local_processes.py"), "-n", str(processes)]
        command += ["train", "--config", str(config), "--workdir", str(workdir)]
        result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return train


def entries(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


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
