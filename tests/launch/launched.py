"""What a launch file starts: stand-ins on PATH for the programs that it calls, and the run that its train line describes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from segearth_r2_jax.cli import train
from segearth_r2_jax.training.run_config import RunConfig

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = REPOSITORY / "launch"

# Writes its arguments and its environment down as a line, then goes on with what the test gave it.
_RECORDER = """#!{python}
import json, os, subprocess, sys
with open({record!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], dict(os.environ)]) + "\\n")
{behaviour}
"""


@dataclasses.dataclass(frozen=True)
class Call:
    program: str
    arguments: list[str]
    environment: dict[str, str]


class Programs:
    """A folder of programs that record how they are called."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._record = folder / "calls.jsonl"

    def add(self, name: str, behaviour: str = "") -> Path:
        """A program `name`; `behaviour` is Python that runs after the call is written down."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_RECORDER.format(python=sys.executable, record=str(self._record), behaviour=behaviour))
        path.chmod(0o755)
        return path

    def calls(self, program: str | None = None) -> list[Call]:
        if not self._record.exists():
            return []
        calls = [Call(*json.loads(line)) for line in self._record.read_text().splitlines()]
        return [call for call in calls if program in (None, call.program)]

    def run(self, command: Sequence[str], cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs `command` with these programs first on PATH and nothing of the test's own settings but `environment`."""
        kept = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR")}
        full = kept | {"PATH": f"{self.folder}:{os.environ['PATH']}"} | environment
        return subprocess.run(command, cwd=cwd, env=full, capture_output=True, text=True, timeout=120)


def load(name: str) -> ModuleType:
    """A program of launch/ as a module."""
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(arguments: Sequence[str]) -> RunConfig:
    """The run that `train ARGUMENTS` describes: what the command line itself makes of them. UserError if it would refuse them."""
    assert arguments[0] == "train"
    parser = argparse.ArgumentParser(exit_on_error=False)
    train.add_arguments(parser)
    args, unknown = parser.parse_known_args(arguments[1:])
    with contextlib.chdir(REPOSITORY):
        return RunConfig.from_config_dict(train.read_config_file(args.config, [*args.overrides, *unknown]))


def check_devices(run: RunConfig, devices: int) -> None:
    """The mesh takes exactly `devices`, and they share the batch evenly."""
    sizes = dataclasses.asdict(run.mesh)
    assert all(size > 0 for size in sizes.values()), f"the line names the size of every axis: {sizes}"
    assert math.prod(sizes.values()) == devices
    assert run.data.batch_size % (devices // sizes["tensor"]) == 0


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that refused its input: one line, status 2."""
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    return line
