"""Runs one `segearth-r2` command as several processes of this machine: `python launch/local_processes.py -n 4 train --config FILE ...`.

For one process per GPU (`--gpus`: process i sees GPU i), and to try on a CPU what a cluster will do (`--cpu-devices 2` gives each
process two simulated devices). Every line of output begins with the number of its process. The first process that fails ends the
others; its exit status is the command's (75: preempted, the same command continues). SIGTERM and Ctrl-C are passed on to all.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

RUNTIME = Path(__file__).with_name("runtime.py")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment_of(number: int, options: argparse.Namespace, port: int) -> dict[str, str]:
    """The environment of process `number`."""
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(number),
        "PYTHONUNBUFFERED": "1",
    }
    if options.gpus:
        environment |= {"CUDA_VISIBLE_DEVICES": str(number), "JAX_PLATFORMS": "cuda"}
    else:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(options.cpu_devices), "TPU_SKIP_MDS_QUERY": "1"}
    return environment


def start(options: argparse.Namespace) -> list[subprocess.Popen[str]]:
    """All processes, their output going to this one's, line by line."""
    port = free_port()
    processes = []
    for number in range(options.processes):
        process = subprocess.Popen(
            [sys.executable, str(RUNTIME), *options.command],
            env=environment_of(number, options, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        threading.Thread(target=_pass_on, args=(number, process), daemon=True).start()
        processes.append(process)
    return processes


def wait(processes: list[subprocess.Popen[str]], grace: float) -> int:
    """The exit status: 0 if all ended with it, otherwise that of the first that did not; the others are killed `grace` seconds later."""
    running = list(processes)
    while running:
        time.sleep(0.05)
        ended = [process for process in running if process.poll() is not None]
        running = [process for process in running if process.poll() is None]
        if failed := [process for process in ended if process.returncode]:
            _end(running, grace)
            return failed[0].returncode if failed[0].returncode > 0 else 128 - failed[0].returncode
    return 0


def _end(processes: list[subprocess.Popen[str]], grace: float) -> None:
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pass_on(number: int, process: subprocess.Popen[str]) -> None:
    for line in process.stdout:
        print(f"[{number}] {line}", end="", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python launch/local_processes.py", description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--processes", type=int, required=True, metavar="N", help="how many")
    parser.add_argument("--gpus", action="store_true", help="process i uses GPU i")
    parser.add_argument("--cpu-devices", type=int, default=1, metavar="N", help="simulated devices of each process on a CPU (default: 1)")
    parser.add_argument("--grace", type=float, default=20, metavar="SECONDS", help="how long the others live once one has failed (20)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="VERB ...", help="what segearth-r2 is to do")
    options = parser.parse_args(arguments)
    if options.processes < 1 or options.cpu_devices < 1 or not options.command:
        parser.error("expected at least one process, one device and a verb")
    processes = start(options)

    def forward(number: int, _: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    return wait(processes, options.grace)


if __name__ == "__main__":
    sys.exit(main())
