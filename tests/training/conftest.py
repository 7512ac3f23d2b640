from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline import build_shards, synthesize


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes in the LaSeRS layout."""
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    synthesize.main(["--output", str(folder), "--train", "8", "--test", "2", "--size", "64", "--seed", "3"])
    return folder


@pytest.fixture(scope="session")
def shards(scenes: Path) -> Path:
    """The training scenes as shards."""
    folder = scenes.parent / "shards"
    build_shards.main(["--source", "lasers", "--input", str(scenes), "--output", str(folder), "--split", "train"])
    return folder
