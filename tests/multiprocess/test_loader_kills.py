"""Real processes that are killed (SIGKILL) and go on as more or fewer: every record comes exactly once per epoch.

What counts is what a training run would keep: the steps up to the last one that all processes had reached, whose state a checkpoint
holds. Steps after it are lost with the weights they made, and their records come again.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from shards_example import make_record, write_shards

REPOSITORY = Path(__file__).resolve().parents[2]
TOKENIZER = REPOSITORY / "segearth_r2_jax" / "inputs" / "tiny_tokenizer.json"
BATCH = 8


class Run:
    """A run that survives its processes: the steps that count, and the state after the last of them."""

    def __init__(self, folder: Path, shards: str, *, epochs: int, buckets: list[int]):
        self.steps: dict[int, list[int]] = {}  # Position after the step -> records, in the order of the stream.
        self.state: dict | None = None
        self._folder = folder
        folder.mkdir()
        self._job = {"shards": shards, "tokenizer": str(TOKENIZER), "epochs": epochs, "buckets": buckets}
        self._phase = 0

    def go_on(self, count: int, workers: int, steps: int | None) -> None:
        """Starts `count` processes where the run stands. They are killed once all have made `steps` steps; None lets them end."""
        self._phase += 1
        log = self._folder / f"phase{self._phase}"
        log.mkdir()
        pause = 0.0 if steps is None else 0.02
        job = {**self._job, "log": str(log), "count": count, "workers": workers, "start": self.state, "pause": pause}
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
        processes = [
            subprocess.Popen(
                [sys.executable, Path(__file__).with_name("loader_process.py"), json.dumps({**job, "index": index})],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(count)
        ]
        try:
            if steps is None:
                for process in processes:
                    _, errors = process.communicate(timeout=120)
                    assert process.returncode == 0, errors
            else:
                start = 0 if self.state is None else self.state["position"]
                wanted = [log / f"{start + steps * BATCH}-{index}.json" for index in range(count)]
                while not all(path.exists() for path in wanted):
                    assert all(process.poll() is None for process in processes), "a process ended before it was killed"
                    time.sleep(0.01)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.communicate()
        self._keep(log, count)

    def _keep(self, log: Path, count: int) -> None:
        """Adds the steps that all processes have reached."""
        position = 0 if self.state is None else self.state["position"]
        while True:
            position += BATCH
            notes = [log / f"{position}-{index}.json" for index in range(count)]
            if not all(path.exists() for path in notes):
                return
            shares = [json.loads(path.read_text()) for path in notes]
            assert len({json.dumps(share["state"]) for share in shares}) == 1
            assert len({share["tokens"] for share in shares}) == 1
            self.state = shares[0]["state"]
            self.steps[position] = [record for share in shares for record in share["records"]]

    @property
    def records(self) -> list[int]:
        return [record for position in sorted(self.steps) for record in self.steps[position]]


def test_two_processes_then_one_then_four_over_one_epoch(tmp_path):
    shards = write_shards(tmp_path / "shards", [make_record(number) for number in range(240)], 3)
    run = Run(tmp_path / "killed", str(shards), epochs=1, buckets=[512])
    run.go_on(2, workers=1, steps=7)
    killed_at = run.state["position"]
    assert 7 * BATCH <= killed_at < 240
    run.go_on(1, workers=2, steps=6)
    assert killed_at + 6 * BATCH <= run.state["position"] < 240
    run.go_on(4, workers=0, steps=None)
    assert run.state["position"] == 240
    assert sorted(run.records) == list(range(240))


@pytest.mark.slow
@pytest.mark.parametrize("buckets", [[512], [300, 512]])
def test_three_epochs_of_a_mixture_with_kills_at_random(tmp_path, buckets):
    """1, 2 and 4 processes with 0, 1 and 2 workers each, killed after a random number of steps; the same order as without a kill."""
    long = write_shards(tmp_path / "long", [make_record(number, words=number % 2 * 50 + 1) for number in range(160)], 3)
    short = write_shards(tmp_path / "short", [make_record(number) for number in range(80)], 2)
    shards = f"{long},{short}"
    whole = Run(tmp_path / "whole", shards, epochs=3, buckets=buckets)
    whole.go_on(1, workers=0, steps=None)
    total = whole.state["position"]

    chance = random.Random(4)
    plans = [(count, workers) for count in (1, 2, 4) for workers in (0, 1, 2)]
    chance.shuffle(plans)
    run = Run(tmp_path / "killed", shards, epochs=3, buckets=buckets)
    for count, workers in plans:
        run.go_on(count, workers, steps=chance.randint(1, 6))
    run.go_on(2, workers=1, steps=None)
    assert run.records == whole.records
    assert len(run.records) == total == 720
    assert set(Counter(run.records).values()) == {3}
    if buckets == [512]:
        assert [sorted(run.records[start : start + 240]) for start in (0, 240, 480)] == [list(range(240))] * 3


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker processes in /proc, which is Linux's")
def test_worker_processes_end_with_the_process_that_was_killed(tmp_path):
    shards = write_shards(tmp_path / "shards", [make_record(number) for number in range(40)])
    (tmp_path / "log").mkdir()
    job = {
        **{"shards": str(shards), "tokenizer": str(TOKENIZER), "log": str(tmp_path / "log"), "index": 0, "count": 1, "workers": 2},
        **{"start": None, "buckets": [512], "epochs": 1000, "pause": 0.01},
    }
    command = [sys.executable, Path(__file__).with_name("loader_process.py"), json.dumps(job)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.DEVNULL)
    try:
        while not any((tmp_path / "log").glob("*.json")):
            assert process.poll() is None
            time.sleep(0.02)
        children = _children(process.pid)
        assert len(children) >= 2
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.05)
    assert [child for child in children if Path(f"/proc/{child}").exists()] == []


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
            except OSError:
                continue
            if int(status.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found
