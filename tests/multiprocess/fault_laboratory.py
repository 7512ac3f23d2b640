"""A small training run that can be killed, told to leave, starved of disk space and damaged, and the run that nothing disturbed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS, EVERY = 24, 3

# Some parameters are frozen, so that there is a base/ to damage.
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from micro_run import micro_run

def get_config():
    changes = {{"num_steps": {steps}, "checkpoint_every": {every}, "keep_checkpoints": 3, "picture_every": 1000}}
    return micro_run({shards!r}, trainable=("phi", "mask_decoder", "pixel_decoder", "projector"), **changes).to_config_dict()
"""


class Ended(NamedTuple):
    """How a start of the run ended. continued: the step it went on from; reached: the last step in the log at its end."""

    status: int
    output: str
    continued: int
    reached: int


class Start:
    """A start of the run that is going on."""

    def __init__(self, workdir: Path, process: subprocess.Popen[str], processes: int):
        self.workdir, self.process, self._processes = workdir, process, processes
        self._lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self._lines.extend(process.stdout), daemon=True)
        self._reader.start()

    def until(self, reached: Callable[[], bool], seconds: float = 600) -> bool:
        """Waits; whether it came to pass before the process ended."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if reached():
                return True
            assert time.monotonic() < deadline, "".join(self._lines)
            time.sleep(0.002)
        return False

    def until_step(self, step: int) -> bool:
        return self.until(lambda: last_step(self.workdir) >= step)

    def until_saving(self) -> bool:
        """Until a save is going on. What was there before has been deleted when the run tells its size."""
        return self.until_announced() and self.until(lambda: any((self.workdir / "steps").glob("*.orbax-checkpoint-tmp")))

    def until_announced(self) -> bool:
        """Until the run has told its size; then it compiles its first step."""
        return self.until(lambda: "parameters trained" in "".join(self._lines))

    def ranks(self) -> list[int]:
        """The process ids, by the number of the process."""
        if self._processes == 1:
            return [self.process.pid]
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = {}
        for child in children:
            environment = Path(f"/proc/{child}/environ").read_text().split("\0")
            found[next(int(entry.partition("=")[2]) for entry in environment if entry.startswith("JAX_PROCESS_ID="))] = int(child)
        return [found[rank] for rank in sorted(found)]

    def send(self, number: signal.Signals, ranks: list[int] | None = None) -> None:
        """To the processes `ranks`, None: to all."""
        for rank, pid in enumerate(self.ranks()):
            if ranks is None or rank in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def end(self) -> Ended:
        status = self.process.wait(timeout=900)
        self._reader.join()
        output = "".join(self._lines)
        continued = re.search(r"continuing after step (\d+)", output)
        return Ended(status, output, int(continued[1]) if continued else 0, last_step(self.workdir))


class Laboratory:
    """Runs of `segearth-r2 train` in folders of their own, all of one configuration; what is compiled is kept."""

    def __init__(self, folder: Path, shards: Path, *, steps: int = STEPS, every: int = EVERY):
        self.folder, self.steps, self.every = folder, steps, every
        self._config = folder / "faults.py"
        text = CONFIG.format(tests=str(REPOSITORY / "tests"), shards=str(shards), steps=steps, every=every)
        self._config.write_text(text)
        self._environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, workdir: Path, processes: int = 1, *, largest_file: int | None = None) -> Start:
        """largest_file: bytes that a file may have (RLIMIT_FSIZE)."""
        command = [sys.executable, "-m", "segearth_r2_jax"]
        if processes > 1:
            command = [sys.executable, str(REPOSITORY / "launch" / "local_processes.py"), "-n", str(processes)]
        command += ["train", "--config", str(self._config), "--workdir", str(workdir)]

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=None if largest_file is None else limit,
        )
        return Start(workdir, process, processes)

    def run(self, workdir: Path, processes: int = 1) -> Ended:
        return self.start(workdir, processes).end()

    @functools.cache  # noqa: B019 - as many entries as numbers of processes
    def undisturbed(self, processes: int = 1) -> list[dict[str, float]]:
        """What a run that nothing disturbs has in its log."""
        workdir = self.folder / f"undisturbed_{processes}"
        ended = self.run(workdir, processes)
        assert ended.status == 0, ended.output
        entries = numbers(workdir)
        assert [entry["step"] for entry in entries] == list(range(1, self.steps + 1))
        # No two batches give the same loss: a batch that is repeated or left out is seen in the losses.
        assert len({entry["loss"] for entry in entries}) == self.steps
        return entries

    @functools.cached_property
    def half_done(self) -> Path:
        """A work directory of which three steps are saved; its run was told to leave in its middle."""
        workdir = self.folder / "half_done"
        start = self.start(workdir)
        assert start.until_step(self.steps // 2)
        start.send(signal.SIGTERM)
        assert start.end().status == 75
        return workdir

    def half_done_copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.half_done, self.folder / name))

    def saved_steps(self, workdir: Path) -> list[int]:
        """Newest first."""
        return sorted((int(path.name) for path in (workdir / "steps").iterdir() if path.name.isdigit()), reverse=True)

    def finish(self, workdir: Path, processes: int = 1) -> Ended:
        """Runs to the end and requires the numbers of the run that nothing disturbed, to the last bit, and the same place in the data."""
        ended = self.run(workdir, processes)
        assert ended.status == 0, ended.output
        assert numbers(workdir) == self.undisturbed(processes)
        assert position(workdir, self.steps) == position(self.folder / f"undisturbed_{processes}", self.steps)
        return ended


def numbers(workdir: Path) -> list[dict[str, float]]:
    """The numbers in the log that do not depend on the clock."""
    kept = ("step", "loss", "grad_norm", "learning_rate", "tokens")
    lines = (json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name.startswith(kept) and "per_second" not in name} for line in lines]


def last_step(workdir: Path) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError, KeyError):
        return json.loads((workdir / "log.jsonl").read_bytes().splitlines()[-1])["step"]
    return 0


def position(workdir: Path, step: int) -> dict[str, object]:
    """Where in the data a saved step is."""
    return json.loads((workdir / "steps" / str(step) / "metadata" / "metadata").read_text())["data"]


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def hurt(path: Path, damage: str, chance: random.Random) -> None:
    """damage: removed, truncated, or flipped (one bit)."""
    content = path.read_bytes()
    at = chance.randrange(len(content))
    if damage == "removed":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:at])
    else:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :])


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None] | None]:
    """Mounts a file system of `size` bytes on `folder` and gives what changes its size; None where that is not allowed."""
    folder.mkdir()

    def mount(options: str) -> bool:
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode == 0

    if os.geteuid() != 0 or shutil.which("mount") is None or not mount(f"size={size}"):
        yield None
        return
    try:
        yield lambda new: subprocess.run(["mount", "-o", f"remount,size={new}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
