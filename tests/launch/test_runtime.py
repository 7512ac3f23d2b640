"""Where a process finds itself, and several processes of one machine as one command."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runtime = load("runtime")
EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}


@pytest.mark.parametrize(
    ("environment", "has_tpu", "expected"),
    [
        ({}, False, "local"),
        ({}, True, "tpu"),
        ({"JAX_PLATFORMS": "cpu"}, True, "local"),
        (SLURM, False, "slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, False, "local"),
        ({"SLURM_JOB_ID": "1"}, False, "local"),  # sbatch without srun: this is not one of several tasks.
        (EXPLICIT | SLURM, True, "explicit"),
        ({"SEGEARTH_R2_RUNTIME": "local"} | EXPLICIT | SLURM, True, "local"),
    ],
)
def test_the_runtime_is_seen_in_the_environment(environment, has_tpu, expected):
    assert runtime.detect(environment, has_tpu) == expected


def test_a_contradiction_is_one_line():
    with pytest.raises(ValueError, match="JAX_PROCESS_ID must be set, too"):
        runtime.detect({name: value for name, value in EXPLICIT.items() if name != "JAX_PROCESS_ID"}, False)
    with pytest.raises(ValueError, match="SEGEARTH_R2_RUNTIME=mpi: expected one of explicit, slurm, tpu, local"):
        runtime.detect({"SEGEARTH_R2_RUNTIME": "mpi"}, False)


def test_a_contradiction_ends_the_command_with_status_2():
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}
    result = subprocess.run([sys.executable, str(LAUNCH / "runtime.py"), "train"], capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "runtime.py: error: JAX_NUM_PROCESSES, JAX_PROCESS_ID must be set, too: all of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, "
        "JAX_PROCESS_ID, or none"
    ]


@pytest.mark.parametrize(
    ("tasks", "gpus", "more", "wrong"),
    [
        ("8(x2)", "8", {}, None),
        ("1(x2)", "8", {}, "1"),
        ("8(x2),4", "8", {}, "4"),
        ("1(x2)", "8", {"JAX_LOCAL_DEVICE_IDS": "0,1,2,3,4,5,6,7"}, None),
        ("1(x2)", "8", {"JAX_PLATFORMS": "cpu"}, None),
        ("16(x2)", "", {}, None),  # Nodes without GPUs.
    ],
)
def test_no_gpu_of_a_slurm_step_stands_idle_unnoticed(tasks, gpus, more, wrong):
    environment = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_GPUS_ON_NODE": gpus} | more
    if wrong is None:
        runtime.check_tasks(environment)
    else:
        with pytest.raises(ValueError, match=f"^{wrong} tasks on a node with 8 GPUs: .* --ntasks-per-node=8"):
            runtime.check_tasks(environment)


def run(tmp_path: Path, program: str, *options: str) -> subprocess.Popen:
    """Starts `local_processes` with `program` in the place of runtime.py."""
    script = tmp_path / "program.py"
    script.write_text(program)
    code = (
        f"import sys; sys.path.insert(0, {str(LAUNCH)!r}); import local_processes, pathlib; "
        f"local_processes.RUNTIME = pathlib.Path({str(script)!r}); sys.exit(local_processes.main(sys.argv[1:]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_each_process_knows_its_number_and_lines_name_their_process(tmp_path):
    names = ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES", "JAX_NUM_CPU_DEVICES")
    program = f"import os, sys; print(*(os.environ[name] for name in {names}), *sys.argv[1:])"
    process = run(tmp_path, program, "-n", "3", "--cpu-devices", "2", "train", "--config", "c.py")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(output.splitlines()) == [f"[{n}] {n} 3 2 train --config c.py" for n in range(3)]


def test_a_failing_process_ends_the_others_and_gives_the_exit_status(tmp_path):
    program = "import os, sys, time\nif os.environ['JAX_PROCESS_ID'] == '1': sys.exit(7)\nprint(os.getpid(), flush=True); time.sleep(600)"
    process = run(tmp_path, program, "-n", "2", "--grace", "0.5", "train")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 7
    pid = int(output.removeprefix("[0] "))
    assert not Path(f"/proc/{pid}").exists()


def test_a_termination_is_passed_on(tmp_path):
    program = (
        "import signal, sys, time\n"
        "def end(*_):\n    print('ending', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(600)"
    )
    process = run(tmp_path, program, "-n", "2", "train")
    assert {process.stdout.readline(), process.stdout.readline()} == {"[0] ready\n", "[1] ready\n"}
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(output.splitlines()) == ["[0] ending", "[1] ending"]


def test_preempted_processes_give_their_status(tmp_path):
    program = (
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('ready', flush=True); time.sleep(600)"
    )
    process = run(tmp_path, program, "-n", "2", "train")
    assert {process.stdout.readline(), process.stdout.readline()} == {"[0] ready\n", "[1] ready\n"}
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_a_verb_is_needed():
    command = [sys.executable, str(LAUNCH / "local_processes.py"), "-n", "2"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 2
    assert "a verb" in result.stderr


@pytest.mark.parametrize(
    ("failure", "status", "line"),
    [
        ("SystemExit(2)", 2, ""),
        ("SystemExit(75)", 75, "left"),
        ("RuntimeError('Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1')", 1, "another process of this run has ended"),
        ("ZeroDivisionError('division')", 1, "ZeroDivisionError: division"),
    ],
)
def test_a_process_that_fails_ends_at_once_and_one_that_was_preempted_takes_the_way_out(failure, status, line):
    """The way out is where JAX waits for the other processes."""
    code = (
        f"import sys; sys.path.insert(0, {str(LAUNCH)!r}); import atexit, runtime\n"
        f"atexit.register(lambda: print('left', file=sys.stderr))\n"
        f"def command(arguments): raise {failure}\n"
        "runtime.run(command, [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert line in done.stderr
    assert ("left" in done.stderr) == (status == 75)
    assert ("Traceback" in done.stderr) == ("ZeroDivision" in failure)
