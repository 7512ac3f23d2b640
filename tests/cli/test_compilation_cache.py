"""Where compiled programs are kept, and that a folder that cannot be written costs nobody their answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from segearth_r2_jax.cli.compilation_cache import default_folder

SETTINGS = (
    "from segearth_r2_jax.cli.compilation_cache import keep_compiled_programs; import jax, json; keep_compiled_programs(); "
    "jax.jit(lambda x: x * 2)(1.0); print(json.dumps(jax.config.jax_compilation_cache_dir))"
)


def _folder(home: Path, **changes: str) -> str | None:
    """The folder that a process with these variables keeps programs in, after it compiled one."""
    environment = {key: value for key, value in os.environ.items() if key not in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")}
    environment |= {"HOME": str(home)} | changes
    done = subprocess.run([sys.executable, "-c", SETTINGS], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_in_the_home_of_the_user(tmp_path: Path):
    folder = _folder(tmp_path)
    assert folder == str(tmp_path / ".cache" / "segearth-r2-jax")
    assert any(Path(folder).iterdir())


def test_moved_by_either_variable(tmp_path: Path):
    assert _folder(tmp_path, XDG_CACHE_HOME=str(tmp_path / "x")) == str(tmp_path / "x" / "segearth-r2-jax")
    assert _folder(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "y")) == str(tmp_path / "y")
    assert not (tmp_path / ".cache").exists()


def test_switched_off(tmp_path: Path):
    assert not _folder(tmp_path, JAX_COMPILATION_CACHE_DIR="")
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_is_done_without(tmp_path: Path):
    (tmp_path / ".cache").write_text("in the way")
    assert _folder(tmp_path) is None


def test_the_default_without_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "segearth-r2-jax"
