"""Where the tests find reference numbers and real images, and the settings every test runs under."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests find nothing that was compiled before, and leave nothing behind; those that want to, name a folder.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
# Most of a test's time is compilation, of programs that run a few times: they are compiled without LLVM's optimisation.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent (set {variable} to the folder to run this test)")
    return folder


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Numbers of the reference implementation of SegEarth-R2; the test is skipped where they are absent."""
    return _folder("SEGEARTH_R2_FIXTURES", SHARED / "fixtures" / "segearth_r2")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real images and masks; the test is skipped where they are absent."""
    return _folder("SEGEARTH_R2_DATA", SHARED / "data")


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a small network of random weights; answers hold [SEG] and never end by themselves."""
    from tiny_checkpoint import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes in the LaSeRS layout."""
    from data_pipeline import synthesize

    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    synthesize.main(["--output", str(folder), "--train", "8", "--test", "2", "--size", "64", "--seed", "3", "--world", "simple"])
    return folder


@pytest.fixture(scope="session")
def shards(scenes: Path) -> Path:
    """The training scenes as shards."""
    from data_pipeline import build_shards

    folder = scenes.parent / "shards"
    build_shards.main(["--source", "lasers", "--input", str(scenes), "--output", str(folder), "--split", "train"])
    return folder


@pytest.fixture
def empty_bucket():
    """`gs://` in memory, with nothing in it."""
    from cloud_bucket import bucket_in_memory

    with bucket_in_memory() as bucket:
        yield bucket
