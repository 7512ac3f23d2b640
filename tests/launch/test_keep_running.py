"""`keep_running.sh`: what ends a run for good, what starts it again, and how it is asked to leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launched import LAUNCH

# Leaves with the next of the statuses given, and writes down that it ran.
PROGRAM = 'n=$(cat count 2> /dev/null || echo 0); echo $((n + 1)) > count; shift "$n"; exit "$1"'


def run(folder: Path, *statuses: int, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(LAUNCH / "keep_running.sh"), "bash", "-c", PROGRAM, "program", *map(str, statuses)]
    settings = os.environ | {"SEGEARTH_R2_PAUSE": "0"} | environment
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("statuses", "runs", "status"),
    [
        ((0,), 1, 0),
        ((2,), 1, 2),
        ((75, 75, 0), 3, 0),
        ((1, 139, 75, 0), 4, 0),
        ((75, 2), 2, 2),
        ((1, 1, 1, 0), 3, 1),  # given up
        ((1, 1, 75, 1, 1, 0), 6, 0),  # a preemption between crashes: the run had got under way
    ],
)
def test_what_is_started_again(tmp_path, statuses, runs, status):
    result = run(tmp_path, *statuses, SEGEARTH_R2_CRASHES="3")
    assert (int((tmp_path / "count").read_text()), result.returncode) == (runs, status), result.stderr


def test_a_crash_after_a_long_time_is_not_one_in_a_row(tmp_path):
    result = run(tmp_path, 1, 1, 1, 1, 0, SEGEARTH_R2_CRASHES="2", SEGEARTH_R2_CRASH_SECONDS="0")
    assert (int((tmp_path / "count").read_text()), result.returncode) == (5, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_termination_reaches_the_command_which_is_not_started_again(tmp_path, number):
    program = "trap 'echo saved; exit 75' TERM; echo ready; while :; do sleep 0.05; done"
    command = ["bash", str(LAUNCH / "keep_running.sh"), "bash", "-c", program]
    # A shell cannot trap a signal that was ignored when it began, as SIGINT is in what a script starts in the background.
    ctrl_c_works = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", ctrl_c_works, *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            output, errors = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, output, errors) == (75, "saved\n", "")


def test_a_command_is_needed(tmp_path):
    result = subprocess.run(["bash", str(LAUNCH / "keep_running.sh")], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, "keep_running.sh: error: expected a command\n")
