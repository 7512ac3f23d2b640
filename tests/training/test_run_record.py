"""run.json says which code ran."""

from __future__ import annotations

import subprocess

import pytest

from segearth_r2_jax.training.run_record import code_version


def git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    package = tmp_path / "segearth_r2_jax"
    package.mkdir()
    (package / "code.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "segearth_r2_jax")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_a_checkout_is_named_by_its_commit(checkout):
    version = code_version(checkout / "segearth_r2_jax")
    assert version["commit"] == git(checkout, "rev-parse", "HEAD")
    (checkout / "run").mkdir()
    (checkout / "run" / "notes.txt").write_text("not part of the code")
    assert version["changed"] is False
    assert code_version(checkout / "segearth_r2_jax") == version


def test_changed_code_is_said_to_be_changed(checkout):
    (checkout / "segearth_r2_jax" / "code.py").write_text("x = 2\n")
    assert code_version(checkout / "segearth_r2_jax")["changed"] is True


def test_a_package_inside_somebody_elses_checkout_has_no_commit(checkout):
    installed = checkout / ".venv" / "segearth_r2_jax"
    installed.mkdir(parents=True)
    assert "commit" not in code_version(installed)
