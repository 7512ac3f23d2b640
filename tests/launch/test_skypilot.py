"""`skypilot.yaml`: its fields, and its run section under bash, as each node of a cluster runs it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from launched import LAUNCH, REPOSITORY, Call, Programs, check_devices, load, run_of

from segearth_r2_jax.errors import PREEMPTED


@pytest.fixture(scope="module")
def task() -> dict:
    return yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())


@pytest.fixture
def run_on(task, tmp_path):
    """Runs the section on a node; gives what it starts."""

    def run_on(rank: int) -> Call:
        folder = tmp_path / str(rank)
        python = Programs(folder / ".venv" / "bin")
        python.add("python")
        nodes = task["num_nodes"]
        addresses = "\n".join(f"10.0.0.{node + 5}" for node in range(nodes))
        settings = {"SKYPILOT_NODE_IPS": addresses, "SKYPILOT_NUM_NODES": str(nodes), "SKYPILOT_NODE_RANK": str(rank), "BUCKET": "b"}
        result = python.run(["bash", "-c", task["run"]], cwd=folder, **settings)
        assert result.returncode == 0, result.stderr
        (call,) = python.calls("python")
        return call

    return run_on


def gpus_per_node(task: dict) -> int:
    return int(task["resources"]["accelerators"].rpartition(":")[2])


def test_the_first_node_leads_and_every_node_knows_its_number(task, run_on):
    runtime = load("runtime")
    for rank in range(task["num_nodes"]):
        environment = run_on(rank).environment
        assert runtime.detect(environment, has_tpu=False) == "explicit"
        address, count, number = (environment[name] for name in runtime.EXPLICIT)
        assert (int(count), int(number)) == (task["num_nodes"], rank)
        assert re.fullmatch(r"10\.0\.0\.5:\d+", address)
        assert environment["JAX_PLATFORMS"] == "cuda,cpu"


def test_the_run_fits_the_gpus_and_is_the_same_on_all_nodes(task, run_on):
    arguments = run_on(0).arguments
    assert arguments == run_on(1).arguments
    assert arguments[0] == "launch/runtime.py"
    run = run_of(arguments[1:])
    assert run.data.shards == "gs://b/shards"
    check_devices(run, task["num_nodes"] * gpus_per_node(task))


def test_python_takes_the_place_of_the_shell(task, tmp_path):
    """A SIGTERM to the process that SkyPilot started is one to Python."""
    python = Programs(tmp_path / ".venv" / "bin")
    python.add("python", "print(os.getpid(), flush=True)")
    settings = {"SKYPILOT_NODE_IPS": "10.0.0.5", "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "BUCKET": "b"}
    with subprocess.Popen(
        ["bash", "-c", task["run"]], cwd=tmp_path, env=settings | {"PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE
    ) as shell:
        assert int(shell.stdout.read()) == shell.pid


def test_what_is_started_again(task):
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [PREEMPTED]
    assert recovery["max_restarts_on_errors"] > 0
    assert task["resources"]["use_spot"] is True


def test_a_bucket_has_to_be_named(task):
    # SkyPilot refuses a task with a variable that is null.
    assert task["envs"] == {"BUCKET": None}


def test_the_setup_installs_this_package_with_what_a_gpu_needs(task, tmp_path):
    programs = Programs(tmp_path / "bin")
    programs.add("uv")
    python = Programs(tmp_path / ".venv" / "bin")
    python.add("python")
    result = programs.run(["bash", "-c", task["setup"]], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (made,) = programs.calls("uv")
    assert Path(made.arguments[-1]) == Path(".venv")
    (installed,) = python.calls("python")
    assert installed.arguments[:3] == ["-m", "pip", "install"]
    extras = re.fullmatch(r"\.\[([a-z,]+)\]", installed.arguments[-1]).group(1).split(",")
    assert set(extras) <= tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    assert task["workdir"] == "."
