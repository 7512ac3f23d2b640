"""`tpu_vm.sh`: the calls of gcloud that it makes, and, with a gcloud that runs them here, what happens on the workers."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from launched import LAUNCH, REPOSITORY, Programs, one_line, run_of

SLICE = {"PROJECT": "p", "ZONE": "us-west4-a", "TPU_NAME": "segearth"}
MODEL = {"ACCELERATOR_TYPE": "v5litepod-16", "RUNTIME_VERSION": "v2-alpha-tpuv5-lite"}
WHERE = ["--project", "p", "--zone", "us-west4-a"]
TRAIN = ["train", "--config", "configs/segearth_r2_lasers.py", "--workdir", "gs://b/my run", "--config.mesh.fsdp=16"]


@pytest.fixture
def programs(tmp_path) -> Programs:
    programs = Programs(tmp_path / "bin")
    programs.add("gcloud")
    return programs


def tpu_vm(programs: Programs, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return programs.run(["bash", str(LAUNCH / "tpu_vm.sh"), *arguments], **environment)


def calls(programs: Programs, *arguments: str, **environment: str) -> list[list[str]]:
    result = tpu_vm(programs, *arguments, **environment)
    assert result.returncode == 0, result.stderr
    return [call.arguments for call in programs.calls("gcloud")]


def ssh(worker: str, command: str) -> list[str]:
    return ["compute", "tpus", "tpu-vm", "ssh", "segearth", *WHERE, "--worker", worker, "--command", command]


@pytest.mark.parametrize(("spot", "more"), [({}, []), ({"SPOT": "1"}, ["--spot"])])
def test_create_asks_for_the_slice(programs, spot, more):
    (call,) = calls(programs, "create", **SLICE, **MODEL, **spot)
    assert call == [
        *("compute", "tpus", "queued-resources", "create", "segearth", "--node-id", "segearth", *WHERE),
        *("--accelerator-type", "v5litepod-16", "--runtime-version", "v2-alpha-tpuv5-lite", *more),
    ]


def test_install_copies_the_working_tree_to_all_workers(programs, tmp_path):
    # The archive is gone afterwards: the copy of it is what is looked at.
    programs.add("gcloud", f"if 'scp' in sys.argv: import shutil; shutil.copy(sys.argv[5], {str(tmp_path / 'sent.tar.gz')!r})")
    scp, install = calls(programs, "install", **SLICE, TPU_SSH="--tunnel-through-iap")
    assert scp[:3] == ["compute", "tpus", "tpu-vm"]
    assert Path(scp[4]).name == "segearth-r2.tar.gz"
    assert not Path(scp[4]).exists()
    assert scp[5:] == ["segearth:", *WHERE, "--tunnel-through-iap", "--worker", "all"]
    assert install[3:11] == ["ssh", "segearth", *WHERE, "--tunnel-through-iap", "--worker"]
    assert install[-1].endswith("bash segearth-r2/launch/tpu_worker.sh install")
    with tarfile.open(tmp_path / "sent.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"launch/runtime.py", "launch/tpu_worker.sh", "segearth_r2_jax/cli/train.py", "configs/segearth_r2_lasers.py"} <= names
    assert not {name for name in names if name.startswith((".git/", ".venv")) or "__pycache__" in name}


def test_run_starts_the_command_on_all_workers_with_its_arguments_whole(programs):
    (call,) = calls(programs, "run", *TRAIN, **SLICE)
    assert call[:-1] == ssh("all", "")[:-1]
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {call[-1]}"], capture_output=True, text=True).stdout.splitlines()
    assert words == ["bash", "segearth-r2/launch/tpu_worker.sh", "start", *TRAIN]
    assert run_of(words[3:]).mesh.fsdp == 16


def test_the_other_calls(programs):
    state = ["compute", "tpus", "queued-resources", "describe", "segearth", *WHERE, "--format", "value(state.state)"]
    assert calls(programs, "status", **SLICE) == [state, ssh("all", "bash segearth-r2/launch/tpu_worker.sh status")]
    assert calls(programs, "log", **SLICE)[-1] == ssh("0", "tail -n 100 -F segearth-r2/run.log")
    assert calls(programs, "log", "3", **SLICE)[-1] == ssh("3", "tail -n 100 -F segearth-r2/run.log")
    assert calls(programs, "stop", **SLICE)[-1] == ssh("all", "bash segearth-r2/launch/tpu_worker.sh stop")
    assert calls(programs, "delete", **SLICE)[-1] == [
        *("compute", "tpus", "queued-resources", "delete", "segearth", *WHERE, "--force", "--quiet")
    ]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], SLICE, "expected create, install, run, status, log, stop or delete"),
        (["start"], SLICE, "expected create, install, run, status, log, stop or delete"),
        (["create"], SLICE, "set ACCELERATOR_TYPE RUNTIME_VERSION in the environment"),
        (["run", *TRAIN], {"PROJECT": "p"}, "set ZONE TPU_NAME in the environment"),
        (["run"], SLICE, "run: expected what segearth-r2 is to do"),
    ],
)
def test_what_is_missing_is_one_line(programs, arguments, environment, message):
    assert message in one_line(tpu_vm(programs, *arguments, **environment))
    assert programs.calls() == []


# The workers of a slice: folders of this machine, in which the command of an ssh call runs.
GCLOUD = """
words = sys.argv[1:]
if "ssh" in words:
    for worker in (0, 1):
        home = os.path.join({homes!r}, str(worker))
        subprocess.run(["bash", "-c", words[-1]], cwd=home, env=os.environ | {{"HOME": home}}, check=True)
"""
# In the place of Python: writes its arguments down, waits, and when it is asked to leave, saves.
PYTHON = """
import signal, time
def leave(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
print("training", flush=True)
time.sleep(120)
"""


@pytest.fixture
def workers(tmp_path, programs) -> list[Path]:
    """Two workers after `install`, as far as `run`, `status` and `stop` see it."""
    programs.add("gcloud", GCLOUD.format(homes=str(tmp_path)))
    folders = [tmp_path / str(number) / "segearth-r2" for number in (0, 1)]
    for folder in folders:
        (folder / "launch").mkdir(parents=True)
        for name in ("tpu_worker.sh", "keep_running.sh", "runtime.py", "environment.sh"):
            (folder / "launch" / name).write_text((LAUNCH / name).read_text())
        Programs(folder / ".venv" / "bin").add("python", PYTHON)
    return folders


def wait_for(file: Path, text: str) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if file.exists() and text in file.read_text():
            return file.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{file}: {file.read_text() if file.exists() else 'absent'}")


def test_a_command_runs_on_the_workers_until_it_is_stopped(programs, workers):
    assert tpu_vm(programs, "run", *TRAIN, **SLICE).returncode == 0
    try:
        for folder in workers:
            wait_for(folder / "run.log", "training")
            (call,) = Programs(folder / ".venv" / "bin").calls("python")
            assert call.arguments == ["launch/runtime.py", *TRAIN]
            assert (call.environment["SEGEARTH_R2_RUNTIME"], call.environment["JAX_PLATFORMS"]) == ("tpu", "tpu,cpu")
        assert tpu_vm(programs, "status", **SLICE).stdout.count(": running: training") == 2
        again = tpu_vm(programs, "run", *TRAIN, **SLICE)
        assert again.returncode != 0
        assert "a command runs already" in again.stderr
    finally:
        stopped = tpu_vm(programs, "stop", **SLICE)
    assert stopped.returncode == 0, stopped.stderr
    for folder in workers:
        assert (folder / "run.log").read_text().splitlines() == ["training", "saved"]
        assert not Path(f"/proc/{(folder / 'run.pid').read_text().strip()}").exists()
    assert tpu_vm(programs, "status", **SLICE).stdout.count(": not running: saved") == 2


def test_a_worker_without_an_installation_says_so(programs, workers):
    for folder in workers:
        (folder / ".venv" / "bin" / "python").unlink()
    result = tpu_vm(programs, "run", *TRAIN, **SLICE)
    assert result.returncode != 0
    assert "nothing is installed here" in result.stderr


def test_installing_on_a_worker_asks_for_the_extras_of_a_tpu(programs, workers):
    """Everything but pip itself: the stand-in for Python writes down what pip is asked for."""
    folder = workers[0]
    for name in ("requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        (folder / name).write_text((REPOSITORY / name).read_text())
    # The virtual environment is made by the first usable interpreter of the machine; here it is there already.
    python = Programs(folder / ".venv" / "bin")
    python.add("python")
    result = programs.run(["bash", str(folder / "launch" / "tpu_worker.sh"), "install"], cwd=folder, HOME=str(folder.parent))
    assert result.returncode == 0, result.stderr
    asked = [call.arguments for call in python.calls("python")]
    assert ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"] in asked
    assert asked[-1] == ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", ".[tpu,gcs]"]
    assert json.dumps(asked).count("requirements.txt") == 1


def test_an_old_image_gets_an_interpreter_through_uv(programs, workers, tmp_path):
    """The worker has only a Python that is too old."""
    folder = workers[0]
    for name in ("requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        (folder / name).write_text((REPOSITORY / name).read_text())
    found = tmp_path / "found"
    Programs(folder / ".venv" / "bin").add("python")
    # `python -c` is the question for the version: the old one answers no, the one that uv brings yes.
    old = "if sys.argv[1:2] == ['-c']: sys.exit(1)\nif sys.argv[1:4] == ['-m', 'uv', 'python'] and 'find' in sys.argv: print({!r})"
    for name in ("python3.11", "python3.12", "python3.13", "python", "python3"):
        programs.add(name, old.format(str(found / "python3.12")))
    Programs(found).add("python3.12", "if sys.argv[1:2] == ['-c']: print('3.12')")
    result = programs.run(["bash", str(folder / "launch" / "tpu_worker.sh"), "install"], cwd=folder, HOME=str(folder.parent))
    assert result.returncode == 0, result.stderr
    uv = [call.arguments for call in programs.calls("python3") if call.arguments[:1] == ["-m"]]
    assert uv == [
        ["-m", "pip", "install", "--quiet", "--user", "uv"],
        ["-m", "uv", "python", "install", "3.12"],
        ["-m", "uv", "python", "find", "3.12"],
    ]
    assert os.path.exists(folder / ".venv" / ".installed-requirements.txt")
