"""`segearth-r2 convert` when it is killed, when the disk is full: nothing half-written, and the next try succeeds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint

from segearth_r2_jax.checkpoints import manager
from segearth_r2_jax.checkpoints.torch_files.state_dict import read_state_dict
from segearth_r2_jax.models.binding import flatten

RUN = "from segearth_r2_jax.cli.main import main; main()"
# Ends as if by a power cut when so many chunks (on the way in) or tensors (on the way out) have been read.
KILLED = """
import os, signal, sys
from segearth_r2_jax.checkpoints import lazy_leaf, leaf_reader
count = int(sys.argv.pop(1))
def dies(read):
    def counted(*args):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*args)
    return counted
lazy_leaf.LazyLeaf.read = dies(lazy_leaf.LazyLeaf.read)
leaf_reader.LeafReader.read = dies(leaf_reader.LeafReader.read)
leaf_reader.LeafReader.row = dies(leaf_reader.LeafReader.row)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source") / "checkpoint")


@pytest.fixture(scope="module")
def exported(checkpoint) -> Path:
    target = checkpoint.parent / "exported"
    assert convert(checkpoint, target).returncode == 0
    return target


def convert(source: Path, target: Path, *options: str, before: str = "", first: tuple[str, ...] = ()):
    command = [sys.executable, "-c", before + RUN, *first, "convert", "--source", str(source), "--target", str(target), *options]
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | paths)


def content(folder: Path) -> dict[str, bytes]:
    if (folder / "base").is_dir():
        return {path: np.asarray(leaf).tobytes() for path, leaf in flatten(manager.load_parameters(folder)).items()}
    return {name: np.asarray(tensor).tobytes() for name, tensor in read_state_dict(folder).items()}


@pytest.mark.parametrize("direction", ["in", "out"])
def test_killed_in_the_middle_it_leaves_nothing_and_the_next_try_tidies_up(tmp_path, checkpoint, exported, direction):
    source, expected = (exported, checkpoint) if direction == "in" else (checkpoint, exported)
    target = tmp_path / "target"
    killed = convert(source, target, before=KILLED, first=("20",))
    assert killed.returncode == -signal.SIGKILL
    left = os.listdir(tmp_path)
    assert [name.rpartition("-")[0] for name in left] == [".target.partial"]
    done = convert(source, target)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(tmp_path) == ["target"]
    assert content(target) == content(expected)


def test_killed_while_it_replaces_it_leaves_one_of_both(tmp_path, checkpoint, exported):
    target = tmp_path / "target"
    assert convert(exported, target).returncode == 0
    before = content(target)
    killed = convert(exported, target, "--force", "--dtype", "float16", before=KILLED, first=("20",))
    assert killed.returncode == -signal.SIGKILL
    assert content(target) == before
    # Killed between the two renames: the old one is under its hidden name, with the number of a process that is no more.
    target.rename(tmp_path / f".target.replaced-{2**22 + 1}")
    assert convert(exported, target).returncode == 2  # the old one is back, and --force was not given
    assert content(target) == before
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_full_disk_is_one_line(tmp_path, checkpoint, exported, direction):
    """A limit on the size of a file stands in for the full disk: the system refuses a write in the middle."""
    source = exported if direction == "in" else checkpoint
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))\n"
    result = convert(source, tmp_path / "target", before=before)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"segearth-r2: error: {tmp_path}/target: cannot be written (File too large); nothing of it was left\n"
    assert os.listdir(tmp_path) == []


def test_too_little_space_is_said_before_anything_is_written(tmp_path, exported):
    before = "import shutil, types; shutil.disk_usage = lambda path: types.SimpleNamespace(free=1000)\n"
    result = convert(exported, tmp_path / "target", before=before)
    assert result.returncode == 2
    assert "bytes are needed there, 1,000 are free" in result.stderr
    assert os.listdir(tmp_path) == []


def test_a_file_of_the_source_that_is_cut_off_meanwhile_is_no_crash(tmp_path, exported):
    """A map of a file that shrinks kills a process (SIGBUS); it is enough that nothing is left then."""
    source = Path(shutil.copytree(exported, tmp_path / "source"))
    cut = f"""
from segearth_r2_jax.checkpoints import reference_import
write = reference_import.Import.write
def cut(*args, **kwargs):
    import os
    os.truncate({str(source / "model.safetensors")!r}, 10_000)
    return write(*args, **kwargs)
reference_import.Import.write = cut
"""
    result = convert(source, tmp_path / "target", before=cut)
    assert result.returncode in (2, -signal.SIGBUS)
    assert not (tmp_path / "target").exists()
