"""`run.json`: what was run, and with what; enough to run it again."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from segearth_r2_jax.checkpoints.json_files import write_json
from segearth_r2_jax.training.run_config import RunConfig

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")
_PACKAGE = Path(__file__).resolve().parent.parent


def write_run_record(
    workdir: epath.Path, config: RunConfig, mesh: Mesh, *, overrides: Sequence[str] = (), more: Mapping[str, Any] | None = None
) -> None:
    """Writes WORKDIR/run.json, of the newest start of the run; one process writes.

    overrides: the command line's changes to the configuration file. more: further entries.
    """
    kinds = [device.device_kind for device in jax.devices()]
    content = {
        "config": config.to_dict(),
        "overrides": list(overrides),
        "code": code_version(_PACKAGE),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "devices": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "platform": jax.default_backend(),
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        **(more or {}),
    }
    write_json(workdir / "run.json", content)


def code_version(package: Path) -> dict[str, Any]:
    """{"version": of the package, "commit": hash, "changed": whether tracked files differ from it}; without the last two where `package`
    is not in the root of a git checkout."""
    try:
        version = {"version": importlib.metadata.version("segearth-r2-jax")}
    except importlib.metadata.PackageNotFoundError:
        version = {"version": None}
    top = _git(package, "rev-parse", "--show-toplevel")
    # A package installed into somebody's virtual environment lies inside their checkout, of which it is no part.
    if top is None or Path(top).resolve() != package.parent:
        return version
    changes = _git(package.parent, "status", "--porcelain", "--untracked-files=no")
    return version | {"commit": _git(package.parent, "rev-parse", "HEAD"), "changed": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, None if it is not there or refuses."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
