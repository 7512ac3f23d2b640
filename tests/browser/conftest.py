"""One browser for all tests, and a small drawn data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import webdriver

from data_pipeline.synthesize import WorldSettings, synthesize


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium; the tests are skipped where it is not installed."""
    if reason := webdriver.missing():
        pytest.skip(reason)
    with webdriver.open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="session")
def _drawn_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    synthesize(WorldSettings(train=4, test=0, size=128, seed=3), folder, workers=0, progress=False)
    return folder


@pytest.fixture
def drawn(_drawn_once, tmp_path) -> Path:
    """A data set in the LaSeRS layout that the test may change: four drawn scenes, sixteen rows."""
    return shutil.copytree(_drawn_once, tmp_path / "set")


def change_rows(folder: Path, change) -> list[dict]:
    """Applies `change(number, row)` to the training rows of a data set, in place."""
    path = folder / "train/annotations/train_data.json"
    rows = json.loads(path.read_text())
    for number, row in enumerate(rows):
        change(number, row)
    path.write_text(json.dumps(rows))
    return rows
