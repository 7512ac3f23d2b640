"""`slurm_gpu.sbatch`, run by bash with an srun of the test: what is started, where JAX finds itself, what becomes of the exit status."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launched import LAUNCH, Programs, check_devices, load, one_line, run_of

from segearth_r2_jax.errors import PREEMPTED

SBATCH = LAUNCH / "slurm_gpu.sbatch"
PLACES = {"RUN": "/shared/my run", "SHARDS": "/shared/shards", "START": "/shared/start"}
JOB = {"SLURM_JOB_ID": "71", "http_proxy": "http://proxy:3128"}
# Starts its command as each task of a step: two nodes with as many tasks each as the file asks for, or what the test says.
SRUN = """
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
nodes, per_node = json.loads(os.environ.get("TASKS", "[2, 8]"))
tasks = []
for number in range(nodes * per_node):
    step = {"SLURM_STEP_NODELIST": os.environ.get("NODES", "gpu[01-02]"), "SLURM_NTASKS": str(nodes * per_node)}
    step |= {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number % per_node)}
    step |= {"SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{nodes})", "SLURM_GPUS_ON_NODE": "8"}
    tasks.append(subprocess.Popen(command, env=os.environ | step, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
for task in tasks:
    for file, text in zip((sys.stdout, sys.stderr), task.communicate()):
        file.write(text)
sys.exit(max(task.returncode for task in tasks))
"""


def directives() -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SBATCH.read_text(), re.MULTILINE)
    return dict(found)


@pytest.fixture
def programs(tmp_path) -> Programs:
    programs = Programs(tmp_path / "bin")
    programs.add("srun", SRUN)
    programs.add("scontrol")
    return programs


def sbatch(programs: Programs, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What SLURM does with the file: runs a copy of it, in the folder of the submission."""
    return programs.run(["bash", str(SBATCH)], cwd="/", SLURM_SUBMIT_DIR=str(folder), **environment)


@pytest.fixture
def python(tmp_path) -> Programs:
    """A Python of the virtual environment that only writes down how it is called."""
    programs = Programs(tmp_path / ".venv" / "bin")
    programs.add("python")
    return programs


def test_every_gpu_has_a_process_that_knows_its_place(programs, python, tmp_path):
    result = sbatch(programs, tmp_path, **JOB, **PLACES)
    assert result.returncode == 0, result.stderr
    asked = directives()
    gpus = int(asked["nodes"]) * int(asked["gpus-per-node"])
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    calls = python.calls("python")
    assert len(calls) == gpus
    runtime = load("runtime")
    for call in calls:
        assert runtime.detect(call.environment, has_tpu=False) == "slurm"
        runtime.check_tasks(call.environment)
        assert call.environment["JAX_PLATFORMS"] == "cuda,cpu"
        assert call.environment["JAX_COMPILATION_CACHE_DIR"] == "/shared/my run/compiled"
        assert not [name for name in call.environment if name.lower().endswith("_proxy")]
        assert call.arguments == calls[0].arguments
        assert call.arguments[:5] == ["launch/runtime.py", "train", "--config", "configs/segearth_r2_lasers.py", "--workdir"]
    assert sorted(int(call.environment["SLURM_PROCID"]) for call in calls) == list(range(gpus))
    run = run_of(calls[0].arguments[1:])
    assert (run.data.shards, run.initial_checkpoint, run.tokenizer) == ("/shared/shards", "/shared/start", "/shared/start")
    check_devices(run, gpus)


def test_the_step_lets_every_task_see_all_gpus_and_save_before_it_ends(programs, python, tmp_path):
    sbatch(programs, tmp_path, **JOB, **PLACES)
    (call,) = programs.calls("srun")
    assert {"--gpu-bind=none", "--kill-on-bad-exit=0"} <= set(call.arguments)
    name, _, seconds = directives()["signal"].partition("@")
    # Without "B:" the signal goes to the tasks, not to the shell of the file.
    assert name == "TERM"
    assert int(seconds) >= 120
    assert "requeue" in directives()


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [
        (0, "0", False),
        (2, "0", False),
        (PREEMPTED, "0", True),
        (PREEMPTED, "500", True),
        (1, "3", True),
        (139, "3", True),
        (1, "20", False),
    ],
)
def test_what_is_queued_again(programs, python, tmp_path, status, restarts, requeued):
    python.add("python", f"sys.exit({status})")
    result = sbatch(programs, tmp_path, **JOB, **PLACES, SLURM_RESTART_COUNT=restarts, TASKS="[1, 2]")
    assert result.returncode == status
    assert [call.arguments for call in programs.calls("scontrol")] == [["requeue", "71"]] * requeued


def test_what_is_missing_is_one_line(programs, python, tmp_path):
    assert one_line(sbatch(programs, tmp_path, **JOB, RUN="/shared/run")).endswith("error: set SHARDS START in the environment")
    assert programs.calls("srun") == []


def test_one_task_on_a_node_of_eight_gpus_is_refused(programs, tmp_path):
    """By runtime.py itself: someone changes --ntasks-per-node and seven GPUs would stand idle."""
    Programs(tmp_path / "python").add("python", f"sys.exit(subprocess.call([{sys.executable!r}, *sys.argv[1:]]))")
    (tmp_path / "launch").symlink_to(LAUNCH)
    result = sbatch(programs, tmp_path, **JOB, **PLACES, TASKS="[2, 1]", PYTHON=str(tmp_path / "python" / "python"))
    assert result.returncode == 2
    assert set(result.stderr.splitlines()) == {
        "runtime.py: error: 1 tasks on a node with 8 GPUs: a task uses one GPU; start it with --ntasks-per-node=8, or say with "
        "JAX_LOCAL_DEVICE_IDS=0,1,... which GPUs a task has"
    }
    assert programs.calls("scontrol") == []


def free_job() -> str:
    """A job whose number gives JAX a port for its coordinator that nobody listens on."""
    for job in range(1, 4096):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", job % 4096 + 61440))
            return str(job)
    raise AssertionError("no free port")


def test_the_processes_of_a_step_really_join(programs, tmp_path):
    """Two of them, on this machine's CPU: JAX reads its place from SLURM's variables."""
    program = (
        f"import importlib.util, json, os; os.environ['JAX_PLATFORMS'] = 'cpu'; "
        f"spec = importlib.util.spec_from_file_location('runtime', {str(LAUNCH / 'runtime.py')!r}); "
        "runtime = importlib.util.module_from_spec(spec); spec.loader.exec_module(runtime); "
        "runtime.initialize(runtime.detect(os.environ, False), os.environ); import jax; "
        "print(json.dumps([jax.process_index(), jax.process_count(), jax.device_count()]), flush=True)"
    )
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -c {shlex.quote(program)}\n")
    script.chmod(0o755)
    settings = PLACES | {"SLURM_JOB_ID": free_job(), "TASKS": "[1, 2]", "NODES": "localhost", "PYTHON": str(script), "RUN": str(tmp_path)}
    result = sbatch(programs, tmp_path, TPU_SKIP_MDS_QUERY="1", **settings)
    assert result.returncode == 0, result.stderr
    assert sorted(json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")) == [[0, 2, 2], [1, 2, 2]]
