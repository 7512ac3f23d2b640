"""One browser for all tests, and a small data set in the LaSeRS layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import webdriver
from tanks_example import write_tanks


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium; the tests are skipped where it is not installed."""
    if reason := webdriver.missing():
        pytest.skip(reason)
    with webdriver.open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def tanks(tmp_path) -> Path:
    """A data set that the test may change."""
    write_tanks(tmp_path / "tanks")
    return tmp_path / "tanks"
