"""Starts `segearth-r2` as one process of a run on many hosts: `python launch/runtime.py train --config FILE --workdir DIR ...`.

Finds out where it is, in this order, joins the processes of the run, and hands its arguments to the command line:

    explicit   JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set (local_processes.py, SkyPilot, a hand-made cluster)
    slurm      a step of a SLURM job with several tasks (SLURM_STEP_NODELIST, SLURM_NTASKS, ...); as many tasks as GPUs on every node
    tpu        a TPU VM or a TPU container of GKE: JAX asks the environment or the metadata server for the other hosts
    local      none of these: one process, all devices of this machine

SEGEARTH_R2_RUNTIME names one of them where the guess is wrong. JAX_COMPILATION_CACHE_DIR (default: ~/.cache/segearth-r2-jax) keeps
compiled programs from one start to the next; an empty value keeps none. An environment that contradicts itself costs one line and exit
status 2.

A process that fails ends at once, and so do those that notice it. Where they do not (a host that is cut off from the network), all end
SEGEARTH_R2_HEARTBEAT_SECONDS (default: 60) after it was last heard of.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, MutableMapping, Sequence

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
RUNTIMES = ("explicit", "slurm", "tpu", "local")
# The exit status of a run that has saved its state (segearth_r2_jax.errors.PREEMPTED).
PREEMPTED = 75
# What collectives and JAX's coordination service say of a process that is gone.
LOST_PEER = re.compile(r"Connection (closed|reset) by peer|Gloo .* failed|heartbeat|Connection refused|Socket closed|UNAVAILABLE")
# Device files of TPU VMs: older generations, and those that are passed through VFIO.
TPU_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")


def detect(environment: Mapping[str, str], has_tpu: bool) -> str:
    """Which of RUNTIMES this is; ValueError with one line if the environment contradicts itself."""
    chosen = environment.get("SEGEARTH_R2_RUNTIME")
    if chosen is not None and chosen not in RUNTIMES:
        raise ValueError(f"SEGEARTH_R2_RUNTIME={chosen}: expected one of {', '.join(RUNTIMES)}")
    given = [name for name in EXPLICIT if environment.get(name)]
    if chosen == "explicit" or (chosen is None and given):
        if missing := [name for name in EXPLICIT if name not in given]:
            raise ValueError(f"{', '.join(missing)} must be set, too: all of {', '.join(EXPLICIT)}, or none")
        return "explicit"
    if chosen is not None:
        return chosen
    if all(environment.get(name) for name in SLURM) and environment["SLURM_NTASKS"] != "1":
        return "slurm"
    if has_tpu and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return "tpu"
    return "local"


def check_tasks(environment: Mapping[str, str]) -> None:
    """ValueError with one line if a step of a SLURM job has not as many tasks as GPUs on each of its nodes.

    JAX gives each task of a SLURM step one GPU, the one with the number of the task on its node: with one task on a node of eight GPUs,
    seven would stand idle, and nothing would say so. JAX_LOCAL_DEVICE_IDS=0,1,... gives a task others.
    """
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    # "8(x2),4": eight tasks on each of two nodes, four on a third.
    tasks = re.findall(r"(?:^|,)(\d+)", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if environment.get("JAX_LOCAL_DEVICE_IDS") or not gpus.isdigit() or environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return
    if wrong := [number for number in tasks if number != gpus]:
        raise ValueError(
            f"{wrong[0]} tasks on a node with {gpus} GPUs: a task uses one GPU; start it with --ntasks-per-node={gpus}, or say with "
            "JAX_LOCAL_DEVICE_IDS=0,1,... which GPUs a task has"
        )


def initialize(runtime: str, environment: MutableMapping[str, str]) -> None:
    """Joins the other processes of the run. Before anything else of JAX, which would claim the devices for this process alone."""
    if runtime != "local" and environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        # With more than one thread, XLA's CPU runtime begins collectives of which none needs another's result in whatever order the threads
        # come to them, on each process another; Gloo, which matches them by their order, then ends the run. A busy machine makes it likely.
        environment.setdefault("PJRT_NPROC", "1")

    import jax

    from segearth_r2_jax.cli.compilation_cache import keep_compiled_programs

    keep_compiled_programs()
    if runtime == "local":
        return
    # On CPUs, programs that run at the same time can each hold what the other waits for in their collectives.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # A SIGTERM to any process becomes known to all of them, so that they save the same step.
    jax.config.update("jax_enable_preemption_service", True)
    heartbeat = int(environment.get("SEGEARTH_R2_HEARTBEAT_SECONDS", "60"))
    if runtime == "explicit":
        address, count, number = (environment[name] for name in EXPLICIT)
        jax.distributed.initialize(address, int(count), int(number), heartbeat_timeout_seconds=heartbeat)
    else:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)


def run(command: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> None:
    """The command as one of several processes. If it fails this process ends at once.

    JAX's own way out waits until all processes want to leave, up to five minutes; those of a run that has failed wait for this one.
    """
    try:
        command(arguments)
        return
    except SystemExit as end:
        if end.code in (None, 0, PREEMPTED):
            raise
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        status = 1
        if LOST_PEER.search(str(error)):
            told = str(error).splitlines()[0]
            print(f"runtime.py: error: another process of this run has ended ({told}); the same command continues", file=sys.stderr)
        else:
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    has_tpu = any(glob.glob(pattern) for pattern in TPU_DEVICES)
    try:
        runtime = detect(os.environ, has_tpu)
        if runtime == "slurm":
            check_tasks(os.environ)
    except ValueError as error:
        print(f"runtime.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    initialize(runtime, os.environ)
    from segearth_r2_jax.cli.main import main as segearth

    if runtime == "local":
        segearth(sys.argv[1:])
    else:
        run(segearth, sys.argv[1:])


if __name__ == "__main__":
    main()
